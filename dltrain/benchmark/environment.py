"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from pathlib import Path

import torch


def describe_environment() -> dict[str, object]:
    import pytorch_lightning
    import torchvision

    from dltrain import __version__

    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"), "command": shlex.join(sys.argv),
        "hardware": {"processor": processor(), "cores": available_cores(), "threads": torch.get_num_threads(),
                     "memory_gb": memory_gb(),
                     "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                     "load": round(os.getloadavg()[0], 1)},  # of the last minute, in cores: other work beside it
        "versions": {"dltrain": __version__, "python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "pytorch_lightning": pytorch_lightning.__version__,
                     "system": platform.platform()}}


def processor() -> str:
    """Its name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def available_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in vars(os) else os.cpu_count() or 1


def memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
