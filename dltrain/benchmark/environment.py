"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time

import torch

from dltrain.machine import available_cores, memory_bytes, processor


def describe_environment() -> dict[str, object]:
    import pytorch_lightning
    import torchvision

    from dltrain import __version__

    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"), "command": shlex.join(sys.argv),
        "hardware": {"processor": processor(), "cores": available_cores(), "threads": torch.get_num_threads(),
                     "memory_gb": round(memory_bytes() / 1e9, 1),
                     "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                     "load": round(os.getloadavg()[0], 1)},  # of the last minute, in cores: other work beside it
        "versions": {"dltrain": __version__, "python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "pytorch_lightning": pytorch_lightning.__version__,
                     "system": platform.platform()}}
