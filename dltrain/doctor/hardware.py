"""Cores, memory, shared memory and the limits of the process."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path

from dltrain.doctor.report import Report, in_gb
from dltrain.machine import available_cores, free_memory, group_limits, memory_bytes, processor

SHARED = Path("/dev/shm")
LEAST_MEMORY = 1e9  # bytes; torch, Lightning and a small model take about half of it
LEAST_SHARED = 1e9  # bytes; a container has 64 MB if nothing is said
LEAST_FILE = 1e9  # bytes, of a checkpoint
LEAST_OPEN_FILES = 1024


def check_processor(report: Report) -> None:
    cores, quota = available_cores(), group_limits().cores
    threads = os.environ.get("OMP_NUM_THREADS")
    report.state("machine", {"processor": processor(), "cores": f"{cores} of {os.cpu_count()} may be used",
                             "limit of cores": "none" if quota is None else f"{quota:g}"})
    if quota is not None and quota < cores and (threads is None or not threads.isdigit() or int(threads) > quota):
        report.note(f"the container may use {quota:g} cores, but torch starts {threads or cores} threads, which wait "
                    "for one another", f"export OMP_NUM_THREADS={max(1, int(quota))}")


def check_memory(report: Report) -> None:
    free, limit = free_memory(), group_limits().memory
    report.state("machine", {"memory": in_gb(memory_bytes()),
                             "limit of memory": "none" if limit is None else in_gb(limit),
                             "free memory": "unknown" if free is None else in_gb(free)})
    if free is not None and free < LEAST_MEMORY:
        report.problem(f"{in_gb(free)} of memory are free, a run needs 1 GB and more",
                       "end other programs, or raise the limit of the container")


def check_shared_memory(report: Report) -> None:
    """A run of dltrain reads its data in threads and needs none of it; NCCL, which connects GPUs, and data of one's own
    that are read by worker processes do."""
    if not SHARED.is_dir():
        report.state("machine", {"shared memory": f"no {SHARED}"})
        return
    status = os.statvfs(SHARED)
    size, free = status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail
    report.state("machine", {"shared memory": f"{in_gb(size)} in {SHARED}, {in_gb(free)} free"})
    if free < LEAST_SHARED:
        report.note(f"{SHARED} has {in_gb(free)} free; several GPUs, and worker processes of data of your own, "
                    "exchange their data there", "start the container with --shm-size=8g or --ipc=host")


def check_limits(report: Report) -> None:
    methods = multiprocessing.get_all_start_methods()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    report.state("machine", {"start methods": f"{', '.join(methods)}; {methods[0]} by default", "open files": files,
                             "size of a file": "any" if size == resource.RLIM_INFINITY else in_gb(size)})
    if size != resource.RLIM_INFINITY and size < LEAST_FILE:
        report.problem(f"a file may have {in_gb(size)} at most (ulimit -f), which is little for a checkpoint",
                       "ulimit -f unlimited")
    if files != resource.RLIM_INFINITY and files < LEAST_OPEN_FILES:
        report.note(f"a process may open {files} files", f"ulimit -n {LEAST_OPEN_FILES}")
