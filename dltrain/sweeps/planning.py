"""From the words of a command to the jobs of its sweep, and which of them are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dltrain.drawing.tables import format_count, format_table
from dltrain.run_dir import RunDir
from dltrain.sweeps import jobs
from dltrain.sweeps.cost import Cost, describe_total, free_mb
from dltrain.sweeps.jobs import Job
from dltrain.sweeps.table import state_of, stored_jobs

Identify = Callable[[list[str]], tuple[str, str]]  # the id of the job that words compose, and its title


class Planner:
    """Names the jobs of a sweep over the keys `swept`. `folder`: that of the sweep, which may have some of them."""

    def __init__(self, folder: Path, swept: Sequence[str], identify: Identify):
        self.folder, self.swept, self.identify = folder, swept, identify
        self.known = {job.id: job.name for job in stored_jobs(folder)}

    def job(self, words: list[str]) -> Job:
        """Raises UserError for a config that cannot be composed."""
        id_, title = self.identify(words)
        return Job(id_, self.known.get(id_) or f"{jobs.label(jobs.assigned(words), self.swept) or title}-{id_}", words)

    def plan(self, combinations: Sequence[list[str]]) -> list[Job]:
        """A job for each config, in the order of the first combination that gives it."""
        return [*reversed({job.id: job for job in reversed([*map(self.job, combinations)])}.values())]


def describe(planned: Sequence[Job], folder: Path, costs: Sequence[Cost]) -> str:
    """A table of the jobs: the values that differ between them, what they take, and their states."""
    values = [jobs.assigned(job.words) for job in planned]
    varied = [key for key in dict.fromkeys(key for given in values for key in given)
              if len({given.get(key) for given in values}) > 1]
    rows = [[job.name, *(given.get(key, "") for key in varied), *cost.cells(), state_of(RunDir(folder / job.name))]
            for job, given, cost in zip(planned, values, costs, strict=True)]
    header = ["job", *varied, "time", "memory", "disk", "state"]
    return (f"{format_table(header, rows)}\n\n{format_count(len(planned), 'job')} in {folder}; nothing is started\n"
            + describe_total(costs, free_mb(folder)))
