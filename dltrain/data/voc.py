"""Photographs with boxes in the layout of PASCAL VOC (M. Everingham et al., 2010): Annotations/*.xml, JPEGImages/ and
ImageSets/Main/{train,val,test}.txt, which may be a person's own. A photo has its annotation's name; what the annotation
says of file names and paths is not read.

A VOC box counts pixels from 1 and includes its last one: [xmin, xmax] there is (xmin - 1, xmax) here.
"""

from __future__ import annotations

import math
import xml.parsers.expat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dltrain.batches import DetectionBatch, generator
from dltrain.data.classification import PICTURES, read_image
from dltrain.data.loader import DataModule
from dltrain.errors import DataError

PARTS = ("train", "val", "test")
SIDES = ("xmin", "ymin", "xmax", "ymax")


class Element(NamedTuple):
    name: str
    line: int
    text: list[str]
    inside: list[Any]

    def find(self, name: str) -> Element | None:
        return next((one for one in self.inside if one.name == name), None)

    def said(self, name: str) -> str | None:
        found = self.find(name)
        return "".join(found.text).strip() if found else None


class Photo(NamedTuple):
    """boxes (N, 4), labels (N,), difficult (N,): where the benchmark neither rewards nor punishes."""

    image: Path
    boxes: Tensor
    labels: Tensor
    difficult: Tensor


class VocFolder(DataModule):
    """`root`: the folder, or one with a single such folder in it. Without a val list a share of the training photos is
    held out. `bad_boxes`: what is done with a box of no area or outside its photo: refuse names the file and line,
    mend clips it and drops what has no area, and tells how many.

    Objects marked difficult are not trained on, and count neither way in the evaluation, as the benchmark has it."""

    batch_type = DetectionBatch

    def __init__(self, *, root: str | None, channels: int, image_px: int, num_classes: int | None, val_share: float,
                 bad_boxes: str, num_workers: int, same_shape: bool, **keys: Any):
        super().__init__(**keys)
        self.root, self.channels, self.num_classes = root, channels, num_classes
        self.val_share, self.bad_boxes, self.num_workers = val_share, bad_boxes, num_workers
        self.same_shape = same_shape
        self.photos: dict[str, list[Photo]] = {}
        self.mended = {"clipped": 0, "dropped": 0}

    def load(self) -> None:
        root = self.find()
        listed = {part: self.listed(root, part) for part in PARTS}
        if not listed["train"] or not listed["test"]:
            raise DataError(f"{root}/ImageSets/Main: must have train.txt and test.txt (or val.txt)")
        trees = {part: [(name, read_xml(root / "Annotations" / f"{name}.xml")) for name in names]
                 for part, names in listed.items()}
        found = sorted({one.said("name") or "" for _, tree in trees["train"] for one in tree.inside
                        if one.name == "object"})
        self.class_names = self.vocabularies.setdefault("labels", found)
        if self.num_classes not in (None, len(self.class_names)):
            raise DataError(f"data.num_classes={self.num_classes}, but {root} has {', '.join(self.class_names)}")
        self.pictures = {file.stem: file for file in (root / "JPEGImages").iterdir() if file.suffix.lower() in PICTURES}
        self.photos = {part: [self.photo(root, name, tree) for name, tree in trees[part]] for part in PARTS}
        if not self.photos["val"]:
            order = torch.randperm(len(self.photos["train"]), generator=generator("split", "voc")).tolist()
            held = max(1, round(self.val_share * len(order)))
            train = self.photos["train"]
            self.photos["val"] = [train[i] for i in sorted(order[:held])]
            self.photos["train"] = [train[i] for i in sorted(order[held:])]

    def find(self) -> Path:
        if self.root is None:
            raise DataError("data.root must be given: a folder with Annotations, JPEGImages and ImageSets/Main")
        root = Path(self.root).expanduser()
        for place in [root, *(sorted(root.iterdir()) if root.is_dir() else [])]:
            if (place / "Annotations").is_dir() and (place / "ImageSets/Main").is_dir():
                return place
        raise DataError(f"data.root={root}: no folder with Annotations, JPEGImages and ImageSets/Main")

    def listed(self, root: Path, part: str) -> list[str]:
        """The names of a part; without a test list, val is the test part and train is split."""
        lists = root / "ImageSets/Main"
        has_test = (lists / "test.txt").is_file()
        if not has_test:
            part = {"train": "train", "val": "", "test": "val"}[part]
        file = lists / f"{part}.txt"
        if not file.is_file():
            return []
        names = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                name = line.split()[0]
                if "/" in name or "\\" in name or name.startswith("."):
                    raise DataError(f"{file}:{number}: '{name}' must be a name, not a path")
                names.append(name)
        return names

    def photo(self, root: Path, name: str, tree: Element) -> Photo:
        at = root / "Annotations" / f"{name}.xml"
        image = self.pictures.get(name)
        if image is None:
            raise DataError(f"{at}: no image {root}/JPEGImages/{name}.jpg")
        try:
            with Image.open(image) as opened:
                width, height = opened.size
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{image}: {error}") from None
        size = tree.find("size")
        stated = [size.said(side) for side in ("width", "height")] if size else [None, None]
        if size and stated not in ([str(width), str(height)], ["0", "0"]):
            raise DataError(f"{at}:{size.line}: width x height must be {width} x {height} as {image.name}'s, but is "
                            f"{stated[0]} x {stated[1]}")
        boxes, labels, difficult = [], [], []
        for one in tree.inside:
            if one.name != "object":
                continue
            label = one.said("name")
            if label not in self.class_names:
                raise DataError(f"{at}:{one.line}: class '{label}' is none of {', '.join(self.class_names)}")
            box = self.box(at, one, width, height)
            if box is not None:
                boxes.append(box)
                labels.append(self.class_names.index(label))
                difficult.append(one.said("difficult") == "1")
        return Photo(image, torch.tensor(boxes, dtype=torch.float).reshape(-1, 4), torch.tensor(labels).long(),
                     torch.tensor(difficult).bool())

    def box(self, at: Path, one: Element, width: int, height: int) -> list[float] | None:
        """(x1, y1, x2, y2), or None for one that is dropped."""
        found = one.find("bndbox")
        if found is None:
            raise DataError(f"{at}:{one.line}: an object must have a bndbox")
        values = []
        for side in SIDES:
            text = found.said(side)
            try:
                value = float(text or "")
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise DataError(f"{at}:{found.line}: {side} must be a number, but is {text!r}")
            values.append(value)
        x1, y1, x2, y2 = values
        inside = [min(max(v, 0.0), edge) for v, edge in zip((x1 - 1, y1 - 1, x2, y2), (width, height) * 2, strict=True)]
        empty = inside[2] <= inside[0] or inside[3] <= inside[1] or x2 <= x1 or y2 <= y1
        outside = min(x1, y1) < 0 or x2 > width or y2 > height
        if (empty or outside) and self.bad_boxes == "refuse":
            fault = (f"xmax {x2:g} <= xmin {x1:g}" if x2 <= x1 else f"ymax {y2:g} <= ymin {y1:g}" if y2 <= y1 else
                     f"the box {x1:g}, {y1:g}, {x2:g}, {y2:g} lies outside of {width} x {height}")
            raise DataError(f"{at}:{found.line}: {fault}; data.bad_boxes=mend clips and drops such boxes")
        self.mended["dropped"] += empty
        self.mended["clipped"] += outside and not empty
        return None if empty else inside

    def sizes(self) -> dict[str, int]:
        return {"num_classes": len(self.class_names)}

    def said(self) -> str:
        boxes = {part: sum(len(photo.labels) for photo in self.photos[part]) for part in PARTS}
        told = ", ".join(f"{len(self.photos[part]):,} {part} ({boxes[part]:,} boxes)" for part in PARTS)
        mended = ", ".join(f"{count} {what}" for what, count in self.mended.items() if count)
        return f"{told}, {len(self.class_names)} classes{f'; boxes {mended}' if mended else ''}"

    def num_samples(self, part: str) -> int:
        return len(self.photos[part])

    def lengths(self) -> Tensor | None:
        """The photos' shapes by number, so that like ones come in one batch and little is filled up."""
        if not self.same_shape:
            return None
        shapes = []
        for photo in self.photos["train"]:
            with Image.open(photo.image) as opened:
                shapes.append(round(16 * math.log2(opened.width / opened.height)))
        return torch.tensor(shapes)

    def read(self, part: str, batches: list[Tensor]) -> Iterator[DetectionBatch]:
        """Workers read ahead; the batches are the same with any number of them."""
        loader = DataLoader(Decoded(self.photos[part], self.channels, part == "train"),
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
    """Photos of any size; in training without the difficult objects, in evaluation with them as crowds."""

    def __init__(self, photos: list[Photo], channels: int, training: bool):
        self.photos, self.channels, self.training = photos, channels, training

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        photo = self.photos[index]
        image = read_image(photo.image, self.channels)
        if self.training:
            kept = ~photo.difficult
            return image, {"boxes": photo.boxes[kept], "labels": photo.labels[kept]}
        return image, {"boxes": photo.boxes, "labels": photo.labels, "iscrowd": photo.difficult.long()}


def as_batch(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> DetectionBatch:
    return DetectionBatch([image for image, _ in samples], [target for _, target in samples])


def read_xml(file: Path) -> Element:
    """The file's root element. Raises DataError with the line."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    parser = xml.parsers.expat.ParserCreate()
    stack = [Element("", 0, [], [])]

    def begin(name: str, _: Any) -> None:
        stack.append(Element(name, parser.CurrentLineNumber, [], []))
        stack[-2].inside.append(stack[-1])

    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _: stack.pop()
    parser.CharacterDataHandler = lambda text: stack[-1].text.append(text)
    try:
        parser.Parse(raw, True)
    except xml.parsers.expat.ExpatError as error:
        raise DataError(f"{file}:{error.lineno}: not XML ({xml.parsers.expat.errors.messages[error.code]})") from None
    root: Element = stack[0].inside[0]
    return root
