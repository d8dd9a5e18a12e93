"""The jobs that Hydra starts, one for a run and many for a sweep: a mistake is one line, a sweep ends in a table."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dltrain import compose, folder, listing, run
from dltrain.errors import MachineError, UserError


def reported(path: Path, story: Callable[[], Any]) -> int:
    """Tells the story and returns its exit code: what went wrong is one line, and a traceback in the run folder."""
    try:
        try:
            story()
            return 0
        except torch.OutOfMemoryError as error:
            raise MachineError("out of memory on the device; try a smaller data.batch_size, with "
                               "trainer.accumulate_batches to keep the step's size") from error
    except UserError as error:
        failed(path, str(error))
        return error.exit_code
    except SystemExit as error:
        failed(path, f"the code ended the program with exit code {error.code}")
        return 1
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        failed(path, f"{type(error).__name__}: {said} (traceback in {path / 'error.txt'})")
        return 1


def failed(path: Path, message: str) -> None:
    """One line on standard error, and error.txt. A folder that holds no more than the lock and the log of a run that
    was refused before it began is taken away again."""
    print(f"dltrain: error: {message}", file=sys.stderr, flush=True)
    if not path.is_dir():
        return
    if {child.name for child in path.iterdir()} <= {".lock", "log.txt"}:
        for child in path.iterdir():
            child.unlink()
        path.rmdir()
    else:
        (path / "error.txt").write_text(f"{message}\n\n{traceback.format_exc()}", encoding="utf-8")


class Jobs:
    """The function that Hydra calls, once for a run and once a job for a sweep. A failing job is reported at once and
    does not end the others; a signal does."""

    def __init__(self, path: Path, sweep: bool, config_dir: str | None):
        self.path, self.sweep, self.config_dir = path, sweep, config_dir
        self.exit_code = 0

    def __call__(self, _: DictConfig) -> float | None:
        path = Path(os.path.relpath(HydraConfig.get().runtime.output_dir)) if self.sweep else self.path
        words = list(HydraConfig.get().overrides.task)
        self.exit_code = reported(path, lambda: self.job(words, path))
        if self.exit_code == 0:
            (path / "error.txt").unlink(missing_ok=True)
        found = read_result(path)
        return found[found["headline"]] if found else None

    def job(self, words: list[str], path: Path) -> None:
        if self.sweep:
            print(f"\n{path.name}: {' '.join(words)}", flush=True)
            folder.write(path / "overrides.txt", "\n".join(words) + "\n")
        config = compose.compose(words, self.config_dir).job_config()  # of a sweep only the first job was checked yet
        if self.sweep:
            folder.refuse_other_config(path, compose.to_plain(config))
        if self.sweep and config.trainer.devices > 1:  # processes of its own: they cannot be started twice from one
            folder.write_config(path, compose.to_plain(config))
            code = subprocess.run([sys.executable, "-m", "dltrain.cli", "resume", f"run={path}"]).returncode
            if code:
                raise UserError(f"{path} ended with exit code {code}")
            return
        run.train(config, path)

    def finish(self) -> int:
        return finish_sweep(self.path) if self.sweep else self.exit_code

    def interrupted(self) -> None:
        """What a person should know when a signal has ended a sweep."""
        if self.sweep:
            finish_sweep(self.path)
            print("interrupted; the same words with name= of this folder below output_dir skip the jobs that are done")


def read_result(path: Path) -> dict[str, Any]:
    file = path / "result.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def finish_sweep(path: Path) -> int:
    """Prints and writes the table of all jobs, best first, failed ones last. Returns 7 where one failed."""
    folders = [child for child in path.iterdir() if child.is_dir() and child.name.partition("-")[0].isdigit()]
    jobs = sorted(folders, key=lambda job: int(job.name.partition("-")[0]))
    results = {job: read_result(job) for job in jobs}
    asked = {job: asked_of(job) for job in jobs}
    done = [job for job in jobs if results[job]]
    headline = next((results[job]["headline"] for job in done), "")
    tested = headline.replace("val/", "test/")
    done.sort(key=lambda job: -results[job].get(tested, 0))
    every = dict.fromkeys(key for words in asked.values() for key in words)
    varied = [key for key in every if len({words.get(key) for words in asked.values() if words}) > 1]
    rows = []
    for job in [*done, *(job for job in jobs if not results[job])]:
        result = results[job]
        reason = (job / "error.txt").read_text().splitlines()[0] if (job / "error.txt").is_file() else "unfinished"
        rows.append({"job": job.name, **{key: asked[job].get(key, "") for key in varied},
                     **{key: f"{result[key]:.4f}" if result else "" for key in (headline, tested) if key},
                     "seconds": f"{result['seconds']:.0f}" if result else "",
                     "state": "done" if result else f"failed: {reason}"})
    with open(path / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("\n" + listing.table([tuple(rows[0]), *(tuple(row.values()) for row in rows)]))
    print(f"\n{len(done)} of {len(jobs)} jobs done; {path}/results.csv")
    return 0 if len(done) == len(jobs) else 7


def asked_of(job: Path) -> dict[str, str]:
    """The words that a sweep's job was started with, by key."""
    file = job / "overrides.txt"
    return dict(line.lstrip("+~").split("=", 1) for line in file.read_text().splitlines() if "=" in line) if (
        file.is_file()) else {}
