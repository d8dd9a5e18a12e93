"""Simulates a sweep of many jobs that are done: their folders without the training, for the speed of tables and pages.

    python -m tests.many_jobs 2000 outputs/many; dltrain resume run=outputs/many
"""

import itertools
import json
import math
import random
import re
import sys
from pathlib import Path

from dltrain.config.compose import compose, to_plain
from dltrain.run_dir import RunDir
from dltrain.sweeps import jobs

SWEPT = {"task.optimizer.lr": ["0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1.0"],
         "task.optimizer.weight_decay": ["0.0", "1.0e-05", "0.0001", "0.001", "0.01"],
         "data.batch_size": ["16", "32", "64", "128", "256"], "seed": [str(seed) for seed in range(1, 13)]}


def simulate(folder: Path, count: int, epochs: int = 30, readings: int = 10,
             swept: dict[str, list[str]] | None = None) -> None:
    """The first `count` combinations of the `swept` values. Accuracy is best at a rate of 0.1 and a decay of 1e-4. An
    epoch has that many readings of the training metrics."""
    swept = swept or SWEPT
    composed = compose(["name=many"])
    first = RunDir(folder / "first")
    first.path.mkdir(parents=True)
    first.write_config(to_plain(composed.job_config()), composed.comments())
    config = (first.path / "config.yaml").read_text()
    (first.path / "config.yaml").unlink()
    first.path.rmdir()
    planned = []
    for number, values in enumerate(itertools.islice(itertools.product(*swept.values()), count)):
        given = dict(zip(swept, values, strict=True))
        job = jobs.Job(f"{number:08x}", f"{jobs.label(given, [*swept])}-{number:08x}",
                       [f"{key}={value}" for key, value in given.items()])
        write_job(folder / job.name, job, given, config, epochs, readings)
        planned.append(job)
    jobs.write(folder, planned)


def write_job(folder: Path, job: jobs.Job, given: dict[str, str], config: str, epochs: int, readings: int) -> None:
    folder.mkdir()
    for key, value in given.items():
        config = re.sub(rf"(?m)^( *{key.rpartition('.')[2]}: )\S+", rf"\g<1>{value}", config, count=1)
    (folder / "config.yaml").write_text(config)
    (folder / jobs.OVERRIDES).write_text("\n".join(job.words) + "\n")
    write_results(folder, given, epochs, readings)


def write_results(folder: Path, given: dict[str, str], epochs: int = 30, readings: int = 10) -> None:
    """metrics.csv and result.json of a run that is done."""
    draw = random.Random(folder.name)
    rate, decay = float(given.get("task.optimizer.lr", 0.1)), float(given.get("task.optimizer.weight_decay", 1e-4))
    best = 0.95 - 0.08 * math.log10(rate / 0.1) ** 2 - 0.02 * abs(math.log10((decay + 1e-6) / 1e-4))
    best += draw.gauss(0, 0.01)
    rows = ["step,epoch,train/loss,train/accuracy,lr,images_per_second,val/accuracy,val/loss"]
    for step in range(1, epochs * readings + 1):
        level = best * (1 - math.exp(-4 * step / epochs / readings)) + draw.gauss(0, 0.01)
        epoch = 1 + (step - 1) // readings
        rows.append(f"{step},{epoch},{2.3 * (1 - level):.6g},{level:.6g},{rate:.6g},{draw.uniform(9, 11) * 1e3:.6g},,")
        if step % readings == 0:
            rows.append(f"{step},{epoch},,,,,{level - 0.02:.6g},{2.4 * (1 - level):.6g}")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    (folder / "result.json").write_text(json.dumps({
        "test/accuracy": best - 0.03, "val/accuracy": best - 0.02, "test/loss": 0.2, "best_epoch": epochs,
        "headline": "val/accuracy", "headline_mode": "max", "steps": epochs * readings, "seconds": 12.5,
        "parameters": 75002, "folder": str(folder), "version": "0.2.0"}))


if __name__ == "__main__":
    simulate(Path(sys.argv[2]), int(sys.argv[1]))
