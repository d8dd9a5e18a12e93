"""TPE with pruning beside a grid: `python scripts/search_against_grid.py [--seeds 5] [--epochs 4]`.

The grid is 4 rates from 1e-3 to 1 times 3 weight decays from 1e-5 to 1e-2, each trained to its end. The search has half
of the grid's optimizer steps, all jobs counted, the pruned ones too; seed k is that of the jobs of row k and of its
search. Printed: of each seed the best validation accuracy of
both, and the share of the grid's steps after which the search has reached that of the grid, if it has; then the mean
difference with its 95 % interval by Student's t distribution, and for how many seeds the grid's best was reached.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import pytorch_lightning as pl

from dltrain import cli, trainer
from dltrain.repeats import interval_of
from dltrain.run_dir import RunDir
from dltrain.sweeps import jobs

RATES = "lr=tag(log, interval(1e-3, 1))"
DECAYS = "task.optimizer.weight_decay=tag(log, interval(1e-5, 1e-2))"
GRID = ["lr=0.001,0.01,0.1,1", "task.optimizer.weight_decay=1e-5,3.162e-4,1e-2"]
FIXED = ["data=digits", "model.depth=8", "recipe=none", "data.batch_size=64", "task.schedule.name=cosine"]


def command(*words: str) -> None:
    sys.argv = ["dltrain", "-m", *words]
    with contextlib.redirect_stdout(io.StringIO()):
        code = cli.main()
    if code not in (0, 7):  # 7: a job has failed, as one that diverged
        raise SystemExit(f"{' '.join(sys.argv)}: exit code {code}")


def best_by_step(folder: Path) -> list[tuple[int, float]]:
    """The optimizer steps of all jobs so far, in the order in which they were trained, with the best accuracy."""
    steps, best, curve = 0, 0.0, []
    for job in jobs.read(folder):
        rows = RunDir(folder / job.name).read_metrics()
        for row in rows:
            if row["val/accuracy"]:
                best = max(best, float(row["val/accuracy"]))
                curve.append((steps + int(row["step"]), best))
        steps += int(rows[-1]["step"])
    return curve


class Row(NamedTuple):
    """Best validation accuracies, and shares of the grid's steps; `reached_at` is None if it was not reached."""

    seed: int
    grid: float
    search_at_half: float
    reached_at: float | None
    grid_steps: int
    trials: int


def measure(seed: int, epochs: int, more: list[str]) -> Row:
    words = [*FIXED, *more, f"trainer.max_epochs={epochs}", f"seed={seed}"]
    command(*words, *GRID, f"name=grid{seed}")
    grid = best_by_step(Path(f"outputs/grid{seed}"))
    folder, trials, curve = Path(f"outputs/tpe{seed}"), 4, [(0, 0.0)]
    while curve[-1][0] < grid[-1][0] / 2:
        trials += 2
        command(*words, "search=tpe", RATES, DECAYS, f"search_seed={seed}", f"trials={trials}", f"name=tpe{seed}")
        curve = best_by_step(folder)
    curve = [(steps, best) for steps, best in curve if steps <= grid[-1][0] / 2]
    reached = next((steps for steps, best in curve if best >= grid[-1][1]), None)
    return Row(seed, grid[-1][1], curve[-1][1], None if reached is None else reached / grid[-1][0], grid[-1][0],
               len(jobs.read(folder)))


def main() -> None:
    trainer.Figures = lambda *_: pl.Callback()  # type: ignore[misc,assignment]  # pictures take half of such a short run
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("more", nargs="*", help="overrides of every job")
    options, home, rows = parser.parse_args(), Path.cwd(), []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for seed in range(options.seeds):
            rows.append(measure(seed, options.epochs, options.more))
            print(rows[-1], flush=True)
        os.chdir(home)
    differences = [row.search_at_half - row.grid for row in rows]
    low_high = "({:+.4f} to {:+.4f})".format(*interval_of(differences)) if len(rows) > 1 else ""
    print(f"search at half of the steps less grid: {mean(differences):+.4f} {low_high}")
    shares = [row.reached_at for row in rows if row.reached_at is not None]
    print(f"it has reached the best of the grid for {len(shares)} of {len(rows)} seeds"
          + (f", after {mean(shares):.2f} of its steps on average" if shares else ""))


if __name__ == "__main__":
    main()
