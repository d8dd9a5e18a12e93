"""COCO (T.-Y. Lin et al., 2014, arXiv 1405.0312), its boxes and its captions, and a person's own files in its form: a
json file of images, annotations and categories, and a folder of images. A box there is x, y, width, height, from 0."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Unpack

import torch
from torchvision.ops import box_convert

from dltrain.data.captioning import CaptionedPhotos, CaptionLine, CaptionsByPhoto, PhotoCaptionKeys, group_by_photo
from dltrain.data.coco_json import Annotations, Entry, find_places
from dltrain.data.datamodule import SPLITS, require_root
from dltrain.data.detection import AnnotationError, BoxObject, Photo, PhotoBoxKeys, PhotosWithBoxes
from dltrain.errors import DataError
from dltrain.image_files import Header, read_header


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

    def find_photos(self) -> dict[str, list[Photo]]:
        root = require_root(self.root, "a folder with the json files and images; see data.train_json")
        photos: dict[str, list[Photo]] = {split: [] for split in SPLITS}
        for split, place in find_places(root, self.place_keys).items():
            file = Annotations(place.json)
            if split == "train":
                categories = sorted(file.entries("categories"), key=lambda entry: int(entry["id"]))
                self.set_class_names([str(file.value(entry, "name", "categories")) for entry in categories])
                self.vocabularies.setdefault("category_ids", [str(entry["id"]) for entry in categories])
            photos[split] = self.read_split(file, place.images)
        return photos

    def image_id(self, file: str, number: int) -> int | None:
        """The id of a photo of the json with the test photos, None for another one; if that json is not there, its
        number."""
        return self.test_ids.get(Path(file).resolve()) if self.test_ids is not None else number

    @cached_property
    def test_ids(self) -> dict[Path, int] | None:
        keys = self.place_keys
        if keys["train"][0] is not None and keys["test"][0] is not None:  # the json of train need not be there
            keys = {"train": keys["test"]}
        try:
            places = find_places(require_root(self.root, ""), keys)
        except DataError:  # the data may have moved since the run
            return None
        place = places.get("test", places["train"])
        file = Annotations(place.json)
        return {file.image_path(entry, place.images).resolve(): entry["id"] for entry in file.entries("images")}

    def category_id(self, label: int) -> int:
        """That of the training json; runs of earlier versions do not know it."""
        ids = self.vocabularies.get("category_ids")
        return int(ids[label]) if ids else label

    def read_split(self, file: Annotations, images: Path) -> list[Photo]:
        by_image: dict[int, list[Entry]] = {}
        for entry in file.entries("images"):
            if entry["id"] in by_image:
                raise DataError(f"{file.place(entry, 'images')}: two images have this id")
            by_image[entry["id"]] = []
        for entry in file.entries("annotations"):
            if file.value(entry, "image_id", "annotations") not in by_image:
                raise DataError(f"{file.place(entry, 'annotations')}: no image has the id {entry['image_id']}")
            by_image[entry["image_id"]].append(entry)
        classes = {name: label for label, name in enumerate(self.class_names)}
        labels = {entry["id"]: classes[name] for entry in file.entries("categories")
                  if (name := str(file.value(entry, "name", "categories"))) in classes}
        photos = []
        for entry in file.entries("images"):
            image = file.image_path(entry, images)
            header = self.check_size(file, entry, image)
            photos.append(Photo.of(image, header.size, self.read_objects(file, by_image[entry["id"]], header, labels)))
        return photos

    def check_size(self, file: Annotations, entry: Entry, image: Path) -> Header:
        """Raises DataError if the image does not exist or has another size than the json states."""
        if not image.is_file():
            raise DataError(f"{file.place(entry, 'images')}: no image {image}")
        header = read_header(image)
        stated = (entry["width"], entry["height"]) if {"width", "height"} <= {*entry} else None
        try:
            self.annotated_size(header, stated, image.name)
        except AnnotationError as error:
            raise DataError(f"{file.place(entry, 'images')}: {error}") from None
        return header

    def read_objects(self, file: Annotations, entries: list[Entry], header: Header,
                     labels: dict[int, int]) -> list[BoxObject]:
        """The objects of one image, without those that are dropped. `labels`: the label of each category id."""
        for entry in entries:
            if file.value(entry, "category_id", "annotations") not in labels:
                raise DataError(f"{file.place(entry, 'annotations')}: category_id {entry['category_id']} is none of "
                                f"the {len(self.class_names)} categories ({', '.join(self.class_names[:8])})")
            numbers = file.value(entry, "bbox", "annotations")
            if type(numbers) is not list or len(numbers) != 4 or not all(
                    type(value) in (int, float) and math.isfinite(value) for value in numbers):
                raise DataError(f"{file.place(entry, 'annotations')}: bbox must be four numbers, but is {numbers}")
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
            paths = {entry["id"]: file.image_path(entry, place.images) for entry in file.entries("images")}
            lines = []
            for entry in file.entries("annotations"):
                path = paths.get(file.value(entry, "image_id", "annotations"))
                if path is None:
                    raise DataError(f"{file.place(entry, 'annotations')}: no image has the id {entry['image_id']}")
                line = f"{file.file} (annotations id {entry.get('id')})"
                lines.append(CaptionLine(line, path, str(file.value(entry, "caption", "annotations"))))
            splits[split] = group_by_photo(lines)
        return splits
