"""The device of a run: whether it is there, how it computes, and which data wait on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from omegaconf import DictConfig

from dltrain.data.ahead import SendAhead
from dltrain.data.datamodule import DataModule
from dltrain.drawing.tables import format_count
from dltrain.errors import MachineError
from dltrain.tasks.task import Task

RESIDENT_SHARE = 4  # data stay on a GPU if they take at most the fourth part of its free memory


def set_up_device(keys: DictConfig) -> None:
    """`keys`: the trainer's. Raises MachineError if its device is not there."""
    check_device(keys)
    set_matmul_precision(keys)


def check_device(keys: DictConfig) -> None:
    """Raises MachineError if the trainer's device, or so many of it, is not there."""
    if keys.accelerator == "gpu" and not torch.cuda.is_available():
        raise MachineError("trainer.accelerator=gpu: torch sees no GPU; use trainer.accelerator=cpu or auto; "
                           "dltrain doctor says what it sees")
    if keys.accelerator == "mps" and not torch.backends.mps.is_available():
        raise MachineError("trainer.accelerator=mps: not available here; use trainer.accelerator=cpu or auto")
    if keys.accelerator != "cpu" and torch.cuda.is_available() and keys.devices > torch.cuda.device_count():
        raise MachineError(f"trainer.devices={keys.devices}: torch sees only {torch.cuda.device_count()} GPUs")
    on_mps = keys.accelerator != "cpu" and torch.backends.mps.is_available() and not torch.cuda.is_available()
    if on_mps and keys.precision == "64-true":
        raise MachineError("trainer.precision=64-true: Apple's GPUs have no such numbers; use trainer.accelerator=cpu")


def on_gpu(keys: DictConfig) -> bool:
    """Whether the trainer's device is a CUDA GPU."""
    return keys.accelerator in ("auto", "gpu") and torch.cuda.is_available()


@contextmanager
def threads_of(keys: DictConfig) -> Iterator[None]:
    """Inside it torch computes with as many threads as the trainer's `keys` say; older runs do not have the key."""
    before = torch.get_num_threads()
    torch.set_num_threads(keys.get("threads") or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_matmul_precision(keys: DictConfig) -> None:
    """How a GPU multiplies float32 numbers in products and in convolutions; torch's default rounds those of the latter
    to TF32. Older runs do not have the key."""
    precision = keys.get("matmul_precision", "highest")
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"


def place_on_gpu(keys: DictConfig, data: DataModule, task: Task, device: torch.device) -> None:
    """On a GPU: data of whole tensors stay there if they fit, and each batch of the others is copied while the step
    before it is computed."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if keys.get("resident_data", True):
        data.keep_on(device, free // RESIDENT_SHARE)
    data.send_ahead = SendAhead(partial(task.copy_to, device), device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {format_count(torch.get_num_threads(), 'thread')}"
