"""hydra/launcher=submitit_slurm: the jobs of a sweep as jobs of Slurm.

Before its time is over, or it is preempted, a job gets SIGUSR1. It saves after its step, and submitit has Slurm start
it again: it continues in its folder.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from dltrain.drawing.tables import format_count
from dltrain.machine import usable_cores
from dltrain.sweeps.launchers import LOST, Call, RemoteLauncher
from dltrain.sweeps.remote_job import RemoteJob

POLL_SECONDS = 0.2
MOST_IN_ARRAY = 1000  # jobs; Slurm's MaxArraySize is 1001 unless its administrator has set another
FOR_ALL = {"timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", "nodes", "tasks_per_node", "name"}
TIMES_OUT_OF_TIME = 1000  # so often a job that runs out of its time is started again


class SubmititLauncher(RemoteLauncher):
    """`parameters`: those of submitit.AutoExecutor, those of Slurm without `slurm_`."""

    def __init__(self, cluster: str = "slurm", **parameters: Any):
        self.cluster = cluster
        self.parameters = {key if key in FOR_ALL else f"slurm_{key}": value for key, value in parameters.items()
                           if value not in (None, {})}

    def threads(self, num_jobs: int) -> int:
        return int(self.parameters["cpus_per_task"]) if self.cluster == "slurm" else max(1, usable_cores() // num_jobs)

    def call(self, job: RemoteJob, calls: list[Call]) -> list[Any]:
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported, here and in the jobs
        import submitit
        from submitit.core.utils import FailedJobError, UncompletedJobError

        executor = submitit.AutoExecutor(Path(job.folder) / ".submitit/%j", cluster=self.cluster,
                                         slurm_max_num_timeout=TIMES_OUT_OF_TIME)
        executor.update_parameters(**self.parameters)
        submitted: list[Any] = []
        for first in range(0, len(calls), MOST_IN_ARRAY):
            with executor.batch():
                submitted += [executor.submit(job, *call) for call in calls[first : first + MOST_IN_ARRAY]]
        if self.cluster != "debug":
            print(f"{format_count(len(calls), 'job')} submitted; what they print: {job.folder}/.submitit", flush=True)
            self.wait(submitted, job)
        values = []
        for each in submitted:
            try:
                values.append(each.result())
            except (FailedJobError, UncompletedJobError):
                values.append(LOST)
        return values

    def wait(self, submitted: list[Any], job: RemoteJob) -> None:
        """Until all have ended. After a signal, those that have not started are taken out of the queue."""
        while waiting := [each for each in submitted if not each.done()]:
            for each in waiting if job.stopped_by() is not None else ():
                if each.state == "PENDING":
                    each.cancel()
            time.sleep(POLL_SECONDS)
