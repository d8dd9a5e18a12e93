"""Images with one label each: the base classes of their data sets.

A source subclasses InMemoryImages and gives its splits as whole uint8 tensors (digits.py), or LabelledImages and reads
from disk (image_folder.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Unpack

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.batches import IGNORED_LABEL, ClassificationBatch, generator, to_device
from dltrain.data.datamodule import DataKeys, DataModule
from dltrain.data.images import read_image
from dltrain.data.listing import digest_of_tensors
from dltrain.image_files import ImageSource

STATISTICS_BYTES = 1 << 22  # of the images that are read at once for the statistics


class Split(NamedTuple):
    """images (N, C, H, W) uint8, labels (N,) int64."""

    images: Tensor
    labels: Tensor


class ImageKeys(DataKeys):
    channels: int
    num_classes: int | None
    image_px: int


class LabelledImages(DataModule[ClassificationBatch, Tensor]):
    """Square images of side `image_px` with one label each."""

    batch_type = ClassificationBatch
    input_kind = "image"
    decoding = "pillow"  # of photos, see images.py

    def __init__(self, *, channels: int, num_classes: int | None, image_px: int, **keys: Unpack[DataKeys]):
        super().__init__(**keys)
        self.channels, self.num_classes, self.image_px = channels, num_classes, image_px
        self.eval_batch_size = max(self.batch_size, 256 if image_px <= 64 else 1)

    def sizes(self) -> dict[str, int]:
        return {"num_classes": self.num_classes} if self.num_classes else {}

    def training_pixels(self, at_most: int) -> Tensor:
        """All images of the training split, or `at_most` of them, chosen at random."""
        return torch.cat(list(self.pixel_batches(at_most)))

    def pixel_batches(self, at_most: int) -> Iterator[Tensor]:
        count = self.num_samples("train")
        indices = torch.randperm(count, generator=generator("statistics", 0))[:at_most].sort().values
        batches = indices.split(max(1, STATISTICS_BYTES // (self.channels * self.image_px**2)))
        return (batch.images for batch in self.read("train", list(batches)))

    def read_input(self, source: ImageSource) -> Tensor:
        return read_image(source, self.channels, self.image_px, self.decoding)

    def encode_inputs(self, inputs: list[Tensor]) -> ClassificationBatch:
        return ClassificationBatch(torch.stack(inputs), torch.full((len(inputs),), IGNORED_LABEL))

    def write_samples(self, folder: Path, at_most: int = 10) -> str:
        indices = torch.arange(min(at_most, self.num_samples("test")))
        batch = next(iter(self.read("test", [indices])))
        for index, (image, label) in enumerate(zip(batch.images.cpu(), batch.labels, strict=True)):
            name = "".join(c if c.isalnum() else "_" for c in self.class_names[int(label)])
            to_pil_image(image).save(folder / f"{index:02d}_{name}.png")
        return f"input={folder}"


class InMemoryImages(LabelledImages):
    """Images that fit into memory. `load` sets `splits`, whole tensors that `read` slices without workers."""

    def __init__(self, **keys: Unpack[ImageKeys]):
        super().__init__(**keys)
        self.splits: dict[str, Split] = {}
        self.resident: dict[str, Split] = {}  # the same on a GPU

    def keep_on(self, device: torch.device, at_most: int) -> None:
        tensors = [tensor for split in self.splits.values() for tensor in split]
        if sum(tensor.nbytes for tensor in tensors) <= at_most:
            self.resident = {name: Split(*(tensor.to(device) for tensor in split))
                             for name, split in self.splits.items()}

    def num_samples(self, split: str) -> int:
        return len(self.splits[split].labels)

    def digest(self, split: str) -> str:
        return digest_of_tensors(self.splits[split])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[ClassificationBatch]:
        images, labels = self.resident.get(split, self.splits[split])
        for indices in batches:
            chosen = to_device(indices, images.device)
            yield ClassificationBatch(images[chosen], labels[chosen].masked_fill(chosen < 0, IGNORED_LABEL))
