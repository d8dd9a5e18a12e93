"""Data modules that yield ClassificationBatch: the three parts, their loaders, and how a picture file becomes a sample.

A source subclasses ResidentImages and returns its parts as whole uint8 tensors (digits.py), or ImageData and reads
from disk (image_folder.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dltrain.batches import NOT_SCORED, ClassificationBatch, generator
from dltrain.data.loader import EvalLoader, TrainLoader
from dltrain.errors import DataError

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class Part(NamedTuple):
    """images (N, C, H, W) uint8, labels (N,) int64."""

    images: Tensor
    labels: Tensor


class ImageData(pl.LightningDataModule):
    """Images with one label each, in the parts train, val, test. A subclass says `load`, `num_samples` and `read`.

    `class_names` has num_classes entries after `load`. The test part is read only by `test_dataloader`.
    """

    batch_type = ClassificationBatch

    def __init__(self, *, channels: int, num_classes: int | None, image_px: int, batch_size: int, seed: int = 0):
        super().__init__()
        self.channels, self.num_classes, self.image_px = channels, num_classes, image_px
        self.batch_size, self.seed = batch_size, seed
        self.class_names: list[str] = []
        self.max_batches: int | None = None  # a smoke run's limit on every part
        self.rank, self.world_size = 0, 1  # this process's number, and how many train together
        self.train_loader: TrainLoader | None = None

    def load(self) -> None:
        """Finds, checks and, where it fits, reads everything. Raises DataError with the file and the remedy."""
        raise NotImplementedError

    def num_samples(self, part: str) -> int:
        raise NotImplementedError

    def read(self, part: str, batches: list[Tensor]) -> Iterator[ClassificationBatch]:
        """The batches of these indices; an index of -1 gives a sample that is not scored."""
        raise NotImplementedError

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, C, H, W) uint8 of the training part, for statistics: all of it, or `at_most` drawn images."""
        count = self.num_samples("train")
        chosen = torch.randperm(count, generator=generator("statistics", 0))[:at_most].sort().values
        return torch.cat([batch.images for batch in self.read("train", list(chosen.split(1024)))])

    def train_dataloader(self) -> TrainLoader:
        if self.train_loader is None:
            self.train_loader = TrainLoader(lambda batches: self.read("train", batches), self.num_samples("train"),
                                            self.batch_size, self.seed, self.rank, self.world_size,
                                            self.max_batches)
        return self.train_loader

    def eval_loader(self, part: str) -> EvalLoader:
        return EvalLoader(lambda batches: self.read(part, batches), self.num_samples(part),
                          max(self.batch_size, 256 if self.image_px <= 64 else 1), self.rank, self.world_size,
                          self.max_batches)

    def val_dataloader(self) -> EvalLoader:
        return self.eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        return self.eval_loader("test")

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.train_loader.position if self.train_loader else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.train_dataloader().position = state["position"]

    def read_file(self, path: Path) -> Tensor:
        """A picture file as a sample (C, H, W) uint8: upright, short side to image_px, central square."""
        return read_image(path, self.channels, self.image_px)


class ResidentImages(ImageData):
    """A set that fits in memory: whole tensors, sliced and not collated, no workers."""

    def __init__(self, **keys: Any):
        super().__init__(**keys)
        self.parts: dict[str, Part] = {}

    def num_samples(self, part: str) -> int:
        return len(self.parts[part].labels)

    def read(self, part: str, batches: list[Tensor]) -> Iterator[ClassificationBatch]:
        images, labels = self.parts[part]
        for indices in batches:
            taken = labels[indices]
            taken[indices < 0] = NOT_SCORED
            yield ClassificationBatch(images[indices], taken)


def read_image(path: Path, channels: int, px: int) -> Tensor:
    """See ImageData.read_file. 16-bit grey is scaled to 8 bits. Raises DataError with the path."""
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I;16") or picture.mode == "I":
                picture = Image.fromarray((np.asarray(picture).astype(np.float64) / 257).round().astype(np.uint8))
            picture = picture.convert("L" if channels == 1 else "RGB")
            if picture.size != (px, px):
                picture = ImageOps.fit(picture, (px, px), method=Image.Resampling.BILINEAR)
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {str(error) or type(error).__name__}") from None
    array = np.asarray(picture).copy()
    return torch.from_numpy(array).reshape(px, px, channels).permute(2, 0, 1).contiguous()
