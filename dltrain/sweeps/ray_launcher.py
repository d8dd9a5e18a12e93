"""hydra/launcher=ray: the jobs of a sweep on the nodes of a Ray cluster, which share a file system."""

from __future__ import annotations

import logging
import os
from typing import Any

from dltrain.sweeps.launchers import LOST, Call, RemoteLauncher
from dltrain.sweeps.remote_job import RemoteJob


class RayLauncher(RemoteLauncher):
    """`address`: of a cluster that runs; None: one is started on this machine for the time of the sweep."""

    def __init__(self, address: str | None = None, num_cpus: int = 1, num_gpus: float = 0):
        self.address, self.num_cpus, self.num_gpus = address, num_cpus, num_gpus

    def threads(self, num_jobs: int) -> int:
        return self.num_cpus

    def call(self, job: RemoteJob, calls: list[Call]) -> list[Any]:
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines that differ in their numbers are not one line
        import ray

        own = {} if self.address else {"include_dashboard": False}
        with ray.init(self.address, logging_level=logging.ERROR, **own):
            start = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=0)(call_job)
            shared = ray.put(job)
            values = []
            for answer in [start.remote(shared, *call) for call in calls]:
                try:
                    values.append(ray.get(answer))
                except ray.exceptions.RayError:
                    values.append(LOST)
        return values


def call_job(job: RemoteJob, words: list[str], name: str) -> Any:
    return job(words, name)
