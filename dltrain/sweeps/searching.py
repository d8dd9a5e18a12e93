"""Runs the jobs that a search chooses, one after the other or rung by rung."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dltrain.drawing.tables import format_count
from dltrain.errors import DivergedError
from dltrain.run_dir import RunDir
from dltrain.sweeps import jobs
from dltrain.sweeps.curves import best_by_epoch, has_ended, has_reached, headline_of
from dltrain.sweeps.halving import Bracket
from dltrain.sweeps.jobs import Job

Plan = Callable[[list[str]], Job]  # the job of words


class Study(Protocol):
    """See study.py. A trial has values by their keys."""

    @property
    def num_proposed(self) -> int: ...

    def failed(self) -> list[dict[str, Any]]: ...

    def propose(self) -> dict[str, Any]: ...

    def words(self, values: dict[str, Any]) -> list[str]: ...

    def prunes(self, values: dict[str, Any], epoch: int, best: float) -> bool: ...

    def add(self, values: dict[str, Any], job_id: str, run_dir: RunDir, diverged: bool, is_retry: bool) -> None: ...


class Searching:
    """A search in the folder of a sweep. `launch`: trains jobs, until where its keywords state, see run.train, and
    returns the exit codes, None for those that it was too late to start. At most `max_jobs` are started."""

    def __init__(self, folder: Path, launch: Callable[..., list[int | None]], max_jobs: int | None):
        self.folder, self.launch, self.max_jobs, self.num_started = folder, launch, max_jobs, 0

    def run_dir(self, job: Job) -> RunDir:
        return RunDir(self.folder / job.name)

    def launch_some(self, todo: Sequence[Job], **until: object) -> list[int | None]:
        """The exit codes of the jobs; None for those that may not be started."""
        allowed = todo[: None if self.max_jobs is None else self.max_jobs - self.num_started]
        self.num_started += len(allowed)
        return [*self.launch(allowed, **until), *[None] * (len(todo) - len(allowed))]

    def run_trials(self, study: Study, plan: Plan, num_trials: int, prune: bool) -> None:
        """Proposes a job, trains it and stores its trial, until there are so many. Those that have failed, but not
        those that diverged, are tried again first."""
        for values in study.failed():
            if not self.run_trial(study, plan, values, prune, is_retry=True):
                return
        while (number := study.num_proposed) < num_trials:
            print(f"\ntrial {number + 1} of {num_trials}", flush=True)
            if not self.run_trial(study, plan, study.propose(), prune):
                return

    def run_trial(self, study: Study, plan: Plan, values: dict[str, Any], prune: bool,
                  is_retry: bool = False) -> bool:
        """False if the limits do not allow it."""
        job = plan(study.words(values))
        jobs.write(self.folder, [job])
        code: int | None = 0
        if has_ended(self.run_dir(job)):  # killed before the trial was stored, or proposed before
            print(f"\n{job.name} has ended before")
        else:
            code, = self.launch_some([job], prunes=partial(study.prunes, values) if prune else None)
        if code is not None:
            study.add(values, job.id, self.run_dir(job), code == DivergedError.exit_code, is_retry)
        return code is not None

    def run_brackets(self, brackets: Sequence[Bracket]) -> None:
        for number, bracket in enumerate(brackets, 1):
            if len(brackets) > 1:
                print(f"\nbracket {number} of {len(brackets)}: {bracket}")
            jobs.write(self.folder, bracket.planned)
            if not self.run_bracket(bracket):
                return

    def run_bracket(self, bracket: Bracket) -> bool:
        """False if the limits do not allow it."""
        alive, before = bracket.planned, 0
        for number, rung in enumerate(bracket.rungs, 1):
            alive = self.best(alive, before)[:rung.jobs] if before else alive
            todo = [job for job in alive if not has_reached(self.run_dir(job), rung.epochs)]
            print(f"\nrung {number} of {len(bracket.rungs)}: {format_count(len(alive), 'job')} to epoch {rung.epochs}"
                  + (f", {len(alive) - len(todo)} there before" if len(todo) < len(alive) else ""))
            if None in self.launch_some(todo, until_epoch=rung.epochs):
                return False
            before = rung.epochs
        return True

    def best(self, trained: Sequence[Job], epochs: int) -> list[Job]:
        """The jobs by the best of their headline up to that epoch, without those that have failed to get there."""
        curves = {job.id: [value for epoch, value in best_by_epoch(self.run_dir(job)).items() if epoch <= epochs]
                  for job in trained}
        kept = [job for job in trained if curves[job.id] and has_reached(self.run_dir(job), epochs)]
        if len(kept) < len(trained):
            print(f"\n{format_count(len(trained) - len(kept), 'job')} of {len(trained)} failed and cannot go on")
        falls = any(headline_of(self.run_dir(job))[1] == "max" for job in kept)
        return sorted(kept, key=lambda job: curves[job.id][-1], reverse=falls)
