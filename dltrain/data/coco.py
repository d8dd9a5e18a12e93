"""COCO (T.-Y. Lin et al., 2014, arXiv 1405.0312), its boxes and its captions, and a person's own files in its form: a
json file of images, annotations and categories, and a folder of images. A box there is x, y, width, height, from 0."""

from __future__ import annotations

import filecmp
import sys
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torchvision.ops import box_convert

from dltrain.data.captioning import CaptionedPhotos, CaptionLine, CaptionsByPhoto, PhotoCaptionKeys, group_by_photo
from dltrain.data.coco_json import ID, Annotations, Entry, find_places, shorten
from dltrain.data.datamodule import SPLITS, require_root
from dltrain.data.detection import AnnotationError, BoxObject, Photo, PhotoBoxKeys, PhotoFile, PhotosWithBoxes
from dltrain.data.faults import read_each, refuse
from dltrain.errors import DataError
from dltrain.image_files import Header, exists, no_image, read_header, readable

LARGEST = 1e9  # of a coordinate in pixels; NaN is not below it


class Ids(NamedTuple):
    """Those of a json file: of its photos, and of its categories by their names. `by_name`: a photo of each file name.
    """

    photos: dict[Path, int]
    by_name: dict[str, Path]
    categories: dict[str, int]


class CocoBoxes(PhotosWithBoxes):
    """Photos with the boxes of a json file for each split, and a folder of images for each; all are below `root`. A
    split without a json is held out of train. COCO's val is the test split, since the boxes of its own test split are
    not public. The classes are the categories of the training json in the order of their ids; crowds are ignored
    objects."""

    def __init__(self, *, train_json: str | None, train_images: str | None, test_json: str | None,
                 test_images: str | None, val_json: str | None = None, val_images: str | None = None,
                 **keys: Unpack[PhotoBoxKeys]):
        super().__init__(**keys)
        self.place_keys = {"train": (train_json, train_images), "val": (val_json, val_images),
                           "test": (test_json, test_images)}

    def find_photos(self) -> dict[str, list[PhotoFile]]:
        root = require_root(self.root, "a folder with the json files and images; see data.train_json")
        photos: dict[str, list[PhotoFile]] = {split: [] for split in SPLITS}
        for split, place in find_places(root, self.place_keys).items():
            file = Annotations(place.json)
            if split == "train":
                categories = read_each(file.entries("categories"), partial(read_category, file), "categories")
                categories.sort(key=lambda category: category[0])
                self.set_class_names([name for _, name in categories])
                self.vocabularies.setdefault("category_ids", [str(number) for number, _ in categories])
            photos[split] = self.read_split(file, place.images)
        return photos

    def image_id(self, file: str, number: int) -> int | None:
        """The id of a photo of the json with the test photos, or of a copy of one with its name, None for another one;
        if that json is not there, its number."""
        if self.test_ids is None:
            return number
        path, photos = Path(file).resolve(), self.test_ids.photos
        if path in photos:
            return photos[path]
        original = self.test_ids.by_name.get(path.name)
        is_copy = original is not None and exists(original) and filecmp.cmp(path, original, shallow=False)
        return photos[original] if original is not None and is_copy else None

    def category_id(self, label: int) -> int:
        """That of the same json, or else of the training json; runs of earlier versions do not know it."""
        ids = self.vocabularies.get("category_ids")
        known = self.test_ids.categories if self.test_ids is not None else {}
        return known.get(self.class_names[label], int(ids[label]) if ids else label)

    @cached_property
    def test_ids(self) -> Ids | None:
        keys = self.place_keys
        if keys["train"][0] is not None and keys["test"][0] is not None:  # the json of train need not be there
            keys = {"train": keys["test"]}
        try:
            places = find_places(require_root(self.root, ""), keys)
        except DataError as error:  # the data may have moved since the run
            print(f"dltrain: image_id is the number of the input, not an id of data.root={self.root}: {error}",
                  file=sys.stderr)
            return None
        place = places.get("test", places["train"])
        file = Annotations(place.json)
        photos = {file.image_path(entry, place.images).resolve(): entry["id"] for entry in file.entries("images")}
        return Ids(photos, {path.name: path for path in photos},
                   {category_name(file, entry): category_number(file, entry) for entry in file.entries("categories")})

    def read_split(self, file: Annotations, images: Path) -> list[PhotoFile]:
        paths = file.by_id(images)
        by_image: dict[Any, list[Entry]] = {number: [] for number in paths}
        annotations = file.entries("annotations")
        images_of = read_each(annotations, lambda entry: file.image_of(entry, by_image), "annotations")
        for entry, entries in zip(annotations, images_of, strict=True):
            entries.append(entry)
        classes = {name: label for label, name in enumerate(self.class_names)}
        labels = {entry["id"]: classes[name] for entry in file.entries("categories")
                  if (name := category_name(file, entry)) in classes}
        missing = [f"{file.place(entry, 'images')}: {no_image(path)}" for entry in file.entries("images")
                   if not exists(path := paths[entry["id"]])]
        refuse(missing, f"{len(missing)} of {len(paths)} photos are missing")
        return [PhotoFile(paths[entry["id"]], partial(self.read_photo, file, entry, paths[entry["id"]],
                                                      by_image[entry["id"]], labels))
                for entry in file.entries("images")]

    def read_photo(self, file: Annotations, entry: Entry, image: Path, annotations: list[Entry],
                   labels: dict[Any, int]) -> Photo:
        header = self.check_size(file, entry, image)
        return Photo.of(image, header.size, self.read_objects(file, annotations, header, labels))

    def check_size(self, file: Annotations, entry: Entry, image: Path) -> Header:
        """Raises DataError if the image has another size than the json states."""
        header, stated = read_header(image), None
        if {"width", "height"} <= {*entry}:
            stated = tuple(file.value(entry, side, "images", (int, float), "a number") for side in ("width", "height"))
        try:
            self.annotated_size(header, stated, image.name)
        except AnnotationError as error:
            raise DataError(f"{file.place(entry, 'images')}: {error}") from None
        return header

    def read_objects(self, file: Annotations, entries: list[Entry], header: Header,
                     labels: dict[Any, int]) -> list[BoxObject]:
        """The objects of one image, without those that are dropped. `labels`: the label of each category id."""
        for entry in entries:
            if file.value(entry, "category_id", "annotations", ID, "a number") not in labels:
                raise DataError(f"{file.place(entry, 'annotations')}: category_id {entry['category_id']} is none of "
                                f"the {len(self.class_names)} categories ({readable(', '.join(self.class_names[:8]))})")
            numbers = file.value(entry, "bbox", "annotations", (list,), "four numbers")
            if len(numbers) != 4 or not all(type(value) in (int, float) and abs(value) < LARGEST for value in numbers):
                raise DataError(f"{file.place(entry, 'annotations')}: bbox must be four numbers, but is "
                                f"{shorten(numbers)}")
            if entry.get("iscrowd", 0) not in (0, 1):
                raise DataError(f"{file.place(entry, 'annotations')}: iscrowd must be 0 or 1, but is "
                                f"{shorten(entry['iscrowd'])}")
        size = self.annotated_size(header, None, "")
        boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float64).reshape(-1, 4)
        objects = []
        for entry, corners in zip(entries, box_convert(boxes, "xywh", "xyxy").tolist(), strict=True):
            try:
                box = self.clip_corners(corners, entry["bbox"], size)
            except AnnotationError as error:
                raise DataError(f"{file.place(entry, 'annotations')}: {error}") from None
            if box is not None:
                is_crowd = bool(entry.get("iscrowd", 0))
                objects.append(BoxObject(self.upright(box, header), labels[entry["category_id"]], is_crowd))
        return objects

    def clip_corners(self, corners: list[float], box: list[float], size: tuple[int, int]) -> list[float] | None:
        """Returns (x1, y1, x2, y2), or None if the box is dropped. A rounding error beyond the border is no fault."""
        _, _, w, h = box
        fault = f"width {w:g} must be above 0" if w <= 0 else f"height {h:g} must be above 0" if h <= 0 else ""
        snapped = [snap_to_border(value, edge) for value, edge in zip(corners, size * 2, strict=True)]
        return self.clip_box(snapped, size, fault, ", ".join(f"{value:g}" for value in box))


def read_category(file: Annotations, entry: Entry) -> tuple[int, str]:
    return category_number(file, entry), category_name(file, entry)


def category_number(file: Annotations, entry: Entry) -> int:
    try:
        return int(entry["id"])
    except (ValueError, OverflowError):
        raise DataError(f"{file.place(entry, 'categories')}: id must be a whole number") from None


def category_name(file: Annotations, entry: Entry) -> str:
    """A number is a name too."""
    return str(file.value(entry, "name", "categories", (str, int), "text"))


def snap_to_border(value: float, edge: int) -> float:
    """Moves a coordinate that is outside of [0, edge] by less than half a pixel onto the border."""
    return min(max(value, 0.0), float(edge)) if -0.5 < value < edge + 0.5 else value


class CocoCaptions(CaptionedPhotos):
    """Photos with the captions of a json file for each split, as CocoBoxes has them. COCO's val is the test split."""

    def __init__(self, *, train_json: str | None, train_images: str | None, test_json: str | None,
                 test_images: str | None, val_json: str | None = None, val_images: str | None = None,
                 **keys: Unpack[PhotoCaptionKeys]):
        super().__init__(**keys)
        self.place_keys = {"train": (train_json, train_images), "val": (val_json, val_images),
                           "test": (test_json, test_images)}

    def find_captions(self, root: Path) -> dict[str, CaptionsByPhoto]:
        splits: dict[str, CaptionsByPhoto] = {split: {} for split in SPLITS}
        for split, place in find_places(root, self.place_keys).items():
            file = Annotations(place.json, ("images", "annotations"))
            paths = file.by_id(place.images)
            lines = read_each(file.entries("annotations"), partial(self.read_line, file, paths), "annotations")
            splits[split] = group_by_photo(lines)
            self.leave_out("a photo without a caption", [path for path in paths.values() if path not in splits[split]])
        return splits

    def read_line(self, file: Annotations, paths: dict[Any, Path], entry: Entry) -> CaptionLine:
        return CaptionLine(f"{file.file} (annotations id {shorten(entry.get('id'))})", file.image_of(entry, paths),
                           file.value(entry, "caption", "annotations", (str,), "text"))
