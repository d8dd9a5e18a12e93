"""What a file of tensors is, by its bytes, and what is wrong with it or with the contents of a checkpoint."""

from __future__ import annotations

import math
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dltrain.dotted import select

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
MOST_STRETCHED_BYTES = 1_000_000_000  # of values that a file states and does not have
MOST_HEADER_BYTES = 100_000_000  # of a safetensors file, as in its library
NUMBER = (int, float)
# What a resumed run reads, by dotted key, and of which type it is.
TRAINING_STATE: dict[str, tuple[type, ...]] = {
    "loops.fit_loop": (dict,), "optimizer_states": (list,), "lr_schedulers": (list,), "dltrain.metrics_rows": (int,),
    "callbacks.Checkpointing.best": (*NUMBER, type(None)), "callbacks.Checkpointing.best_epoch": (int,),
    "callbacks.Checkpointing.validation_due": (bool,), "callbacks.Checkpointing.seconds": NUMBER}


def describe_kind(path: Path) -> str:
    """What a file is, by its first bytes: zip, safetensors, pickle, or a phrase for what holds no weights."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MOST_HEADER_BYTES:
        return "safetensors"
    if head.startswith(b"\x80") and 2 <= head[1] <= 5:
        return "pickle"
    if head.lstrip()[:1] == b"<":
        return "an HTML page"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; git lfs pull gets the file"
    return "only zeros" if not any(head) else "a file of another kind"


def kept_file(epoch: int) -> str:
    """The name of the checkpoint that a run keeps of an epoch, counted from 1."""
    return f"epoch-{epoch}.ckpt"


def find_fault(path: Path) -> str | None:
    """Describes what is wrong with a zip file of torch, or returns None."""
    if not path.is_file():
        return "a folder, not a file" if path.is_dir() else "no such file"
    try:
        if (kind := describe_kind(path)) != "zip":
            return f"damaged or not a checkpoint ({kind})"
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not any(entry.filename.endswith("data.pkl") for entry in entries):
                return "damaged or not a checkpoint (a zip file of something else)"
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return "damaged or not a checkpoint (torch does not compress its files)"
            damaged_entry = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        return f"damaged or not a checkpoint ({error})"
    return f"damaged (checksum of {damaged_entry})" if damaged_entry else None


def remedy(path: Path) -> str:
    """What to do about a checkpoint that cannot be used."""
    if path.name == LAST:
        return f"restore it from a copy; without it, dltrain resume continues from {PREVIOUS}"
    other = f", or use {LAST} with checkpoint=last" if path.name == BEST else ""
    return f"restore it from a copy{other}, or train again"


def fault_of_contents(checkpoint: dict[str, Any], for_training: bool) -> str | None:
    """What a checkpoint lacks, or has of another type; None if nothing."""
    expected = {"state_dict": (dict, OrderedDict), "global_step": (int,), **(TRAINING_STATE if for_training else {})}
    for key, types in expected.items():
        is_there, value = select(checkpoint, key)
        if not is_there or type(value) not in types:
            return f"{key} {f'is a {type(value).__name__}' if is_there else 'is missing'}"
        if type(value) in NUMBER and not (math.isfinite(value) and (value >= 0 or key.endswith(".best"))):
            return f"{key} is {value}"
    config = checkpoint["dltrain"].get("config", {})
    if type(config) is not dict:
        return "dltrain.config is no mapping"
    for name, value in checkpoint["state_dict"].items():
        if type(name) is not str or not torch.is_tensor(value):
            return f"state_dict has {str(name)[:60]}, which is no tensor with a name"
    if fault := stretched(tensor for _, tensor in tensors_in(checkpoint)):
        return fault
    return next((f"{name} has {fault}" for name, value in tensors_in(checkpoint)
                 if (fault := non_finite(value)) and "nan" in fault), None)  # a mask may be infinite


def tensors_in(node: Any, place: str = "") -> list[tuple[str, torch.Tensor]]:
    """Every tensor of nested containers with its dotted place."""
    if torch.is_tensor(node):
        return [(place, node)]
    is_list = type(node) in (list, tuple)
    items = node.items() if type(node) in (dict, OrderedDict) else enumerate(node) if is_list else ()
    prefix = f"{place}." if place else ""
    return [pair for key, value in items for pair in tensors_in(value, f"{prefix}{key}")]


def stretched(tensors: Iterable[torch.Tensor]) -> str | None:
    """A tensor may repeat values that the file has once. Describes tensors that do so beyond what memory may hold."""
    stated, stored = 0, 0
    for tensor in tensors:
        if tensor.layout == torch.strided and not tensor.is_meta:
            stated += tensor.nbytes
            stored += min(tensor.nbytes, tensor.untyped_storage().nbytes())
    if stated - stored <= MOST_STRETCHED_BYTES:
        return None
    return f"its tensors stand for {stated / 1e9:.1f} GB, of which the file has {stored / 1e9:.1f}"


def non_finite(tensor: torch.Tensor) -> str | None:
    """nan or infinite values, counted; None if all are finite, or whole numbers."""
    if not tensor.is_floating_point() or tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return None
    finite = tensor.isfinite()
    if bool(finite.all()):
        return None
    nans = int(tensor.isnan().sum())
    infinite = int(finite.numel() - finite.sum()) - nans
    return " and ".join([f"{nans} nan"] * bool(nans) + [f"{infinite} infinite"] * bool(infinite)) + " values"
