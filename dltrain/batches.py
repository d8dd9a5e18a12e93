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


class TokenBatch(NamedTuple):
    """A window of B texts that run on side by side: tokens (B, T) int64 in [0, vocab_size), targets (B, T) the symbols
    that follow, or NOT_SCORED. The next batch of the epoch goes on where this one ends."""

    tokens: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        return len(self.tokens)

    def check(self, vocab_size: int) -> None:
        """As ClassificationBatch.check."""
        if self.tokens.dim() != 2 or self.tokens.dtype != torch.int64 or self.targets.shape != self.tokens.shape:
            raise DataError(f"tokens and targets must be (B, T) int64, but are {tuple(self.tokens.shape)} "
                            f"{self.tokens.dtype} and {tuple(self.targets.shape)}")
        check_symbols("tokens", self.tokens, vocab_size)
        check_symbols("targets", self.targets, vocab_size, NOT_SCORED)


class LabelledBatch(NamedTuple):
    """Many to one: tokens (B, T) int64 in [0, vocab_size), or vectors (B, T, F) float; lengths, B ints on the host,
    where packing needs them; labels (B,) int64 in [0, num_classes), or NOT_SCORED."""

    tokens: Tensor
    lengths: tuple[int, ...]
    labels: Tensor

    @property
    def size(self) -> int:
        return len(self.labels)

    def check(self, num_classes: int) -> None:
        """As ClassificationBatch.check."""
        check_lengths(self.tokens, self.lengths)
        check_symbols("labels", self.labels, num_classes, NOT_SCORED)


class TaggedBatch(NamedTuple):
    """Many to many: tokens (B, T) int64 in [0, vocab_size); lengths, B ints on the host; tags (B, T) int64 in
    [0, num_classes), or NOT_SCORED, as after each end."""

    tokens: Tensor
    lengths: tuple[int, ...]
    tags: Tensor

    @property
    def size(self) -> int:
        return len(self.tags)

    def check(self, num_classes: int) -> None:
        """As ClassificationBatch.check."""
        check_lengths(self.tokens, self.lengths)
        if self.tags.shape != self.tokens.shape:
            raise DataError(f"tags must be {tuple(self.tokens.shape)} as tokens, but are {tuple(self.tags.shape)}")
        check_symbols("tags", self.tags, num_classes, NOT_SCORED)


class PairBatch(NamedTuple):
    """Sequence to sequence: source (B, S) and target (B, T) int64, PAD after each end; lengths, B ints on the host. A
    target begins with START and ends with END, both counted in its length."""

    source: Tensor
    source_lengths: tuple[int, ...]
    target: Tensor
    target_lengths: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.source)

    def check(self, source_size: int, target_size: int) -> None:
        """As ClassificationBatch.check."""
        check_lengths(self.source, self.source_lengths)
        check_lengths(self.target, self.target_lengths)
        check_symbols("source", self.source, source_size)
        check_symbols("target", self.target, target_size)
        if (self.target[:, 0] != START).any():
            raise DataError("each target must begin with START")


class CaptionBatch(NamedTuple):
    """images (B, C, H, W) as in ClassificationBatch; captions (B, R, T) int64, up to R of each image, START ... END and
    PAD after it, all PAD where an image has fewer; numbers (B,): the images' own in their part, or -1 for one that only
    fills a batch."""

    images: Tensor
    captions: Tensor
    numbers: Tensor

    @property
    def size(self) -> int:
        return len(self.numbers)

    def check(self, vocab_size: int) -> None:
        """As ClassificationBatch.check."""
        images, captions = self.images, self.captions
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise DataError(f"images must be (B, C, H, W) uint8, but are {tuple(images.shape)} {images.dtype}")
        if captions.dim() != 3 or len(captions) != len(images) or self.numbers.shape != images.shape[:1]:
            raise DataError(f"captions must be ({len(images)}, R, T) and numbers ({len(images)},), but are "
                            f"{tuple(captions.shape)} and {tuple(self.numbers.shape)}")
        check_symbols("captions", captions, vocab_size)
        if ((captions[:, :, 0] != START) & (captions[:, :, 0] != PAD)).any():
            raise DataError("each caption must begin with START")


PAD, UNKNOWN, START, END = 0, 1, 2, 3  # the first symbols of a vocabulary that needs them


def check_lengths(tokens: Tensor, lengths: tuple[int, ...]) -> None:
    if len(tokens) != len(lengths) or not all(0 < length <= tokens.shape[1] for length in lengths):
        raise DataError(f"lengths must be {len(tokens)} ints in [1, {tokens.shape[1]}], but are {lengths}")


def check_symbols(name: str, found: Tensor, size: int, but: int | None = None) -> None:
    wrong = (found < 0) | (found >= size)
    if but is not None:
        wrong &= found != but
    if found.dtype != torch.int64 or wrong.any():
        shown = int(found[wrong][0]) if wrong.any() else found.dtype
        raise DataError(f"{name} must be int64 in [0, {size}), but the first batch has {shown}")
