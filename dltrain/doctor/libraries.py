"""Whether torch and torchvision work here, and on which devices.

`python -m dltrain.doctor.libraries` prints the answers as json lines, each as soon as it is known: a process of its
own, since a library that does not fit may end the process or never return."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

BOXES = [[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]  # IoU of the first two: 0.81
KEPT = [0, 2]  # of them, if the scores fall in this order


def answers() -> Iterator[dict[str, object]]:
    """Facts by name; `failed` says which step raised, and what."""
    try:
        import torch
    except Exception as error:
        yield {"failed": "torch", "message": message_of(error)}
        return
    yield {"torch": torch.__version__, "built for": built_for(), "threads": torch.get_num_threads()}
    yield {"from here": modules_below(Path.cwd())}
    try:
        from torchvision.ops import nms

        kept = nms(torch.tensor(BOXES), torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
        if kept != KEPT:
            raise RuntimeError(f"torchvision.ops.nms keeps the boxes {kept}, but must keep {KEPT}")
    except Exception as error:
        yield {"failed": "torchvision", "message": message_of(error)}
    else:
        yield {"torchvision.ops.nms": "works"}
    yield {"from here": modules_below(Path.cwd())}
    try:
        yield from gpus()
    except Exception as error:
        yield {"failed": "the GPU", "message": message_of(error)}
    if torch.backends.mps.is_available():
        yield {"mps": "available"}


def built_for() -> str:
    import torch

    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    return next((f"{name} {version}" for name, version in kinds.items() if version), "the CPU")


def gpus() -> Iterator[dict[str, object]]:
    """The name and memory of each GPU, after a product of two matrices there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield {"gpus": count}
    for index in range(count):
        ones = torch.ones(8, 8, device=f"cuda:{index}")
        if (ones @ ones).sum().item() != 512:
            raise RuntimeError(f"cuda:{index} multiplies wrongly")
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        yield {f"cuda:{index}": f"{torch.cuda.get_device_name(index)}, {total / 1e9:.1f} GB, {free / 1e9:.1f} GB free, "
                                f"compute capability {major}.{minor}"}


def modules_below(folder: Path) -> list[str]:
    """The files in the folder that Python has loaded as modules, other than those of dltrain."""
    own = Path(__file__).parents[2]
    files = {Path(os.path.realpath(file)) for module in list(sys.modules.values())
             if (file := vars(module).get("__file__"))}
    here = Path(os.path.realpath(folder))
    return sorted(str(file.relative_to(here)) for file in files if file.parent in (here, *(
        path for path in here.iterdir() if path.is_dir())) and not file.is_relative_to(own / "dltrain"))


def message_of(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    gc.disable()  # as in a run, while libraries are imported
    for answer in answers():
        print(json.dumps(answer), flush=True)
