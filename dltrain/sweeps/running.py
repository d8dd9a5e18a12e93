"""Runs the jobs of a sweep that are missing, by Hydra's launcher, and ends with the table of all.

A job that fails is reported at once and does not end the others; a signal does, after the step that is under way.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dltrain import same_config, trust
from dltrain.config.words import take_config_folders
from dltrain.disk import write_text
from dltrain.drawing.tables import format_count, format_duration
from dltrain.errors import InterruptedRun, MachineError
from dltrain.own_modules import guard_imports, put_last
from dltrain.run_dir import RunDir
from dltrain.run_lock import locked
from dltrain.signals import Signals
from dltrain.sweeps import jobs
from dltrain.sweeps.jobs import Job
from dltrain.sweeps.limits import Limits
from dltrain.sweeps.table import state_of

Launch = Callable[[Callable[[DictConfig], Any], Sequence[Sequence[str]]], list[Any]]
Finish = Callable[..., int]  # prints the table and returns the exit code
TrainRun = Callable[[DictConfig, RunDir, list[str]], None]  # of a config, in a folder, by the words that compose it


def run_jobs(planned: Sequence[Job], folder: Path, launch: Launch, start: SweepJob, finish: Finish, limits: Limits
             ) -> int:
    """Does what is missing of the jobs, those that a fault of the machine ended once more, then prints the table.
    `launch`: calls `start` with the config of each of these words. Returns the exit code."""
    with locked(folder):
        jobs.write(folder, planned)
        missing = [job for job in planned if state_of(RunDir(folder / job.name)) != "done"]
        if done := len(planned) - len(missing):
            print(f"{done} of {format_count(len(planned), 'job')} done before")
        todo = missing[:limits.max_jobs]
        start.course = Course(len(todo))

        return end_with_table(partial(launch_all, todo, launch, start), start, folder,
                              partial(finish, may_be_cut=limits != Limits()))


def launch_all(todo: Sequence[Job], launch: Launch, start: SweepJob) -> list[int | None]:
    """The exit codes of the jobs; None for one that it was too late to start."""
    codes = dict(zip((job.id for job in todo), launch(start, [job.words for job in todo]), strict=True))
    again = [job for job in todo if codes[job.id] == MachineError.exit_code]
    if again:
        print(f"\nonce more: {format_count(len(again), 'job')} that the machine ended")
        codes.update(zip((job.id for job in again), launch(start, [job.words for job in again]), strict=True))
    return [*codes.values()]


def search(folder: Path, start: Callable[[], object], job: SweepJob, finish: Finish) -> int:
    """A sweep whose jobs a sweeper chooses as it goes; `start` has it do so. Returns the exit code."""
    with locked(folder):
        return end_with_table(start, job, folder, finish)


def end_with_table(work: Callable[[], object], job: SweepJob, folder: Path, finish: Finish) -> int:
    try:
        with job.signals:
            job.signals.record()
            work()
    except InterruptedRun:
        finish()
        print(f"interrupted; the same command with name={folder.name}, or dltrain resume run={folder}, goes on")
        raise
    return finish()


class Course:
    """How far a sweep of so many jobs is, in the process that runs them one after another."""

    def __init__(self, count: int):
        self.count, self.started, self.process = count, 0, os.getpid()
        self.began_at = time.monotonic()

    def begin_job(self) -> str:
        """A line at the start of a job: its number and, from the mean time of those before it, the time left; "" where
        another process runs the job."""
        if self.process != os.getpid():
            return ""
        done, self.started = self.started, self.started + 1
        mean = (time.monotonic() - self.began_at) / max(1, done)
        left = f", {format_duration(mean * (self.count - done))} left" if done else ""
        return f"job {min(self.started, self.count)} of {self.count}{left}: "


class SweepJob:
    """What Hydra calls with the config of each job, maybe in another process. Returns the exit code; None if it is too
    late to start."""

    def __init__(self, train_run: TrainRun, accept_changed_data: bool, max_hours: float | None = None):
        self.train_run, self.accept_changed_data = train_run, accept_changed_data
        self.deadline = None if max_hours is None else time.time() + 3600 * max_hours
        self.signals, self.trusted = Signals(), trust.command_words()
        self.course: Course | None = None
        self.threads: int | None = None  # of a job, where its config leaves them open; None: as many as torch takes

    def __call__(self, config: DictConfig) -> float | None:
        return None if self.deadline and time.time() > self.deadline else self.train(config)[0]

    def train(self, config: DictConfig) -> tuple[int, RunDir]:
        """The exit code, and the folder of the job. Raises InterruptedRun after a signal."""
        from hydra.core.hydra_config import HydraConfig

        from dltrain.reporting import report

        if self.signals.received is not None:
            name = signal.Signals(self.signals.received).name
            raise InterruptedRun(self.signals.received, f"{name}: stopped between two jobs")
        guard_imports()
        put_last(take_config_folders(trust.take(self.trusted))[1])
        hydra = HydraConfig.get()
        run_dir, words = RunDir(Path(os.path.relpath(hydra.runtime.output_dir))), list(hydra.overrides.task)
        run_dir.accepts_changed_data = self.accept_changed_data
        code = report(run_dir, lambda: self.start(config, run_dir, words))
        if code == 0:
            (run_dir.path / "error.txt").unlink(missing_ok=True)
        return code, run_dir

    def start(self, config: DictConfig, run_dir: RunDir, words: list[str]) -> None:
        place = self.course.begin_job() if self.course else ""
        print(f"\n{place}{run_dir.path.name}: {' '.join(words)}", flush=True)
        same_config.refuse_other_config(run_dir, config)
        self.fix_threads(config, run_dir)
        with locked(run_dir.path):
            write_text(run_dir.path / jobs.OVERRIDES, "\n".join(words) + "\n")
        self.train_run(config, run_dir, words)

    def fix_threads(self, config: DictConfig, run_dir: RunDir) -> None:
        """The threads that a job begins with stand in its config: it keeps them, whatever process continues it."""
        import torch

        same_config.keep_threads(run_dir, config)
        if "trainer" in config and config.trainer.threads is None:
            config.trainer.threads = max(1, (self.threads or torch.get_num_threads()) // config.trainer.devices)


class SearchJob(SweepJob):
    """Returns the headline metric, for a sweeper that optimises it."""

    def __call__(self, config: DictConfig) -> float | None:
        result = self.train(config)[1].read_result()
        return float(result[result["headline"]]) if "headline" in result else None
