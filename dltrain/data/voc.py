"""Photographs with boxes in the layout of PASCAL VOC (M. Everingham et al., 2010): Annotations/*.xml, JPEGImages/ and
ImageSets/Main/{train,val,test}.txt, which may be a person's own. A photo has its annotation's name; what the annotation
says of file names and paths is not read.

A VOC box counts pixels from 1 and includes its last one: [xmin, xmax] there is (xmin - 1, xmax) here.
"""

from __future__ import annotations

import math
import xml.parsers.expat
from pathlib import Path
from typing import Any, NamedTuple

import torchvision.datasets

from dltrain.data.classification import PICTURES
from dltrain.data.detection import SPLITS, Fault, Photo, PhotoBoxes, names_in, photo, size_of
from dltrain.errors import DataError

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


class VocFolder(PhotoBoxes):
    """`root`: the folder, or one with a single such folder in it. Its classes.txt, a name a line, says the
    classes; without one they are those of the training split, sorted. `train_list`: the list that is trained on.
    `year`: of the official set, which is downloaded below `root` where it is not there and `download`."""

    def __init__(self, *, train_list: str = "train", year: str | None = None, download: bool = False, **keys: Any):
        super().__init__(**keys)
        self.train_list, self.year, self.download = train_list, year, download

    def photos_of(self) -> dict[str, list[Photo]]:
        root = self.find()
        listed = {split: self.listed(root, split) for split in SPLITS}
        if not listed["train"] or not listed["test"]:
            raise DataError(f"{root}/ImageSets/Main: must have {self.train_list}.txt and test.txt (or val.txt)")
        trees = {split: [(name, read_xml(root / "Annotations" / f"{name}.xml")) for name in names]
                 for split, names in listed.items()}
        names = root / "classes.txt"
        if names.is_file():
            found = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            found = sorted({one.said("name") or "" for _, tree in trees["train"] for one in tree.inside
                            if one.name == "object"})
        self.name_classes(found)
        self.pictures = {file.stem: file for file in (root / "JPEGImages").iterdir() if file.suffix.lower() in PICTURES}
        return {split: [self.photo(root, name, tree) for name, tree in trees[split]] for split in SPLITS}

    def find(self) -> Path:
        if self.root is None:
            raise DataError("data.root must be given: a folder with Annotations, JPEGImages and ImageSets/Main")
        root = Path(self.root).expanduser()
        if self.year is not None:
            if not (root / f"VOCdevkit/VOC{self.year}/Annotations").is_dir():
                splits = ("trainval", "test") if self.year == "2007" else ("trainval",)
                fetch("VOCDetection", root, self.year, splits, self.download)
            root = root / f"VOCdevkit/VOC{self.year}"
        for place in [root, *(sorted(root.iterdir()) if root.is_dir() else [])]:
            if (place / "Annotations").is_dir() and (place / "ImageSets/Main").is_dir():
                return place
        raise DataError(f"data.root={root}: no folder with Annotations, JPEGImages and ImageSets/Main")

    def listed(self, root: Path, split: str) -> list[str]:
        """The names of a split; without a test list, val is the test split and train is split."""
        lists = root / "ImageSets/Main"
        has_test = (lists / "test.txt").is_file()
        if not has_test and self.train_list == "trainval":
            raise DataError(f"{lists}: no test.txt, so val is the test split: data.train_list must be train")
        name = {"train": self.train_list, "val": "val" if has_test and self.train_list == "train" else "",
                "test": "test" if has_test else "val"}[split]
        file = lists / f"{name}.txt"
        return [line.split()[0] for line in names_in(file)] if file.is_file() else []

    def photo(self, root: Path, name: str, tree: Element) -> Photo:
        at = root / "Annotations" / f"{name}.xml"
        image = self.pictures.get(name)
        if image is None:
            raise DataError(f"{at}: no image {root}/JPEGImages/{name}.jpg")
        width, height = size_of(image)
        size = tree.find("size")
        stated = [size.said(side) for side in ("width", "height")] if size else [None, None]
        if size and stated not in ([str(width), str(height)], ["0", "0"]):
            raise DataError(f"{at}:{size.line}: width x height must be {width} x {height} as {image.name}'s, but is "
                            f"{stated[0]} x {stated[1]}")
        objects = []
        for one in tree.inside:
            if one.name != "object":
                continue
            label = one.said("name")
            if label not in self.class_names:
                raise DataError(f"{at}:{one.line}: class '{label}' is none of {', '.join(self.class_names)}")
            bounds = one.find("bndbox")
            if bounds is None:
                raise DataError(f"{at}:{one.line}: an object must have a bndbox")
            try:
                box = self.box(bounds, (width, height))
            except Fault as fault:
                raise DataError(f"{at}:{bounds.line}: {fault}") from None
            if box is not None:
                objects.append((box, self.class_names.index(label), one.said("difficult") == "1"))
        return photo(image, (width, height), objects)

    def box(self, found: Element, size: tuple[int, int]) -> list[float] | None:
        """(x1, y1, x2, y2), or None for one that is dropped."""
        values = []
        for side in SIDES:
            text = found.said(side)
            try:
                value = float(text or "")
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise Fault(f"{side} must be a number, but is {text!r}")
            values.append(value)
        x1, y1, x2, y2 = values
        empty = f"xmax {x2:g} <= xmin {x1:g}" if x2 <= x1 else f"ymax {y2:g} <= ymin {y1:g}" if y2 <= y1 else ""
        low = [0.0 if value == 0 else value - 1 for value in (x1, y1)]  # some count from 0
        return self.placed([*low, x2, y2], size, empty, f"{x1:g}, {y1:g}, {x2:g}, {y2:g}")


def fetch(dataset: str, root: Path, year: str, splits: tuple[str, ...], download: bool) -> None:
    """Downloads an official set as torchvision does, by the name of its class there. Raises DataError where it cannot
    be, or must not be."""
    where = (f"VOC{year} is not in {root}: put VOCdevkit/VOC{year} of host.robots.ox.ac.uk/pascal/VOC there, or set "
             "data.root")
    if not download:
        raise DataError(where)
    print(f"downloading VOC{year} into {root}", flush=True)
    try:
        for split in splits:
            getattr(torchvision.datasets, dataset)(str(root), year, split, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:80]
        raise DataError(f"{where}; it cannot be downloaded ({reason})") from None


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
