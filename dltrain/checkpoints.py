"""Durable save, verified load, fallback.

A save writes a temporary file in the same folder, flushes it to the disk, moves it over the old one and flushes the
folder: after a kill at any moment there is a whole file, the old or the new. A load checks the CRC-32 that the zip
format keeps for every tensor before anything is read, and reads tensors and plain values only, never code.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from dltrain.errors import CheckpointError, MachineError

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class DurableIO(CheckpointIO):
    """Lightning's door to the disk, by the rules above. `last.ckpt` leaves its predecessor as `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load(Path(path), map_location or (lambda storage, _: storage))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Raises MachineError where the disk is full or cannot be written; the old file is then still whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
        size = temporary.stat().st_size if temporary.exists() else 0
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise MachineError(f"cannot save {path}: {reason} ({size / 1e6:.1f} MB written, {free / 1e6:.0f} MB free); "
                           "the previous checkpoint is kept; make room and run the same command again") from error


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Raises CheckpointError where the file is missing, damaged, or holds more than tensors and plain values."""
    if fault := damage(path):
        raise CheckpointError(f"{path}: {fault}")
    try:
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values "
                              f"({str(error).splitlines()[0][:120]})") from None
    return loaded


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in words, or None."""
    if not path.is_file():
        return "no such file"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        return f"damaged or not a checkpoint ({error})"
    return f"damaged (checksum of {broken})" if broken else None


def newest(folder: Path) -> tuple[Path | None, str]:
    """The checkpoint to go on from, and a line to print where it is not the newest. Raises CheckpointError where there
    are checkpoints but none is whole. Stray temporary files of a killed save are removed."""
    for stray in folder.glob(".*.ckpt.*.tmp"):
        stray.unlink(missing_ok=True)
    faults: dict[str, str] = {}
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        if (fault := damage(path)) is None:
            said = "; ".join(f"{bad} is {why}" for bad, why in faults.items())
            return path, f"{said}; continuing from {name}" if said else ""
        faults[name] = fault
    if faults:
        raise CheckpointError(f"{folder}: no whole checkpoint: " + "; ".join(f"{n} is {f}" for n, f in faults.items()))
    return None, ""
