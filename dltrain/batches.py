"""The typed batches that data modules yield and tasks take, and the one rule of randomness.

Data, augmentation and decoding take their random numbers from `generator(purpose, seed, epoch, step, ...)`, so they are
a function of its arguments alone; models take theirs from torch's global generators, which callbacks/step_seeds.py
seeds before each step in the same way.
Batches are NamedTuples because PyTorch's collate and pin_memory and Lightning's device transfer rebuild them as such.
Every other module may import this one; it imports nothing of dltrain.

Letters: B batch, C channels, H, W height and width in pixels, T time steps, S source symbols, R references of an image,
F features of a time step, N boxes of an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

IGNORED_LABEL = -100  # a label that is not scored: padding, or a sample that only fills up the last batch of a process
IGNORED_PIXEL = 255  # a mask value that is not scored
PAD, UNKNOWN, START, END = 0, 1, 2, 3  # the first symbols of every vocabulary of variable-length sequences


class BatchError(ValueError):
    """A batch that is not what its type promises."""


class Batch(Protocol):
    """What every batch type has."""

    @property
    def size(self) -> int:
        """Number of samples."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


def seed_of(*position: int | str) -> int:
    """A seed in [0, 2**63) that depends on the arguments alone, such as ("order", seed, epoch)."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*position: int | str) -> torch.Generator:
    """A new CPU generator seeded by `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*position))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` on the device. A copy from the host to a GPU starts from pinned memory and runs after the work that is
    queued there already, so the host does not wait."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Lengths:
    """Those of one process's rows, to be read like a tuple. `shortest`: of the batch of all processes, which decides
    how a recurrent net reads it. It is no tuple, since what converts batches builds tuples anew."""

    def __init__(self, own: tuple[int, ...], shortest: int):
        self.own, self.shortest = own, shortest

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, row: int) -> int:
        return self.own[row]

    def __iter__(self) -> Iterator[int]:
        return iter(self.own)


class ClassificationBatch(NamedTuple):
    """images (B, C, H, W): uint8 in [0, 255] before augmentation, float after it. labels (B,): int64 in
    [0, num_classes), or IGNORED_LABEL in evaluation; (B, num_classes) float after a transform that mixes samples."""

    images: Tensor
    labels: Tensor

    @property
    def size(self) -> int:
        return len(self.labels)

    def check(self, num_classes: int) -> None:
        """Raises BatchError if shapes, dtypes or values are wrong. Called before the first step only."""
        check_images(self.images)
        labels = self.labels
        if labels.shape != self.images.shape[:1] or labels.dtype != torch.int64:
            raise BatchError(f"labels must be ({len(self.images)},) int64, but are {tuple(labels.shape)} "
                             f"{labels.dtype}")
        wrong = ((labels < 0) & (labels != IGNORED_LABEL)) | (labels >= num_classes)
        if wrong.any():
            index = int(wrong.nonzero()[0])
            raise BatchError(f"labels must be in [0, {num_classes}), but label {index} of the first batch is "
                             f"{int(labels[index])}")


class DetectionBatch(NamedTuple):
    """images: B tensors (C, Hi, Wi), uint8 in [0, 255] before augmentation, float after it. targets: B dicts with boxes
    (N, 4) float, (x1, y1, x2, y2) in pixels from the upper left corner of the image, and labels (N,) int64 in
    [0, num_classes). N may be 0. Further tensors of length N are filtered together with the boxes."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]

    @property
    def size(self) -> int:
        return len(self.images)

    def check(self, num_classes: int) -> None:
        """As ClassificationBatch.check."""
        for index, (image, target) in enumerate(zip(self.images, self.targets, strict=True)):
            place = f"of image {index} of the first batch"
            if image.dim() != 3 or image.dtype != torch.uint8:
                raise BatchError(f"images must be (C, H, W) uint8, but the shape {place} is {tuple(image.shape)} "
                                 f"{image.dtype}")
            boxes, labels = target["boxes"], target["labels"]
            if boxes.shape != (len(labels), 4) or not boxes.is_floating_point() or labels.dtype != torch.int64:
                raise BatchError(f"boxes must be (N, 4) float and labels (N,) int64, but {place} they are "
                                 f"{tuple(boxes.shape)} {boxes.dtype} and {tuple(labels.shape)} {labels.dtype}")
            h, w = image.shape[1:]
            limits = boxes.new_tensor([w, h, w, h])
            if ((boxes < 0) | (boxes > limits)).any() or (boxes[:, :2] >= boxes[:, 2:]).any():
                raise BatchError(f"boxes must be 0 <= x1 < x2 <= {w}, 0 <= y1 < y2 <= {h}, but {place} they are "
                                 f"{boxes.tolist()}")
            if ((labels < 0) | (labels >= num_classes)).any():
                raise BatchError(f"labels must be in [0, {num_classes}), but {place} they are {labels.tolist()}")


class SegmentationBatch(NamedTuple):
    """images (B, C, H, W) as in ClassificationBatch; masks (B, H, W) int64 in [0, num_classes), or IGNORED_PIXEL."""

    images: Tensor
    masks: Tensor

    @property
    def size(self) -> int:
        return len(self.masks)

    def check(self, num_classes: int) -> None:
        """As ClassificationBatch.check."""
        check_images(self.images)
        masks = self.masks
        expected = (len(self.images), *self.images.shape[2:])
        if masks.shape != expected or masks.dtype != torch.int64:
            raise BatchError(f"masks must be {expected} int64 as the images, but are {tuple(masks.shape)} "
                             f"{masks.dtype}")
        wrong = ((masks < 0) | (masks >= num_classes)) & (masks != IGNORED_PIXEL)
        if wrong.any():
            raise BatchError(f"masks must be in [0, {num_classes}) or {IGNORED_PIXEL}, but the first batch has "
                             f"{int(masks[wrong][0])}")


class TokenBatch(NamedTuple):
    """Consecutive windows of B running texts: tokens (B, T) int64 in [0, vocab_size); targets (B, T), the symbol after
    each token, or IGNORED_LABEL. The next batch of the epoch continues each text where this one stops."""

    tokens: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        return len(self.tokens)

    def check(self, vocab_size: int) -> None:
        """As ClassificationBatch.check."""
        if self.tokens.dim() != 2 or self.tokens.dtype != torch.int64 or self.targets.shape != self.tokens.shape:
            raise BatchError(f"tokens and targets must be (B, T) int64, but are {tuple(self.tokens.shape)} "
                             f"{self.tokens.dtype} and {tuple(self.targets.shape)}")
        check_symbols("tokens", self.tokens, vocab_size)
        check_symbols("targets", self.targets, vocab_size, IGNORED_LABEL)


class LabelledBatch(NamedTuple):
    """Many to one: tokens (B, T) int64 in [0, vocab_size), or vectors (B, T, F) float; lengths: B ints on the host,
    where packing needs them; labels (B,) int64 in [0, num_classes), or IGNORED_LABEL."""

    tokens: Tensor
    lengths: tuple[int, ...]
    labels: Tensor

    @property
    def size(self) -> int:
        return len(self.labels)

    def check(self, num_classes: int) -> None:
        """As ClassificationBatch.check."""
        check_lengths(self.tokens, self.lengths)
        check_symbols("labels", self.labels, num_classes, IGNORED_LABEL)


class TaggedBatch(NamedTuple):
    """Many to many: tokens (B, T) int64 in [0, vocab_size); lengths: B ints on the host; tags (B, T) int64 in
    [0, num_classes), or IGNORED_LABEL, as in the padding after each sequence."""

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
            raise BatchError(f"tags must be {tuple(self.tokens.shape)} as tokens, but are {tuple(self.tags.shape)}")
        check_symbols("tags", self.tags, num_classes, IGNORED_LABEL)


class PairBatch(NamedTuple):
    """Sequence to sequence: source (B, S) and target (B, T) int64, PAD after each sequence; lengths: B ints on the
    host. A target begins with START and ends with END; both count in its length."""

    source: Tensor
    source_lengths: tuple[int, ...]
    target: Tensor
    target_lengths: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.source)

    def check(self, source_size: int, target_size: int) -> None:
        """As ClassificationBatch.check; the sizes are those of the two vocabularies."""
        check_lengths(self.source, self.source_lengths)
        check_lengths(self.target, self.target_lengths)
        check_symbols("source", self.source, source_size)
        check_symbols("target", self.target, target_size)
        if (self.target[:, 0] != START).any():
            raise BatchError("each target must begin with START")


class CaptionBatch(NamedTuple):
    """images (B, C, H, W) as in ClassificationBatch; captions (B, R, T) int64, up to R of each image: START ... END,
    then PAD, and PAD alone where an image has fewer; numbers (B,): index of each image in its split, or -1 for an image
    that only fills up a batch."""

    images: Tensor
    captions: Tensor
    numbers: Tensor

    @property
    def size(self) -> int:
        return len(self.numbers)

    def check(self, vocab_size: int) -> None:
        """As ClassificationBatch.check."""
        check_images(self.images)
        count, captions = len(self.images), self.captions
        if captions.dim() != 3 or len(captions) != count or self.numbers.shape != (count,):
            raise BatchError(f"captions must be ({count}, R, T) and numbers ({count},), but are "
                             f"{tuple(captions.shape)} and {tuple(self.numbers.shape)}")
        check_symbols("captions", captions, vocab_size)
        if ((captions[:, :, 0] != START) & (captions[:, :, 0] != PAD)).any():
            raise BatchError("each caption must begin with START")


def check_images(images: Tensor) -> None:
    if images.dim() != 4 or images.dtype != torch.uint8:
        raise BatchError(f"images must be (B, C, H, W) uint8, but are {tuple(images.shape)} {images.dtype}")


def check_lengths(tokens: Tensor, lengths: tuple[int, ...]) -> None:
    if len(tokens) != len(lengths) or not all(0 < length <= tokens.shape[1] for length in lengths):
        raise BatchError(f"lengths must be {len(tokens)} ints in [1, {tokens.shape[1]}], but are {lengths}")


def check_symbols(name: str, symbols: Tensor, size: int, ignored: int | None = None) -> None:
    """`name`: the field, for the message; `size`: valid symbols are in [0, size); `ignored`: allowed as well."""
    wrong = (symbols < 0) | (symbols >= size)
    if ignored is not None:
        wrong &= symbols != ignored
    if symbols.dtype != torch.int64 or wrong.any():
        value = int(symbols[wrong][0]) if wrong.any() else symbols.dtype
        raise BatchError(f"{name} must be int64 in [0, {size}), but the first batch has {value}")
