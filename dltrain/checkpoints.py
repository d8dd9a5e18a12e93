"""Saves checkpoints durably, verifies them when they are loaded, and falls back to the previous one.

A save writes a temporary file in the same folder and flushes it to the disk; an old last.ckpt becomes previous.ckpt;
then the temporary file takes its name, and the folder is flushed. Whenever the process is killed, there is a complete
file, the old or the new. In a run a thread does this, while the training continues. A load first checks the CRC-32 that
the zip format keeps of every tensor, and accepts tensors and plain values only, never code.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch.serialization import MAP_LOCATION
from torch.utils._pytree import tree_leaves

from dltrain import __version__
from dltrain.disk import flush_folder, writing
from dltrain.errors import CheckpointError, refuse_other_version
from dltrain.out_of_memory import shortage_of
from dltrain.tensor_files import BEST as BEST
from dltrain.tensor_files import LAST, PREVIOUS, fault_of_contents, find_fault, remedy

MOST_COPIES = 2  # in memory: those of best.ckpt and of last.ckpt
# Lightning's, with "dltrain": {version, config, vocabularies}, in last.ckpt also metrics_rows
Checkpoint = dict[str, Any]


class DurableIO(CheckpointIO):
    """Makes Lightning save and load checkpoints with the functions of this module. A thread writes a copy of the
    checkpoint while the training continues; an error of it is raised by the next save, or by `wait`. `own`: what
    dltrain keeps in each checkpoint, beside its version."""

    def __init__(self, own: Mapping[str, Any] | None = None) -> None:
        self.own = own or {}
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.saves: deque[Future[None]] = deque()  # that are not known to be on the disk, the oldest first

    def save_checkpoint(self, checkpoint: Checkpoint, path: str | Path, storage_options: object = None) -> None:
        while self.saves and (len(self.saves) >= MOST_COPIES or self.saves[0].done()):
            self.saves.popleft().result()
        own = {"dltrain": {**self.own, **checkpoint.get("dltrain", {})}}
        self.saves.append(self.writer.submit(save, copy_to_host({**checkpoint, **own}), Path(path)))

    def wait(self) -> None:
        """Returns when all checkpoints are on the disk. Raises MachineError for one that could not be written."""
        while self.saves:
            self.saves.popleft().result()

    def teardown(self) -> None:
        """Called at the end of a training, whatever ended it."""
        self.wait()

    def load_checkpoint(self, path: str | Path, map_location: MAP_LOCATION = None, weights_only: bool | None = None
                        ) -> Checkpoint:
        return load(Path(path), map_location or (lambda storage, _: storage))

    def remove_checkpoint(self, path: str | Path) -> None:
        self.saves.append(self.writer.submit(Path(path).unlink, missing_ok=True))  # which may not be written yet


def copy_to_host(checkpoint: Checkpoint) -> Checkpoint:
    """Shares no memory with the training, but for what dltrain adds, which does not change."""
    changing = {key: value for key, value in checkpoint.items() if key != "dltrain"}
    copies: dict[int, Any] = {id(tensor): tensor.detach().to("cpu", copy=True) for tensor in tree_leaves(changing)
                              if torch.is_tensor(tensor)}
    return {**checkpoint, **copy.deepcopy(changing, copies)}


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Replaces the file at `path`, and adds dltrain's version; a replaced `last.ckpt` is kept as `previous.ckpt`.
    Raises MachineError if the disk is full or cannot be written; the old file is then still complete."""
    own = {**checkpoint.get("dltrain", {}), "version": __version__}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    num_bytes = sum(tensor.nbytes for tensor in tree_leaves(checkpoint) if torch.is_tensor(tensor))
    kept = "the previous checkpoint is kept" if path.exists() else "no checkpoint of that name is there yet"
    with writing(path, num_bytes, kept):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                torch.save({**checkpoint, "dltrain": own}, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(temporary, path)
            flush_folder(path.parent)
        except RuntimeError as error:  # torch's zip writer puts one of its own before that of the file
            cause = error.__context__
            raise (cause if type(cause) is OSError else error) from None
        finally:
            with suppress(OSError):  # it is still there after a failure only
                temporary.unlink(missing_ok=True)


def load(path: Path, map_location: MAP_LOCATION = "cpu") -> Checkpoint:
    """Checks and reads a checkpoint. Raises CheckpointError if the file is missing, damaged, of a version that cannot
    be read, or has more than tensors and plain values."""
    if fault := find_fault(path):
        raise CheckpointError(f"{path}: {fault}; {remedy(path)}")
    try:
        checkpoint: Checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        if shortage_of(error):
            raise
        raise CheckpointError(f"{path}: refused, because it has more than tensors and plain values "
                              f"({str(error).splitlines()[0][:120]})") from None
    own = checkpoint.setdefault("dltrain", {}) if type(checkpoint) is dict else None
    if type(own) is not dict:
        raise CheckpointError(f"{path}: not a checkpoint of dltrain; as weights of a model it is "
                              f"model.pretrained.weights={path}")
    if "version" in own:  # config.yaml of the run has it too; the first checkpoints of 0.2 do not all
        refuse_other_version(str(own["version"]), str(path))
    return checkpoint


def read(path: Path, for_training: bool = False) -> Checkpoint:
    """A checkpoint of a run, with what evaluation reads and, `for_training`, what a resumed run reads. Raises
    CheckpointError."""
    checkpoint = load(path)
    if fault := fault_of_contents(checkpoint, for_training):
        raise CheckpointError(f"{path}: damaged ({fault}); {remedy(path)}")
    return checkpoint


def find_newest(folder: Path) -> tuple[Path | None, str]:
    """Returns the checkpoint to resume from, None if there is none, and a message if it is not the newest one. Raises
    CheckpointError if there are checkpoints but none is intact. Removes the temporary files of killed saves."""
    for temporary in folder.glob(".*.ckpt.*.tmp"):
        temporary.unlink(missing_ok=True)
    faults: list[str] = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        if (fault := find_fault(path)) is None:
            return path, f"{'; '.join(faults)}; using {name} instead" if faults else ""
        faults.append(f"{name} is {fault}")
    if faults:
        raise CheckpointError(f"{folder}: no intact checkpoint: {'; '.join(faults)}")
    return None, ""
