"""Photographs with a PNG mask each, the class of every pixel: a person's own folder, CamVid, PASCAL VOC.

A mask has one number a pixel, grey or by a palette: the class, or IGNORED_PIXEL = 255, which is not scored. Every pair
of files is held against each other, and every mask's numbers against the classes, before the first step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dltrain.batches import IGNORED_PIXEL, SegmentationBatch, generator
from dltrain.data.classification import PICTURES, read_image
from dltrain.data.detection import SPLITS, names_in, size_of
from dltrain.data.loader import DataModule
from dltrain.data.voc import fetch
from dltrain.errors import DataError


class Pair(NamedTuple):
    image: Path
    mask: Path


class PhotoMasks(DataModule):
    """A subclass says `pairs` and sets `class_names`. Photos whose long side is above `image_px` are scaled to it, then
    all are filled up below and on the right to one size, the largest; what is filled up is not scored.

    `not_scored`: a number in the masks that is read as IGNORED_PIXEL."""

    batch_type = SegmentationBatch
    not_scored: int | None = None

    def __init__(self, *, root: str | None, channels: int, image_px: int, num_classes: int | None, val_share: float,
                 num_workers: int, **keys: Any):
        super().__init__(**keys)
        self.root, self.channels, self.image_px, self.num_classes = root, channels, image_px, num_classes
        self.val_share, self.num_workers = val_share, num_workers
        self.splits: dict[str, list[Pair]] = {}
        self.frame = (0, 0)  # height and width of every image of a batch

    def pairs(self, root: Path) -> dict[str, list[Pair]]:
        """The pairs of each split, that of val empty where a share of train is to be held out."""
        raise NotImplementedError

    def find(self) -> Path:
        if self.root is None:
            raise DataError("data.root must be given: the folder with the images and masks")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such folder")
        return root

    def load(self) -> None:
        self.splits = self.pairs(self.find())
        if not self.splits["val"]:
            self.splits["train"], self.splits["val"] = held_out(self.splits["train"], self.val_share, "val")
        if self.num_classes not in (None, len(self.class_names)):
            raise DataError(f"data.num_classes={self.num_classes}, but {self.root} has {len(self.class_names)} classes")
        pairs = [pair for split in SPLITS for pair in self.splits[split]]
        with ThreadPoolExecutor(8) as pool:
            looks = pool.map(self.looked_at, pairs)
            seen = list(track(looks, f"checking {len(pairs)} masks", len(pairs), transient=True,
                              disable=not sys.stdout.isatty()))
        if faults := [one for one in seen if isinstance(one, str)]:
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise DataError(f"{len(faults)} of {len(pairs)} masks do not fit: {'; '.join(faults[:3])}{more}")
        sizes = [one for one in seen if not isinstance(one, str)]
        self.frame = (max(h for h, _ in sizes), max(w for _, w in sizes))

    def looked_at(self, pair: Pair) -> tuple[int, int] | str:
        """The size (height, width) at which a pair is read, or what is wrong with it."""
        try:
            size = size_of(pair.image)
            mask = read_mask(pair.mask)
        except DataError as error:
            return str(error)
        if mask.shape[::-1] != size:
            return (f"{pair.mask}: must be {size[0]} x {size[1]} px as {pair.image.name}, but is "
                    f"{mask.shape[1]} x {mask.shape[0]}")
        wrong = [int(value) for value in np.unique(mask)
                 if value >= len(self.class_names) and value not in (IGNORED_PIXEL, self.not_scored)]
        if wrong:
            return (f"{pair.mask}: has {', '.join(map(str, wrong[:5]))}, but there are {len(self.class_names)} "
                    f"classes, from 0 on; {IGNORED_PIXEL} is not scored")
        return scaled_size(size, self.image_px)

    def sizes(self) -> dict[str, int]:
        return {"num_classes": len(self.class_names)}

    def describe(self) -> str:
        return f"{super().describe()}, {len(self.class_names)} classes, {self.frame[1]} x {self.frame[0]} px"

    def num_samples(self, split: str) -> int:
        return len(self.splits[split])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[SegmentationBatch]:
        """Workers read ahead; the batches are the same with any number of them."""
        decoded = Decoded(self.splits[split], self.channels, self.image_px, self.frame, self.not_scored)
        yield from DataLoader(decoded, batch_sampler=[batch[batch >= 0].tolist() for batch in batches],
                              num_workers=self.num_workers, collate_fn=as_batch, generator=torch.Generator())

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, C, 64, 64) uint8: the central squares of up to 200 photos, for statistics."""
        return torch.stack([read_image(pair.image, self.channels, 64) for pair in self.splits["train"][:200]])

    def write_samples(self, folder: Path) -> str:
        for pair in self.splits["test"][:4]:
            (folder / pair.image.name).write_bytes(pair.image.read_bytes())
        return f"input={folder}"


class Decoded(Dataset[tuple[Tensor, Tensor]]):
    """image (C, H, W) uint8 and mask (H, W) int64 of one pair, in the frame. Runs in a worker process."""

    def __init__(self, pairs: list[Pair], channels: int, image_px: int, frame: tuple[int, int],
                 not_scored: int | None):
        self.pairs, self.channels, self.image_px = pairs, channels, image_px
        self.frame, self.not_scored = frame, not_scored

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.pairs[index]
        image = scaled_image(read_image(pair.image, self.channels), self.image_px)
        h, w = image.shape[1:]
        numbers = Image.fromarray(read_mask(pair.mask)).resize((w, h), Image.Resampling.NEAREST)
        mask = torch.from_numpy(np.asarray(numbers).copy()).long()
        if self.not_scored is not None:
            mask[mask == self.not_scored] = IGNORED_PIXEL
        below = (0, self.frame[1] - w, 0, self.frame[0] - h)
        return F.pad(image, below), F.pad(mask, below, value=IGNORED_PIXEL)


def as_batch(samples: list[tuple[Tensor, Tensor]]) -> SegmentationBatch:
    return SegmentationBatch(torch.stack([image for image, _ in samples]), torch.stack([mask for _, mask in samples]))


def scaled_size(size: tuple[int, int], image_px: int) -> tuple[int, int]:
    """(width, height) to (height, width) of the image whose long side is at most image_px."""
    scale = min(1.0, image_px / max(size))
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def scaled_image(image: Tensor, image_px: int) -> Tensor:
    """(C, H, W) uint8 with its long side scaled to image_px where it is longer."""
    size = scaled_size((image.shape[2], image.shape[1]), image_px)
    if size == tuple(image.shape[1:]):
        return image
    scaled = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)


def read_mask(path: Path) -> Any:
    """(H, W) uint8: the number of each pixel, of a palette image its place in the palette. Raises DataError."""
    try:
        with Image.open(path) as opened:
            if opened.mode not in ("L", "P", "1"):
                raise DataError(f"{path}: a mask must have one number of 8 bits a pixel (grey or palette), but is "
                                f"{opened.mode}")
            return np.asarray(opened).astype(np.uint8)
    except FileNotFoundError:
        raise DataError(f"no mask {path}") from None
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path}: {str(error) or type(error).__name__}") from None


def held_out(pairs: list[Pair], share: float, purpose: str) -> tuple[list[Pair], list[Pair]]:
    """The rest, and a share of at least one, the same for every run. Raises DataError where nothing would be left."""
    count = max(1, round(share * len(pairs)))
    if count >= len(pairs):
        raise DataError(f"{len(pairs)} images are too few to hold a {purpose} split out")
    order = torch.randperm(len(pairs), generator=generator("split", purpose, "masks")).tolist()
    return [pairs[i] for i in sorted(order[count:])], [pairs[i] for i in sorted(order[:count])]


def pictures_by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names, hidden ones left out. Raises DataError where there are none."""
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES
             and not path.name.startswith(".")} if folder.is_dir() else {}
    if not found:
        raise DataError(f"{folder}: no pictures")
    return found


class MaskFolder(PhotoMasks):
    """A person's own: root/images/*, root/masks/*.png of the same names, root/classes.txt with a name a line for the
    numbers from 0 on; root/{train,val,test}.txt with names, or a split by shares."""

    def __init__(self, *, test_share: float, **keys: Any):
        super().__init__(**keys)
        self.test_share = test_share

    def pairs(self, root: Path) -> dict[str, list[Pair]]:
        if not (root / "classes.txt").is_file():
            raise DataError(f"{root}: no classes.txt; it must have the name of each number in the masks, a line each, "
                            "from 0 on")
        names = (root / "classes.txt").read_text(encoding="utf-8").splitlines()
        self.class_names = self.vocabularies.setdefault("labels", [name.strip() for name in names if name.strip()])
        images = pictures_by_stem(root / "images")
        every = {name: Pair(image, root / f"masks/{name}.png") for name, image in images.items()}
        lists = {split: root / f"{split}.txt" for split in SPLITS if (root / f"{split}.txt").is_file()}
        if lists and not {"train", "test"} <= {*lists}:
            raise DataError(f"{root}: has {', '.join(f'{split}.txt' for split in lists)}, but needs both train.txt and "
                            "test.txt")
        found: dict[str, list[Pair]] = {split: [] for split in SPLITS}
        for split, file in lists.items():
            for name in names_in(file):
                stem = name if name in every else Path(name).stem
                if stem not in every:
                    raise DataError(f"{file}: no image {root}/images/{name}")
                found[split].append(every[stem])
        if not lists:
            found["train"], found["test"] = held_out(list(every.values()), self.test_share, "test")
        return found


class CamVid(PhotoMasks):
    """root/{train,val,test}/* and root/{train,val,test}annot/*.png, 11 classes and 11 for what is not scored (G.
    Brostow et al., 2008; the splits and classes of V. Badrinarayanan et al., 2015, arXiv 1511.00561)."""

    not_scored = 11

    def pairs(self, root: Path) -> dict[str, list[Pair]]:
        self.class_names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
                            "bicyclist"]
        return {split: [Pair(image, root / f"{split}annot/{name}.png")
                       for name, image in pictures_by_stem(root / split).items()] for split in SPLITS}


VOC_CLASSES = ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
               "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
               "tvmonitor"]


class VocMasks(PhotoMasks):
    """root/VOCdevkit/VOC2012: ImageSets/Segmentation's train is trained on, less a share for validation, its val is the
    test split, whose own masks are not public (M. Everingham et al., 2010)."""

    def __init__(self, *, download: bool, **keys: Any):
        super().__init__(**keys)
        self.download = download

    def pairs(self, root: Path) -> dict[str, list[Pair]]:
        place = root / "VOCdevkit/VOC2012"
        if not (place / "SegmentationClass").is_dir():
            fetch("VOCSegmentation", root, "2012", ("trainval",), self.download)
        self.class_names = list(VOC_CLASSES)
        lists = place / "ImageSets/Segmentation"
        return {split: [Pair(place / f"JPEGImages/{name}.jpg", place / f"SegmentationClass/{name}.png")
                       for name in names_in(lists / f"{listed}.txt")] if listed else []
                for split, listed in (("train", "train"), ("val", ""), ("test", "val"))}
