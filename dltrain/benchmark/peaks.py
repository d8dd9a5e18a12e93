"""The largest memory that a piece of work takes."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux; proc(5)
RESET_PEAK = "5"  # written to clear_refs: the high-water mark becomes what is in memory now
MB = 1e6


def peak_mb(device: torch.device, work: Callable[[], object]) -> float:
    """Calls `work`. On a GPU: the largest memory of its tensors. On a CPU: the largest memory of the whole process
    during the work, libraries and data included; where the system cannot say that (it is not Linux), that of the
    process since its start."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return float(torch.cuda.max_memory_allocated(device)) / MB
    return_freed_memory()
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        work()
        return process_peak_mb()
    work()
    return status_mb("VmHWM")


def status_mb(field: str) -> float:
    """`VmHWM`: the high-water mark of the process, `VmRSS`: its memory now."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / MB


def process_peak_mb() -> float:
    """The high-water mark of the process since its start. On Linux not that of getrusage, which a process takes over
    from the one that starts it."""
    if STATUS.exists():
        return status_mb("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if sys.platform == "darwin" else peak * 1024 / MB


def return_freed_memory() -> None:
    """Gives memory that was freed back to the system, where the C library is glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
