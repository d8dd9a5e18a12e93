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


class DetectionBatch(NamedTuple):
    """images: B tensors (C, Hi, Wi), uint8 in [0, 255] before the augment stage and float after; targets: B dicts with
    boxes (Ni, 4) float, (x1, y1, x2, y2) in pixels from the image's upper left corner, and labels (Ni,) int64 in
    [0, num_classes); Ni may be 0. Further tensors of length Ni go along with the boxes."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]

    @property
    def size(self) -> int:
        return len(self.images)

    def check(self, num_classes: int) -> None:
        """As ClassificationBatch.check."""
        for place, (image, target) in enumerate(zip(self.images, self.targets, strict=True)):
            at = f"of image {place} of the first batch"
            if image.dim() != 3 or image.dtype != torch.uint8:
                raise DataError(f"images must be (C, H, W) uint8, but the shape {at} is {tuple(image.shape)} "
                                f"{image.dtype}")
            boxes, labels = target["boxes"], target["labels"]
            if boxes.shape != (len(labels), 4) or not boxes.is_floating_point() or labels.dtype != torch.int64:
                raise DataError(f"boxes must be (N, 4) float and labels (N,) int64, but {at} they are "
                                f"{tuple(boxes.shape)} {boxes.dtype} and {tuple(labels.shape)} {labels.dtype}")
            h, w = image.shape[1:]
            edges = boxes.new_tensor([w, h, w, h])
            if ((boxes < 0) | (boxes > edges)).any() or (boxes[:, :2] >= boxes[:, 2:]).any():
                raise DataError(f"boxes must be x1 < x2 <= {w}, y1 < y2 <= {h}, from 0 on, but {at} they are "
                                f"{boxes.tolist()}")
            if ((labels < 0) | (labels >= num_classes)).any():
                raise DataError(f"labels must be in [0, {num_classes}), but {at} they are {labels.tolist()}")


NO_CLASS = 255  # the mask value of a pixel that is not scored


class SegmentationBatch(NamedTuple):
    """images (B, C, H, W) as in ClassificationBatch; masks (B, H, W) int64 in [0, num_classes), or NO_CLASS."""

    images: Tensor
    masks: Tensor

    @property
    def size(self) -> int:
        return len(self.masks)

    def check(self, num_classes: int) -> None:
        """As ClassificationBatch.check."""
        images, masks = self.images, self.masks
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise DataError(f"images must be (B, C, H, W) uint8, but are {tuple(images.shape)} {images.dtype}")
        if masks.shape != (len(images), *images.shape[2:]) or masks.dtype != torch.int64:
            raise DataError(f"masks must be (B, H, W) int64 as the images, but are {tuple(masks.shape)} {masks.dtype}")
        wrong = ((masks < 0) | (masks >= num_classes)) & (masks != NO_CLASS)
        if wrong.any():
            raise DataError(f"masks must be in [0, {num_classes}) or {NO_CLASS}, but the first batch has "
                            f"{int(masks[wrong][0])}")
