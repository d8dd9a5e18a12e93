"""PASCAL VOC (M. Everingham et al., 2010), its boxes and its masks, and photos of a person's own in its layout:
Annotations/*.xml, JPEGImages/ and ImageSets/Main/{train,val,test}.txt; or with xml files in its form in any folders
(annotated_photos.py). A photo has the name of its annotation; file names and paths inside the annotation are not read.

A VOC box counts pixels from 1 and includes its last one: [xmin, xmax] there is (xmin - 1, xmax) here.
"""

from __future__ import annotations

import math
import xml.parsers.expat
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import torchvision.datasets

from dltrain.data.annotated_photos import AnnotatedPhoto, find_annotated_photos
from dltrain.data.datamodule import SPLITS, require_root
from dltrain.data.detection import AnnotationError, BoxObject, Photo, PhotoBoxKeys, PhotoFile, PhotosWithBoxes
from dltrain.data.download import download_dataset
from dltrain.data.faults import read_each
from dltrain.data.segmentation import MaskKeys, MaskPair, PhotosWithMasks
from dltrain.data.texts import read_lines, read_names
from dltrain.errors import DataError
from dltrain.image_files import NO_FILE, by_stem, exists, no_image_called, read_header, readable

SIDES = ("xmin", "ymin", "xmax", "ymax")
LAYOUT = "Annotations, JPEGImages and ImageSets/Main, or photos with an xml each"
CLASSES = ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
           "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]


class Element(NamedTuple):
    """An element of an XML file, and the line where it begins."""

    name: str
    line: int
    content: list[str]
    children: list[Element]

    def find(self, name: str) -> Element | None:
        return next((child for child in self.children if child.name == name), None)

    def text(self, name: str) -> str | None:
        """The text of the child of this name."""
        child = self.find(name)
        return "".join(child.content).strip() if child else None


class VocBoxes(PhotosWithBoxes):
    """Photos with boxes in the form of PASCAL VOC. `root` is the folder with JPEGImages, Annotations and ImageSets, or
    one that contains a single such folder, or any folder of photos with an xml each, whose splits are folders named
    train, val and test. Its classes.txt, a name per line, lists the classes; without it they are those of the training
    photos, sorted. `train_list`: the file in ImageSets/Main that lists the training photos. `year`: of the official
    set, which is downloaded below `root` if it is not there and `download` allows it."""

    def __init__(self, *, train_list: str = "train", year: str | None = None, download: bool = False,
                 **keys: Unpack[PhotoBoxKeys]):
        super().__init__(**keys)
        self.train_list, self.year, self.download = train_list, year, download

    def find_photos(self) -> dict[str, list[PhotoFile]]:
        root = self.find_root()
        is_listed = (root / "ImageSets/Main").is_dir()
        splits = self.read_lists(root) if is_listed else self.read_folders(root)
        photos = [photo for split in SPLITS for photo in splits[split]]
        trees = dict(zip(photos, read_each(photos, read_annotation, "photos"), strict=True))
        classes_file = root / "classes.txt"
        if classes_file.is_file():
            self.set_class_names([line.strip() for _, line in read_lines(classes_file)])
        else:
            self.set_class_names(sorted({child.text("name") or "" for photo in splits["train"]
                                         for child in trees[photo].children if child.name == "object"}))
        return {split: [PhotoFile(photo.image, partial(self.read_photo, photo, trees[photo]))
                        for photo in splits[split]] for split in SPLITS}

    def read_folders(self, root: Path) -> dict[str, list[AnnotatedPhoto]]:
        splits, left_out = find_annotated_photos(root)
        for reason, files in left_out.items():
            self.leave_out(reason, files)
        return splits

    def read_lists(self, root: Path) -> dict[str, list[AnnotatedPhoto]]:
        """The photos that the lists in ImageSets/Main name. A photo that does not exist is named with its suffix."""
        lists = {split: self.read_list(root, split) for split in SPLITS}
        if not lists["train"] or (not lists["test"] and self.test_share is None):
            raise DataError(f"{root}/ImageSets/Main: must have {self.train_list}.txt"
                            f"{' and test.txt (or val.txt)' if self.test_share is None else ''}")
        photos = root / "JPEGImages"
        images = by_stem(self.images_in(photos, recursive=False))
        listed = {name for names in lists.values() for name in names}
        self.leave_out("a photo that no list names", [path for name, path in images.items() if name not in listed])
        return {split: [AnnotatedPhoto(images.get(name, photos / f"{name}.jpg"),
                                       root / "Annotations" / f"{name}.xml") for name in names]
                for split, names in lists.items()}

    def find_root(self) -> Path:
        root = require_root(self.root, f"a folder with {LAYOUT}")
        if self.year is not None:
            if not (root / f"VOCdevkit/VOC{self.year}/Annotations").is_dir():
                for image_set in ("trainval", "test") if self.year == "2007" else ("trainval",):
                    fetch("VOCDetection", root, self.year, image_set, self.download)
            root = root / f"VOCdevkit/VOC{self.year}"
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such folder; it must have {LAYOUT}")
        return next((folder for folder in [root, *sorted(root.iterdir())] if (folder / "Annotations").is_dir()
                     and (folder / "ImageSets/Main").is_dir()), root)

    def read_list(self, root: Path, split: str) -> list[str]:
        """Reads the names of a split, none for val where trainval is trained on. Without a test list and without a
        `test_share`, val is the test split."""
        lists = root / "ImageSets/Main"
        has_test = (lists / "test.txt").is_file() or self.test_share is not None
        if not has_test and self.train_list == "trainval":
            raise DataError(f"{lists}: no test.txt, so val is the test split: data.train_list must be train")
        name = {"train": self.train_list, "val": "val" if has_test and self.train_list == "train" else "",
                "test": "test" if has_test else "val"}[split]
        file = lists / f"{name}.txt"
        return read_names(file, has_flags=True) if file.is_file() else []

    def read_photo(self, photo: AnnotatedPhoto, tree: Element) -> Photo:
        image, file = photo
        header, stated = read_header(image), tree.find("size")
        try:
            size = self.annotated_size(header, stated_size(stated), image.name)
        except AnnotationError as error:
            raise DataError(f"{file}:{(stated or tree).line}: {error}") from None
        objects = []
        for child in tree.children:
            if child.name != "object":
                continue
            label = child.text("name")
            if label not in self.class_names:
                raise DataError(f"{file}:{child.line}: class {label!r} is none of "
                                f"{readable(', '.join(self.class_names))}")
            bounds = child.find("bndbox")
            if bounds is None:
                raise DataError(f"{file}:{child.line}: an object must have a bndbox")
            try:
                box = self.read_box(bounds, size)
            except AnnotationError as error:
                raise DataError(f"{file}:{bounds.line}: {error}") from None
            if box is not None:
                is_difficult = child.text("difficult") == "1"
                objects.append(BoxObject(self.upright(box, header), self.class_names.index(label), is_difficult))
        return Photo.of(image, header.size, objects)

    def read_box(self, bounds: Element, size: tuple[int, int]) -> list[float] | None:
        """Returns (x1, y1, x2, y2), or None if the box is dropped."""
        values = []
        for side in SIDES:
            text = bounds.text(side)
            try:
                value = float(text or "")
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise AnnotationError(f"{side} must be a number, but is {text!r}")
            values.append(value)
        x1, y1, x2, y2 = values
        fault = f"xmax {x2:g} <= xmin {x1:g}" if x2 <= x1 else f"ymax {y2:g} <= ymin {y1:g}" if y2 <= y1 else ""
        upper_left = [0.0 if value == 0 else value - 1 for value in (x1, y1)]  # some files count from 0
        return self.clip_box([*upper_left, x2, y2], size, fault, f"{x1:g}, {y1:g}, {x2:g}, {y2:g}")


def stated_size(size: Element | None) -> tuple[int, int] | None:
    """(width, height); None where the annotation states none, or 0 x 0 as some tools do. Raises AnnotationError."""
    if size is None:
        return None
    texts = [size.text(side) or "" for side in ("width", "height")]
    try:
        width, height = (round(float(text)) for text in texts)
    except (ValueError, OverflowError):
        raise AnnotationError(f"width x height must be numbers, but is {readable(' x '.join(texts))}") from None
    return (width, height) if (width, height) != (0, 0) else None


class VocMasks(PhotosWithMasks):
    """Photos with masks in root/VOCdevkit/VOC2012. ImageSets/Segmentation's train is trained on, less a share for
    validation; its val is the test split, since the masks of its own test split are not public."""

    has_known_values = True

    def __init__(self, *, download: bool, **keys: Unpack[MaskKeys]):
        super().__init__(**keys)
        self.download = download

    def find_pairs(self, root: Path) -> dict[str, list[MaskPair]]:
        folder = root / "VOCdevkit/VOC2012"
        if not (folder / "SegmentationClass").is_dir():
            fetch("VOCSegmentation", root, "2012", "trainval", self.download)
        self.class_names = list(CLASSES)
        train, test = ([MaskPair(folder / f"JPEGImages/{name}.jpg", folder / f"SegmentationClass/{name}.png")
                        for name in read_names(folder / f"ImageSets/Segmentation/{image_set}.txt")]
                       for image_set in ("train", "val"))
        return {"train": train, "val": [], "test": test}


def fetch(dataset: str, root: Path, year: str, image_set: str, may_download: bool) -> None:
    """Downloads an official set by the name of its class in torchvision.datasets. Raises DataError."""
    construct = partial(getattr(torchvision.datasets, dataset), str(root), year, image_set, download=True)
    instruction = f"put VOCdevkit/VOC{year} of host.robots.ox.ac.uk/pascal/VOC there, or set data.root"
    download_dataset(construct, f"VOC{year}", root, instruction, may_download)


def read_annotation(photo: AnnotatedPhoto) -> Element:
    """The root element of its xml. Raises DataError, also where there is no such photo."""
    tree = read_xml(photo.annotation)
    if not exists(photo.image):
        name = no_image_called(photo.annotation.stem, photo.image.parent, ".jpg")
        raise DataError(f"{photo.annotation}: {name}")
    return tree


def read_xml(file: Path) -> Element:
    """Reads the root element. Raises DataError with the line."""
    try:
        if file.exists() and not file.is_file():
            raise DataError(f"{readable(str(file))}: {NO_FILE}")
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{readable(str(file))}: {error.strerror}") from None
    except ValueError as error:  # a name with a zero byte
        raise DataError(f"{readable(str(file))}: {error}") from None
    parser = xml.parsers.expat.ParserCreate()
    stack = [Element("", 0, [], [])]

    def start_element(name: str, _: dict[str, str]) -> None:
        stack.append(Element(name, parser.CurrentLineNumber, [], []))
        stack[-2].children.append(stack[-1])

    parser.StartElementHandler = start_element
    parser.EndElementHandler = lambda _: stack.pop()
    parser.CharacterDataHandler = lambda text: stack[-1].content.append(text)
    try:
        parser.Parse(raw, True)
    except xml.parsers.expat.ExpatError as error:
        raise DataError(f"{file}:{error.lineno}: not XML ({xml.parsers.expat.errors.messages[error.code]})") from None
    except (ValueError, LookupError) as error:  # an encoding that it does not know
        raise DataError(f"{file}:1: {error}; save it as UTF-8") from None
    return stack[0].children[0]
