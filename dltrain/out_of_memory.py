"""Errors of memory, whoever raises them: torch on a CPU or a GPU, numpy, Python, or a process that reads data.

What was being done, and with how many samples, is read from the frames of the traceback: no step of a run costs
anything for it."""

from __future__ import annotations

import errno
import re
import traceback
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from dltrain.machine import free_memory

DATA = Path(__file__).parent / "data"
# In the messages of errors whose type says nothing.
ON_DEVICE = re.compile(r"(CUDA|HIP|MPS|XPU)\b.*out of memory|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED")
ON_HOST = re.compile(r"DefaultCPUAllocator: |Cannot allocate memory|std::bad_alloc|unable to mmap \d+ bytes")
SHARED = re.compile(r"shared memory ?\(shm\)|shared memory limit|Bus error|/torch_\d+_\d+.*No space left")
THREADS = re.compile(r"can't start new thread|libgomp: Thread creation failed")
AMOUNT = re.compile(r"allocate (?:memory: you tried to allocate )?(\d[\d.]* ?(?:[KMGTP]i?B|bytes))")
# What is done in a function, by its file and name; what is further in counts.
ACTIVITIES = {
    "build.build_data": "while the data were loaded", "build.build_task": "while the model was built",
    "build.check_first_step": "in a trial of two samples", "images.fit_statistics": "in the statistics of the images",
    "step_loop.train_batch": "in a training step", "evaluation_loop._evaluation_step": "in evaluation",
    "predict.present": "in a prediction",
    "checkpointing.save_last": "while a checkpoint was saved"}
READING, READERS = "while a batch was read", {"read", "decode_batches", "read_ahead", "__iter__"}


class Shortage(NamedTuple):
    """`place`: where there was too little. `activity`: what was being done, "" if it is not known. `samples`: of the
    batch. `amount`: what was asked for, "" if the message does not tell."""

    place: str
    activity: str
    samples: int | None
    amount: str

    def message(self) -> str:
        facts = [f"{self.amount} requested"] if self.amount else []
        if self.place == "memory" and (free := free_memory()) is not None:
            facts.append(f"{free / 1e9:.1f} GB free")
        words = [f"out of {self.place}", f"at batch {self.samples}" if self.samples else "", self.activity,
                 f"({', '.join(facts)})" if facts else ""]
        return f"{' '.join(filter(None, words))}; {self.advice()}"

    def advice(self) -> str:
        half = (self.samples or 1) // 2
        if self.place == "threads":
            return "use a smaller data.num_workers, or raise the limit of processes (ulimit -u)"
        if self.place == "shared memory":
            return "start the container with --shm-size=8g, or use a smaller data.num_workers"
        if self.activity == "in a training step" and half:
            return (f"try data.batch_size={half}, with trainer.accumulate_batches=2 for as many samples per step, and "
                    "another name=")
        if self.activity == "in evaluation" and half:
            return f"try trainer.eval_batch_size={half}"
        if self.activity == READING:
            return f"try data.num_workers=0{f' or data.batch_size={half}' if half else ''}"
        if self.activity == "in a prediction":
            other = ", or trainer.accelerator=cpu" if self.place == "GPU memory" else ""
            return f"predict fewer or smaller inputs at a time{other}"
        return "use a smaller model or smaller samples, end other programs, or give the machine or its container more"


def shortage_of(error: BaseException | None) -> Shortage | None:
    """What ran out if the error, or what caused it, says that something did."""
    while error is not None:
        if place := place_of(error):
            amount = AMOUNT.search(str(error))
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            activity = next((name for frame in reversed(frames) if (name := activity_of(frame))), "")
            samples = next((size for frame in reversed(frames) if (size := samples_of(frame))), None)
            return Shortage(place, activity, samples, in_short(amount[1]) if amount else "")
        error = error.__cause__
    return None


def place_of(error: BaseException) -> str:
    """What there was too little of; "" for an error of another kind."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or ON_DEVICE.search(text):
        return "GPU memory"
    match error:
        case MemoryError() | OSError(errno=errno.ENOMEM):
            return "memory"
        case RuntimeError():
            patterns = {"shared memory": SHARED, "memory": ON_HOST, "threads": THREADS}
            return next((place for place, pattern in patterns.items() if pattern.search(text)), "")
    return ""


def activity_of(frame: FrameType) -> str:
    file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
    if name in READERS and file.parent == DATA:
        return READING
    return ACTIVITIES.get(f"{file.stem}.{name}", "")


def samples_of(frame: FrameType) -> int | None:
    """The number of samples of the batch, or of the indices of one, that a function has as `batch` or `indices`."""
    batch, indices = frame.f_locals.get("batch"), frame.f_locals.get("indices")
    try:
        return len(indices) if batch is None and indices is not None else int(batch.size)  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError):
        return None


def in_short(amount: str) -> str:
    """`4000000 bytes` as `0.0 GB`."""
    number, unit = amount.split(" ") if " " in amount else (amount, "")
    return f"{float(number) / 1e9:.1f} GB" if unit == "bytes" else amount
