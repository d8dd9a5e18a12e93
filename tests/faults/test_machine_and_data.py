"""Faults of the machine and of the data: rows 18, 21, 24 and 30 to 36."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain import out_of_memory
from dltrain.tasks.classification import Classification
from tests.conftest import TINY

HUGE = 10**15  # bytes, more than any machine gives


def cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB")


# What raises an error of memory, and what the line must say of it.
SHORTAGES: dict[str, tuple[Callable[[], object], str]] = {
    "cpu": (lambda: torch.empty(HUGE, dtype=torch.uint8), "out of memory at batch 32 in a training step "
                                                          "(1000000.0 GB requested, "),
    "numpy": (lambda: np.empty(HUGE), "out of memory at batch 32 in a training step (7.11 PiB requested, "),
    "python": (lambda: bytearray(HUGE), "out of memory at batch 32 in a training step ("),
    "gpu": (cuda, "out of GPU memory at batch 32 in a training step (20.00 GiB requested); "),
}


def one_line(err: str) -> str:
    """The line of an error, without a traceback and without the advice to report a bug."""
    assert err.startswith("dltrain: error: "), err
    assert err.count("\n") == 1
    assert "traceback" not in err.lower()
    return err


def fail_at(step: int, fault: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step that runs out of memory."""
    original = Classification.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == step:
            fault()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", training_step)


def row_18(dltrain, monkeypatch, fault: str = "cpu") -> None:
    raises, message = SHORTAGES[fault]
    with monkeypatch.context() as patched:
        fail_at(4, raises, patched)  # of 9, after the first epoch
        code, _, err = dltrain("name=a", *TINY)
    assert code == 6, err
    assert message in one_line(err)
    assert "try data.batch_size=16, with trainer.accumulate_batches=2" in err
    assert "dltrain resume run=outputs/a continues from its checkpoint" in err
    assert Path("outputs/a/checkpoints/last.ckpt").is_file()
    code, out, err = dltrain("name=a", *TINY)
    assert (code, err) == (0, "")
    assert "resuming outputs/a from step 3 of 9" in out


@pytest.mark.parametrize("fault", SHORTAGES)
def test_row_18_out_of_memory_in_training(fault, dltrain, monkeypatch, without_figures):
    """Where memory runs out, on a GPU or not, one line names the batch size to try; the checkpoint is kept."""
    row_18(dltrain, monkeypatch, fault)


def test_row_18_control(dltrain, monkeypatch, without_figures):
    monkeypatch.setattr("dltrain.reporting.shortage_of", lambda error: None)
    with pytest.raises(AssertionError):
        row_18(dltrain, monkeypatch)


def photo_folder(root: Path, per_class: int = 5) -> Path:
    """Ten photos of two classes."""
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = np.random.default_rng(label * 100 + number).integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


FOLDER = ["model=resnet20", "model.depth=8", "data=image_folder", "data.root=photos", "data.image_px=8", "augment=none",
          "trainer=smoke", "data.batch_size=4", "name=a"]


def row_18_b(dltrain, monkeypatch, place: str) -> None:
    """`place`: where it runs out, in a run that reads photos in threads."""
    def fault(*_, **__):
        bytearray(HUGE)

    photo_folder(Path("photos"))
    target, message = {
        "scan": ("dltrain.data.decodable.has_damaged_exif", "out of memory while the data were loaded"),
        "statistics": ("dltrain.augment.pipeline.Augment.fit", "out of memory in the statistics of the images"),
        "thread": ("dltrain.data.images.to_pixels", "out of memory at batch 2 while a batch was read"),
        "evaluation": ("dltrain.tasks.classification.Classification.evaluation_step",
                       "out of memory at batch 2 in evaluation"),
        "save": ("dltrain.checkpoints.DurableIO.save_checkpoint", "out of memory"),
    }[place]
    monkeypatch.setattr(target, fault)
    code, _, err = dltrain(*FOLDER)
    assert code == 6, err
    assert message in one_line(err)
    if place == "evaluation":
        assert "trainer.eval_batch_size=1" in err


@pytest.mark.parametrize("place", ["scan", "statistics", "thread", "evaluation", "save"])
def test_row_18_b_out_of_memory_elsewhere(place, dltrain, monkeypatch, without_figures):
    """The line says what was being done: reading data, statistics, evaluation, saving."""
    row_18_b(dltrain, monkeypatch, place)


def test_row_18_b_control(dltrain, monkeypatch, without_figures):
    monkeypatch.setattr("dltrain.reporting.shortage_of", lambda error: None)
    with pytest.raises(AssertionError):
        row_18_b(dltrain, monkeypatch, "thread")


def raised(error: Exception) -> str:
    try:
        raise error
    except Exception as caught:
        shortage = out_of_memory.shortage_of(caught)
        return shortage.message() if shortage else ""


@pytest.mark.parametrize(("error", "message"), [
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                  "are out of shared memory. Please try to raise your shared memory limit."), "out of shared memory; "),
    (RuntimeError("unable to open shared memory object </torch_12_3> in read-write mode: No space left on device (28)"),
     "out of shared memory; start the container with --shm-size=8g"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 9 GB). Tried to allocate 2.00 GB on "
                  "private pool."), "out of GPU memory (2.00 GB requested); "),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of GPU memory; "),
    (MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback"), "out of memory ("),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory ("),
    (RuntimeError("can't start new thread"), "out of threads; use a smaller data.num_workers"),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ""),
    (OSError(errno.ENOSPC, "No space left on device"), ""),
    (ValueError("shared memory limit"), "")])
def test_row_18_c_errors_of_workers_and_devices(error, message):
    """Errors of memory of worker processes, of Apple's and NVIDIA's libraries and of threads are recognised."""
    assert raised(error).startswith(message) if message else not raised(error)


def row_21(dltrain, monkeypatch) -> None:
    """A digit takes 64 bytes and its label 8; two workers read two batches of 32 ahead each, a fifth is in use."""
    with monkeypatch.context() as patched:
        patched.setattr("os.statvfs", lambda path: os.statvfs_result((1024, 1024, 64, 9, 9, 9, 9, 9, 0, 255)))
        code, _, err = dltrain("name=a", *TINY, "data._target_=tests.tiny.SharedDigits")
    assert code == 6, err
    assert ("/dev/shm is too small: 5 batches of data.batch_size=32 samples wait there and need 0.0 MB, but 0.0 MB are "
            "free; start the container with --shm-size=1g, or use a smaller data.num_workers") in one_line(err)
    assert not Path("outputs/a").exists()


def test_row_21_shared_memory_is_too_small(dltrain, monkeypatch):
    """Where worker processes need more of /dev/shm than is free, a run ends before its first step with both numbers."""
    row_21(dltrain, monkeypatch)


def test_row_21_control(dltrain, monkeypatch, without_figures):
    monkeypatch.setattr("dltrain.build.check_shared_memory", lambda *_: None)
    with pytest.raises(AssertionError):
        row_21(dltrain, monkeypatch)


def row_24(dltrain) -> None:
    for words in (["trainer=gpu"], ["trainer=gpu", "trainer.devices=2"], ["bench", "trainer=gpu"]):
        code, _, err = dltrain(*words, "model.depth=8")
        assert (code, one_line(err).split(":")[2]) == (6, " trainer.accelerator=gpu"), err
        assert "use trainer.accelerator=cpu or auto" in err
    assert dltrain("trainer.precision=8")[0] == 2
    assert dltrain("trainer.devices=0")[0] == 2


def test_row_24_device_is_not_there(dltrain, monkeypatch):
    """A device, a precision or a number of devices that is not there is named with its key before the data are read."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("dltrain.run.build_data", None)
    row_24(dltrain)


def test_row_24_control(dltrain, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("dltrain.run.set_up_device", lambda keys: None)
    with pytest.raises(AssertionError):
        row_24(dltrain)
