"""Data modules that yield ClassificationBatch: the three splits, and how a picture file becomes a sample.

A source subclasses ResidentImages and returns its splits as whole uint8 tensors (digits.py), or ImageData and reads
from disk (image_folder.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.batches import IGNORED_LABEL, ClassificationBatch, generator
from dltrain.data.loader import DataModule
from dltrain.errors import DataError

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class Split(NamedTuple):
    """images (N, C, H, W) uint8, labels (N,) int64."""

    images: Tensor
    labels: Tensor


class ImageData(DataModule):
    """Images with one label each."""

    batch_type = ClassificationBatch

    def __init__(self, *, channels: int, num_classes: int | None, image_px: int, **keys: Any):
        super().__init__(**keys)
        self.channels, self.num_classes, self.image_px = channels, num_classes, image_px
        self.eval_batch_size = max(self.batch_size, 256 if image_px <= 64 else 1)

    def sizes(self) -> dict[str, int]:
        return {"num_classes": self.num_classes} if self.num_classes else {}

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, C, H, W) uint8 of the training split, for statistics: all of it, or `at_most` drawn images."""
        count = self.num_samples("train")
        chosen = torch.randperm(count, generator=generator("statistics", 0))[:at_most].sort().values
        return torch.cat([batch.images for batch in self.read("train", list(chosen.split(1024)))])

    def read_input(self, path: Path) -> Tensor:
        """A picture file as a sample (C, H, W) uint8: upright, short side to image_px, central square."""
        return read_image(path, self.channels, self.image_px)

    def write_samples(self, folder: Path, at_most: int = 10) -> str:
        few = torch.arange(min(at_most, self.num_samples("test")))
        batch = next(iter(self.read("test", [few])))
        for number, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
            name = "".join(c if c.isalnum() else "_" for c in self.class_names[int(label)])
            to_pil_image(image).save(folder / f"{number:02d}_{name}.png")
        return f"input={folder}"


class ResidentImages(ImageData):
    """A set that fits in memory: whole tensors, sliced and not collated, no workers."""

    def __init__(self, **keys: Any):
        super().__init__(**keys)
        self.splits: dict[str, Split] = {}

    def num_samples(self, split: str) -> int:
        return len(self.splits[split].labels)

    def read(self, split: str, batches: list[Tensor]) -> Iterator[ClassificationBatch]:
        images, labels = self.splits[split]
        for indices in batches:
            taken = labels[indices]
            taken[indices < 0] = IGNORED_LABEL
            yield ClassificationBatch(images[indices], taken)


def read_image(path: Path, channels: int, px: int | None = None) -> Tensor:
    """(C, H, W) uint8, upright; with `px` the short side scaled to it, and the central square of that. 16-bit grey is
    scaled to 8 bits. Raises DataError with the path."""
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I;16") or picture.mode == "I":
                picture = Image.fromarray((np.asarray(picture).astype(np.float64) / 257).round().astype(np.uint8))
            picture = picture.convert("L" if channels == 1 else "RGB")
            if px is not None and picture.size != (px, px):
                picture = ImageOps.fit(picture, (px, px), method=Image.Resampling.BILINEAR)
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {str(error) or type(error).__name__}") from None
    array = np.asarray(picture).copy()
    return torch.from_numpy(array).reshape(picture.height, picture.width, channels).permute(2, 0, 1).contiguous()
