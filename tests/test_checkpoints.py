"""A saved file is complete or absent; a load is verified and never runs code."""

import os
import pickle
import re
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dltrain import checkpoints
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.callbacks.metrics import MetricsFile
from dltrain.errors import CheckpointError, MachineError
from dltrain.signals import Signals


def test_save_and_load_keep_the_previous_checkpoint(tmp_path):
    for value in (1.0, 2.0):
        checkpoints.save({"x": torch.full((3,), value)}, tmp_path / checkpoints.LAST)
    assert torch.equal(checkpoints.load(tmp_path / checkpoints.LAST)["x"], torch.full((3,), 2.0))
    assert torch.equal(checkpoints.load(tmp_path / checkpoints.PREVIOUS)["x"], torch.full((3,), 1.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoints.LAST, checkpoints.PREVIOUS]


def test_a_save_reaches_the_disk_before_it_replaces_the_old_file(tmp_path, monkeypatch):
    calls: list[str] = []

    def note(name: str) -> None:
        original = getattr(os, name)

        def call(*args):
            calls.append(name)
            original(*args)

        monkeypatch.setattr(os, name, call)

    note("fsync")
    note("replace")
    for _ in range(2):
        calls.clear()
        checkpoints.save({"x": torch.zeros(3)}, tmp_path / checkpoints.LAST)
    assert calls == ["fsync", "replace", "replace", "fsync"]  # the file; last to previous, new to last; the folder


def test_a_save_into_what_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(MachineError, match=r"^cannot save \S+last\.ckpt: (Not a directory|File exists); no checkpoint "
                                          r"of that name is there yet; make it writable"):
        checkpoints.save({"x": torch.zeros(3)}, tmp_path / "checkpoints" / checkpoints.LAST)


class Loader:
    """One batch per epoch."""

    def __init__(self, batches_done: int):
        self.batches_done = batches_done

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(("mode", "values", "best", "saved_epochs"), [
    ("max", [0.1, 0.5, 0.5, 0.4], 0.5, [1, 2, 3]), ("min", [2.0, 1.0, 3.0, 1.0, 1.5], 1.0, [1, 2, 4])])
def test_best_is_the_last_of_the_best_values(mode, values, best, saved_epochs, tmp_path):
    rows = MetricsFile(tmp_path / "metrics.csv")
    checkpointing = Checkpointing(tmp_path, "val/x", mode, {}, rows, Signals(), 15, None)
    saved: list[tuple[str, bool, int]] = []
    for epoch, value in enumerate(values, start=1):
        trainer: Any = SimpleNamespace(
            state=SimpleNamespace(fn="fit"), callback_metrics={"val/x": torch.tensor(value)}, global_step=epoch,
            lightning_module=torch.nn.Linear(1, 1), train_dataloader=Loader(epoch),
            save_checkpoint=lambda path, weights_only, epoch=epoch: saved.append((path.name, weights_only, epoch)))
        checkpointing.on_validation_end(trainer, trainer.lightning_module)
    assert checkpointing.best == pytest.approx(best)
    assert checkpointing.best_epoch == saved_epochs[-1]
    assert saved == [(checkpoints.BEST, True, epoch) for epoch in saved_epochs]


def test_lightning_loads_a_checkpoint_onto_the_device_it_names(tmp_path):
    checkpoints.save({"x": torch.zeros(3)}, tmp_path / "a.ckpt")
    assert checkpoints.DurableIO().load_checkpoint(tmp_path / "a.ckpt", "meta")["x"].device.type == "meta"
    assert checkpoints.DurableIO().load_checkpoint(tmp_path / "a.ckpt")["x"].device.type == "cpu"


def test_every_flipped_byte_of_a_tensor_is_caught(tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoints.save({"x": torch.randn(500)}, path)
    intact = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
    start = intact.index(torch.load(path)["x"].numpy().tobytes())
    assert entry.file_size == 500 * 4
    for offset in range(start, start + entry.file_size, 97):
        damaged = bytearray(intact)
        damaged[offset] ^= 4
        path.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match=r"a.ckpt: damaged \(checksum"):
            checkpoints.load(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04" + b"\0" * 50])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        checkpoints.load(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoints.load(tmp_path / "b.ckpt")


class Payload:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"x": Payload(canary)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="more than tensors and plain values"):
        checkpoints.load(tmp_path / "a.ckpt")
    assert not canary.exists()
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.exists(), "the payload must be able to run, else this test proves nothing"


def test_find_newest_falls_back_and_removes_temporary_files(tmp_path):
    for value in (1.0, 2.0):
        checkpoints.save({"x": torch.full((3,), value)}, tmp_path / checkpoints.LAST)
    (tmp_path / f".{checkpoints.LAST}.123.tmp").write_bytes(b"incomplete")
    assert checkpoints.find_newest(tmp_path) == (tmp_path / checkpoints.LAST, "")
    assert not list(tmp_path.glob("*.tmp"))
    os.truncate(tmp_path / checkpoints.LAST, 100)
    path, message = checkpoints.find_newest(tmp_path)
    assert path == tmp_path / checkpoints.PREVIOUS
    assert re.fullmatch(r"last\.ckpt is damaged or not a checkpoint \(.+\); using previous\.ckpt instead", message)
    os.truncate(tmp_path / checkpoints.PREVIOUS, 0)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        checkpoints.find_newest(tmp_path)
    assert checkpoints.find_newest(tmp_path / "empty") == (None, "")


def test_a_run_writes_the_checkpoint_of_the_moment_while_it_trains_on(tmp_path, monkeypatch):
    io, may_write, weight, save = checkpoints.DurableIO(), threading.Event(), torch.zeros(3), checkpoints.save

    def slow(*arguments):
        assert may_write.wait(10)
        save(*arguments)

    monkeypatch.setattr(checkpoints, "save", slow)
    state = {"step": 1, "tensors": [weight]}
    io.save_checkpoint({"state": state, "dltrain": {"config": {}}}, tmp_path / checkpoints.LAST)
    weight += 1
    state["step"] = 2
    assert not (tmp_path / checkpoints.LAST).exists()
    may_write.set()
    io.wait()
    saved = checkpoints.load(tmp_path / checkpoints.LAST)["state"]
    assert saved["step"] == 1
    assert torch.equal(saved["tensors"][0], torch.zeros(3))


def test_a_run_keeps_at_most_two_copies_and_writes_them_in_turn(tmp_path, monkeypatch):
    io, written, copies = checkpoints.DurableIO(), list[int](), list[int]()

    def slow(checkpoint, path):
        time.sleep(0.02)
        written.append(checkpoint["step"])

    monkeypatch.setattr(checkpoints, "save", slow)
    for step in range(6):
        io.save_checkpoint({"step": step}, tmp_path / checkpoints.LAST)
        copies.append(step + 1 - len(written))
    io.wait()
    assert written == [0, 1, 2, 3, 4, 5]
    assert max(copies) <= checkpoints.MOST_COPIES


@pytest.mark.parametrize("then", ["wait", "save", "teardown"])
def test_a_write_that_failed_ends_the_run(then, tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    io = checkpoints.DurableIO()
    io.save_checkpoint({"x": torch.zeros(3)}, tmp_path / "checkpoints" / checkpoints.LAST)
    while not io.saves[0].done():
        time.sleep(0.01)
    calls = {"wait": io.wait, "teardown": io.teardown,
             "save": lambda: io.save_checkpoint({"x": torch.zeros(3)}, tmp_path / checkpoints.LAST)}
    with pytest.raises(MachineError, match="cannot save"):
        calls[then]()


def test_processes_go_on_after_training_when_the_best_weights_are_on_the_disk(tmp_path):
    """Each reads them then, and only the first one has written them."""
    io = checkpoints.DurableIO()
    io.save_checkpoint({"x": torch.arange(4_000_000, dtype=torch.float32)}, tmp_path / checkpoints.BEST)
    is_there: list[bool] = []
    best = tmp_path / checkpoints.BEST
    strategy = SimpleNamespace(checkpoint_io=io, barrier=lambda name: is_there.append(best.is_file()))
    trainer: Any = SimpleNamespace(strategy=strategy)
    rows = MetricsFile(tmp_path / "metrics.csv")
    checkpointing = Checkpointing(tmp_path, "val/x", "max", {}, rows, Signals(), 15, None)
    checkpointing.on_train_end(trainer, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert is_there == [True]
