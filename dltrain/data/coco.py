"""Photographs with boxes in the form of COCO (T.-Y. Lin et al., 2014, arXiv 1405.0312): a json file of images,
annotations and categories, and a folder of images. A box there is x, y, width, height, from 0."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from dltrain.data.detection import Fault, Photo, PhotoBoxes, photo, size_of
from dltrain.errors import DataError


class CocoBoxes(PhotoBoxes):
    """`train_json` and `test_json` (COCO's val: the test split has no public boxes), `train_images` and `test_images`:
    below `root`. The classes are the training json's categories in the order of their ids; a crowd is set aside."""

    def __init__(self, *, train_json: str, train_images: str, test_json: str, test_images: str, **keys: Any):
        super().__init__(**keys)
        self.places = {"train": (train_json, train_images), "test": (test_json, test_images)}

    def photos_of(self) -> dict[str, list[Photo]]:
        if self.root is None:
            raise DataError("data.root must be given: a folder with the json files and images; see data.train_json")
        root, found = Path(self.root).expanduser(), {"val": list[Photo]()}
        for split, (name, images) in self.places.items():
            file = Annotations(root / name)
            if split == "train":
                self.name_classes([str(file.value(one, "name", "categories")) for one in
                                   sorted(file.all("categories"), key=lambda one: int(one["id"]))])
            found[split] = self.read_split(file, root / images)
        return found

    def read_split(self, file: Annotations, images: Path) -> list[Photo]:
        categories = {one["id"]: str(one["name"]) for one in file.all("categories")}
        known = {one["id"] for one in file.all("images")}
        mine: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for one in file.all("annotations"):
            if file.value(one, "image_id", "annotations") not in known:
                raise DataError(f"{file.at(one, 'annotations')}: no image has the id {one['image_id']}")
            mine[one["image_id"]].append(one)
        labels = {name: number for number, name in enumerate(self.class_names)}
        found = []
        for one in file.all("images"):
            name = str(file.value(one, "file_name", "images"))
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DataError(f"{file.at(one, 'images')}: '{name}' must be a name below {images}")
            if not (images / name).is_file():
                raise DataError(f"{file.at(one, 'images')}: no image {images / name}")
            size = size_of(images / name)
            stated = (one.get("width", size[0]), one.get("height", size[1]))
            if stated != size:
                raise DataError(f"{file.at(one, 'images')}: width x height must be {size[0]} x {size[1]} as {name}'s, "
                                f"but is {stated[0]} x {stated[1]}")
            objects = []
            for thing in mine[one["id"]]:
                category = categories.get(file.value(thing, "category_id", "annotations"))
                if category not in labels:
                    raise DataError(f"{file.at(thing, 'annotations')}: category_id {thing['category_id']} is none of "
                                    f"the {len(labels)} categories ({', '.join(self.class_names[:8])})")
                try:
                    box = self.box(file.value(thing, "bbox", "annotations"), size)
                except Fault as fault:
                    raise DataError(f"{file.at(thing, 'annotations')}: {fault}") from None
                if box is not None:
                    objects.append((box, labels[category], bool(thing.get("iscrowd", 0))))
            found.append(photo(images / name, size, objects))
        return found

    def box(self, given: Any, size: tuple[int, int]) -> list[float] | None:
        """(x1, y1, x2, y2), or None for one that is dropped. What sticks out by a rounding is cut in silence."""
        if not isinstance(given, list) or len(given) != 4 or not all(
                isinstance(v, (int, float)) and math.isfinite(v) for v in given):
            raise Fault(f"bbox must be four numbers, but is {given}")
        x, y, w, h = given
        empty = f"width {w:g} must be above 0" if w <= 0 else f"height {h:g} must be above 0" if h <= 0 else ""
        corners = [cut(value, edge) for value, edge in zip((x, y, x + w, y + h), size * 2, strict=True)]
        return self.placed(corners, size, empty, ", ".join(f"{v:g}" for v in given))


def cut(value: float, edge: int) -> float:
    """A coordinate that is outside of [0, edge] by less than half a pixel is put on the border."""
    return min(max(value, 0.0), float(edge)) if -0.5 < value < edge + 0.5 else float(value)


class Annotations:
    """The json file with the lists of these `kinds`, and where in it something stands."""

    def __init__(self, file: Path, kinds: tuple[str, ...] = ("images", "annotations", "categories")):
        self.file, self.kinds = file, kinds
        try:
            self.text = file.read_text(encoding="utf-8")
            self.read = json.loads(self.text)
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 at byte {error.start}") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None
        for kind in kinds:
            if not isinstance(self.read, dict) or not isinstance(self.read.get(kind), list):
                raise DataError(f"{file}: must have a list '{kind}'")
            for one in self.read[kind]:
                if kind != "annotations" or "id" in one:
                    self.value(one, "id", kind)

    def all(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.read[kind]
        return found

    def value(self, one: dict[str, Any], key: str, kind: str) -> Any:
        if key not in one:
            raise DataError(f"{self.at(one, kind)}: must have '{key}'")
        return one[key]

    def at(self, one: dict[str, Any], kind: str) -> str:
        """file:line (kind id), for a message."""
        start = self.text.find(f'"{kind}"')
        begins = [match.start() for other in self.kinds
                  if (match := re.search(f'"{other}"', self.text[start + 1 :]))]
        end = start + 1 + min(begins, default=len(self.text))
        said = re.compile(rf'"id"\s*:\s*{re.escape(json.dumps(one.get("id")))}\s*[,}}]').search(self.text, start, end)
        line = self.text.count("\n", 0, said.start() if said else max(start, 0)) + 1
        return f"{self.file}:{line} ({kind} id {one.get('id')})"
