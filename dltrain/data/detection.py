"""Photographs of any size with boxes, from files: what is common to the layouts they come in (voc.py, coco.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dltrain.batches import DetectionBatch, generator
from dltrain.data.classification import read_image
from dltrain.data.loader import DataModule
from dltrain.errors import DataError

SPLITS = ("train", "val", "test")


class Fault(ValueError):
    """What is wrong with an annotation; who reads the file knows where it stands."""


class Photo(NamedTuple):
    """size (width, height) in pixels; boxes (N, 4); labels (N,); aside (N,): those that the benchmark neither rewards
    nor punishes, VOC's difficult and COCO's crowds."""

    image: Path
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    aside: Tensor


class PhotoBoxes(DataModule):
    """A subclass says `photos_of`. Where there are no photos for validation a share of the training ones is held out.
    `bad_boxes`: what is done with a box of no area or outside its photo: refuse names the file and line, mend clips it
    and drops what has no area, and tells how many. `same_shape`: photos of like shape come together.

    Objects that are set aside are not trained on, and count neither way in the evaluation."""

    batch_type = DetectionBatch

    def __init__(self, *, root: str | None, channels: int, image_px: int, num_classes: int | None, val_share: float,
                 bad_boxes: str, num_workers: int, same_shape: bool, **keys: Any):
        super().__init__(**keys)
        self.root, self.channels, self.num_classes = root, channels, num_classes
        self.val_share, self.bad_boxes, self.num_workers = val_share, bad_boxes, num_workers
        self.same_shape = same_shape
        self.photos: dict[str, list[Photo]] = {}
        self.mended = {"clipped": 0, "dropped": 0}

    def photos_of(self) -> dict[str, list[Photo]]:
        """The photos of each split, that of val empty where there are none."""
        raise NotImplementedError

    def name_classes(self, found: list[str]) -> None:
        """Sets class_names: those found, or a run's own. Raises DataError where they are not num_classes."""
        self.class_names = self.vocabularies.setdefault("labels", found)
        if self.num_classes not in (None, len(self.class_names)):
            raise DataError(f"data.num_classes={self.num_classes}, but {self.root} has {', '.join(self.class_names)}")

    def load(self) -> None:
        self.photos = self.photos_of()
        train = self.photos["train"]
        if not self.photos["val"] and len(train) > 1:
            order = torch.randperm(len(train), generator=generator("split", "voc")).tolist()
            held = max(1, round(self.val_share * len(order)))
            self.photos["val"] = [train[i] for i in sorted(order[:held])]
            self.photos["train"] = [train[i] for i in sorted(order[held:])]

    def placed(self, corners: list[float], size: tuple[int, int], empty: str, shown: str) -> list[float] | None:
        """The box (x1, y1, x2, y2) within its photo, or None for one that is dropped. `empty`: in the file's own words
        why it has no area, "" where it has; `shown`: its numbers there. Raises Fault, unless it is to be mended."""
        edges = (*size, *size)
        inside = [min(max(value, 0.0), float(edge)) for value, edge in zip(corners, edges, strict=True)]
        outside = inside != corners
        nothing = bool(empty) or inside[2] <= inside[0] or inside[3] <= inside[1]
        if (nothing or outside) and self.bad_boxes == "refuse":
            fault = empty or f"the box {shown} lies outside of {size[0]} x {size[1]}"
            raise Fault(f"{fault}; data.bad_boxes=mend clips and drops such boxes")
        self.mended["dropped"] += nothing
        self.mended["clipped"] += outside and not nothing
        return None if nothing else inside

    def sizes(self) -> dict[str, int]:
        return {"num_classes": len(self.class_names)}

    def describe(self) -> str:
        boxes = {split: sum(len(photo.labels) for photo in self.photos[split]) for split in SPLITS}
        told = ", ".join(f"{len(self.photos[split]):,} {split} ({boxes[split]:,} boxes)" for split in SPLITS)
        mended = ", ".join(f"{count} {what}" for what, count in self.mended.items() if count)
        return f"{told}, {len(self.class_names)} classes{f'; boxes {mended}' if mended else ''}"

    def num_samples(self, split: str) -> int:
        return len(self.photos[split])

    def lengths(self) -> Tensor | None:
        """The photos' shapes by number, so that like ones come in one batch and little is filled up."""
        if not self.same_shape:
            return None
        return torch.tensor([round(16 * math.log2(photo.size[0] / photo.size[1])) for photo in self.photos["train"]])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[DetectionBatch]:
        """Workers read ahead; the batches are the same with any number of them."""
        loader = DataLoader(Decoded(self.photos[split], self.channels, split == "train"),
                            batch_sampler=[batch[batch >= 0].tolist() for batch in batches],
                            num_workers=self.num_workers, collate_fn=as_batch, generator=torch.Generator())
        yield from loader

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, C, 64, 64) uint8: the central squares of up to 200 photos, for statistics."""
        return torch.stack([read_image(photo.image, self.channels, 64) for photo in self.photos["train"][:200]])

    def write_samples(self, folder: Path) -> str:
        for photo in self.photos["test"][:4]:
            (folder / photo.image.name).write_bytes(photo.image.read_bytes())
        return f"input={folder}"


class Decoded(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Photos of any size; in training without the objects set aside, in evaluation with them as crowds."""

    def __init__(self, photos: list[Photo], channels: int, training: bool):
        self.photos, self.channels, self.training = photos, channels, training

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        photo = self.photos[index]
        image = read_image(photo.image, self.channels)
        if self.training:
            kept = ~photo.aside
            return image, {"boxes": photo.boxes[kept], "labels": photo.labels[kept]}
        return image, {"boxes": photo.boxes, "labels": photo.labels, "iscrowd": photo.aside.long()}


def as_batch(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> DetectionBatch:
    return DetectionBatch([image for image, _ in samples], [target for _, target in samples])


def size_of(image: Path) -> tuple[int, int]:
    """(width, height) from its header. Raises DataError."""
    try:
        with Image.open(image) as opened:
            return opened.size
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{image}: {error}") from None


def names_in(file: Path) -> list[str]:
    """A photo's name a line. Raises DataError with the line for a path."""
    names = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if name := line.strip():
            if "/" in name or "\\" in name or name.startswith("."):
                raise DataError(f"{file}:{number}: '{name}' must be a name, not a path")
            names.append(name)
    return names


def photo(image: Path, size: tuple[int, int], objects: list[tuple[list[float], int, bool]]) -> Photo:
    """`objects`: box, label and whether it is set aside."""
    return Photo(image, size, torch.tensor([box for box, _, _ in objects], dtype=torch.float).reshape(-1, 4),
                 torch.tensor([label for _, label, _ in objects]).long(),
                 torch.tensor([aside for _, _, aside in objects]).bool())
