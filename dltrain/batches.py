"""The typed batches, and the one law of chance: everything random is a function of (seed, epoch, step).

The one module that every other may import. Batches are NamedTuples because PyTorch's collate and pin_memory and
Lightning's transfer to a device rebuild them as themselves.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from dltrain.errors import DataError

NOT_SCORED = -100  # the label of a sample that only fills the last batch among several processes


def seed_of(*position: int | str) -> int:
    """A seed in [0, 2**63) that is a function of its arguments alone, such as ("order", seed, epoch)."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*position: int | str) -> torch.Generator:
    """A fresh generator on the CPU, seeded by `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*position))


class ClassificationBatch(NamedTuple):
    """images (B, C, H, W), uint8 in [0, 255] before the augment stage and float after; labels (B,) int64 in
    [0, num_classes), or NOT_SCORED in evaluation; mixtures (B, num_classes) float after transforms that mix samples."""

    images: Tensor
    labels: Tensor

    @property
    def size(self) -> int:
        return len(self.labels)

    def check(self, num_classes: int) -> None:
        """Raises DataError where the batch is not what its type promises. Called on a stage's first batch only."""
        images, labels = self.images, self.labels
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise DataError(f"images must be (B, C, H, W) uint8, but are {tuple(images.shape)} {images.dtype}")
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise DataError(f"labels must be ({len(images)},) int64, but are {tuple(labels.shape)} {labels.dtype}")
        wrong = ((labels < 0) & (labels != NOT_SCORED)) | (labels >= num_classes)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            raise DataError(f"labels must be in [0, {num_classes}), but label {at} of the first batch is "
                            f"{int(labels[at])}")
