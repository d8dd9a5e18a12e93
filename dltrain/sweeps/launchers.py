"""Where the jobs of a sweep run, other than one after the other in the process of the command.

These are launchers of Hydra, over libraries that are extras of dltrain; configs/hydra/launcher/ has their settings.
"""

from __future__ import annotations

import pickle
import signal
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dltrain.errors import InterruptedRun, MachineError
from dltrain.machine import usable_cores
from dltrain.sweeps.remote_job import RemoteJob, relaying

Call = tuple[list[str], str]  # the words of a job, and the name of its folder
LOST = MachineError.exit_code  # of a job whose process has ended without an answer


class RemoteLauncher(Launcher):
    """Starts each job as a RemoteJob."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.job, self.config = hydra_context.config_loader, task_function, config

    @abstractmethod
    def threads(self, num_jobs: int) -> int:
        """The threads of each of so many jobs."""

    @abstractmethod
    def call(self, job: RemoteJob, calls: list[Call]) -> list[Any]:
        """What the job returns for each call, LOST if its process has ended. It returns when all have ended."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Raises InterruptedRun when all jobs have stopped after a signal."""
        loader: Any = self.loader
        job: Any = self.job
        folder = Path(self.config.hydra.sweep.dir)
        calls = [([*words], loader.folder_of([*words])) for words in job_overrides]
        with relaying(job.signals, folder):
            values = self.call(RemoteJob(folder, pickle.dumps((self.config, loader, job)), self.threads(len(calls))),
                               calls)
        signum = job.signals.received
        if signum is not None and 128 + signum in values:
            raise InterruptedRun(signum, f"{signal.Signals(signum).name}: stopped; the jobs that ran have saved")
        return [returned(words, value) for (words, _), value in zip(calls, values, strict=True)]


def returned(words: list[str], value: object) -> JobReturn:
    answer = JobReturn(overrides=words, status=JobStatus.COMPLETED)
    answer.return_value = value
    return answer


class JoblibLauncher(RemoteLauncher):
    """Several jobs at once on this machine."""

    def __init__(self, n_jobs: int | None = None):
        self.n_jobs = n_jobs

    def jobs_at_once(self, num_jobs: int) -> int:
        return min(self.n_jobs or usable_cores(), num_jobs)

    def threads(self, num_jobs: int) -> int:
        return max(1, usable_cores() // self.jobs_at_once(num_jobs))

    def call(self, job: Callable[[list[str], str], Any], calls: list[Call]) -> list[Any]:
        """A process that is killed ends the others of its pool: what is missing runs in a new one, as long as each
        finishes a job, and then each into a pool of its own."""
        values: dict[int, Any] = {}
        while missing := {number: call for number, call in enumerate(calls) if number not in values}:
            answers = self.answers(job, missing)
            values |= answers
            if not answers:
                for number, call in missing.items():
                    values |= self.answers(job, {number: call})
                break
        return [values.get(number, LOST) for number in range(len(calls))]

    def answers(self, job: Callable[[list[str], str], Any], calls: dict[int, Call]) -> dict[int, Any]:
        from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor

        values = {}
        variables = {"OMP_NUM_THREADS": str(self.threads(len(calls)))}
        with ProcessPoolExecutor(self.jobs_at_once(len(calls)), env=variables) as pool:
            for number, future in {number: pool.submit(job, *call) for number, call in calls.items()}.items():
                with suppress(BrokenProcessPool):
                    values[number] = future.result()
        return values
