"""The samples of the splits as digests, small grey copies of images, and labels, read for a limited time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.data.datamodule import SPLITS
from dltrain.preflight.features import shrink
from dltrain.preflight.kind import Kind
from dltrain.preflight.samples import Clock, Samples

AT_ONCE = 64
COPY_PX = 16
SECONDS = {"train": 3.0, "val": 1.5, "test": 1.5}  # of reading


@dataclass
class Contents:
    """Of a split, of its first `count` samples out of `total`. `copies` (count, P) float, for images: grey, of mean 0
    and length 1; zeros for an image that is nearly flat. `labels`: how often each class occurs, where a sample has one.
    """

    total: int
    digests: list[str] = field(default_factory=list)
    copies: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    labels: Counter[int] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        return len(self.digests)


def read_contents(source: Samples, kind: Kind) -> dict[str, Contents]:
    """Of all splits; those of running text, and of kinds that the checks do not know, are empty."""
    return {split: read_split(source, kind, split) for split in SPLITS}


def read_split(source: Samples, kind: Kind, split: str) -> Contents:
    if kind.is_stream or not kind.content:
        return Contents(0)
    contents = Contents(source.data.num_samples(split))
    copies: list[Tensor] = []
    clock = Clock()
    for indices in torch.arange(contents.total).split(AT_ONCE):
        batch = source.read(split, indices)
        contents.digests += [digest(row) for row in rows_of(batch, kind.content)]
        if "images" in kind.inputs:
            copies += [grey_copy(image) for image in batch.images]
        if kind.counts_samples:
            contents.labels.update(batch.labels.tolist())
        if clock.seconds > SECONDS[split]:
            break
    if copies:
        contents.copies = torch.stack(copies)
    return contents


def rows_of(batch: Any, names: tuple[str, ...]) -> Iterator[list[Tensor]]:
    """What decides whether two samples are the same one; a sequence without its padding."""
    for row in range(batch.size):
        values = []
        for name in names:
            value = getattr(batch, name)[row]
            lengths = getattr(batch, {"tokens": "lengths"}.get(name, f"{name}_lengths"), None)
            values.append(value if lengths is None else value[: lengths[row]])
        yield values


def digest(values: list[Tensor]) -> str:
    state = hashlib.blake2b(digest_size=12)
    for value in values:
        array = value.cpu().contiguous().numpy()
        state.update(repr((array.dtype, array.shape)).encode())
        state.update(array.data)
    return state.hexdigest()


def grey_copy(image: Tensor) -> Tensor:
    """(C, H, W) to COPY_PX ** 2 values: an image in another brightness or contrast has the same ones."""
    pixels = shrink(image[None].float().mean(1, keepdim=True), COPY_PX).flatten()
    if pixels.numel() < COPY_PX**2:
        pixels = F.pad(pixels, (0, COPY_PX**2 - pixels.numel()), value=float(pixels.mean()))
    centred = pixels - pixels.mean()
    length = centred.norm()
    return centred / length if float(length) > COPY_PX else torch.zeros_like(centred)
