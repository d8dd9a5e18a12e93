"""Json files in COCO's form: their entries with the line of each, and where the splits of a data set have theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dltrain.data.datamodule import SPLITS
from dltrain.data.faults import read_each
from dltrain.data.images import resolve_below
from dltrain.data.splits import find_split_folders
from dltrain.data.texts import read_text
from dltrain.errors import DataError
from dltrain.image_files import is_hidden

Entry = dict[str, Any]  # an image, annotation or category of the json file
ID = (int, float, str)  # the types of ids
ID_IN_TEXT = re.compile(r'"id"\s*:\s*("(?:[^"\\]|\\.)*"|[^\s,}\]"]+)\s*[,}]')
T = TypeVar("T")


class Annotations:
    """A json file with the lists named in `kinds`. Errors state the line of an entry."""

    def __init__(self, file: Path, kinds: tuple[str, ...] = ("images", "annotations", "categories")):
        self.file, self.kinds, self.text = file, kinds, read_text(file)
        self.lines: dict[str, dict[str, int]] = {}  # by kind, where an error has asked for them
        try:
            self.content = json.loads(self.text)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in a list in a list ...
            raise DataError(f"{file}: not JSON ({error})") from None
        for kind in kinds:
            if type(self.content) is not dict or type(self.content.get(kind)) is not list:
                raise DataError(f"{file}: must have a list '{kind}'")
        for kind in kinds:
            read_each([*enumerate(self.content[kind])], partial(self.check_entry, kind), kind)

    def check_entry(self, kind: str, numbered: tuple[int, Any]) -> None:
        number, entry = numbered
        if type(entry) is not dict:
            raise DataError(f"{self.file}: number {number} of '{kind}' must be {{...}}, but is {shorten(entry)}")
        if kind != "annotations" or "id" in entry:
            self.value(entry, "id", kind, ID, "a number or text")

    def entries(self, kind: str) -> list[Entry]:
        entries: list[Entry] = self.content[kind]
        return entries

    def value(self, entry: Entry, key: str, kind: str, types: tuple[type, ...], expected: str) -> Any:
        """Raises DataError for a value that is missing or of a type other than `types`, `expected` in words."""
        if key not in entry:
            raise DataError(f"{self.place(entry, kind)}: must have '{key}'")
        if type(entry[key]) not in types:
            raise DataError(f"{self.place(entry, kind)}: {key} must be {expected}, but is {shorten(entry[key])}")
        return entry[key]

    def by_id(self, folder: Path) -> dict[Any, Path]:
        """The file of each image. Raises DataError where two have one id or one file."""
        paths: dict[Any, Path] = {}
        ids: dict[Path, Any] = {}

        def add(entry: Entry) -> None:
            if entry["id"] in paths:
                raise DataError(f"{self.place(entry, 'images')}: two images have this id")
            path = self.image_path(entry, folder)
            if path in ids:
                raise DataError(f"{self.place(entry, 'images')}: its file {entry['file_name']} is that of id "
                                f"{shorten(ids[path])} too")
            paths[entry["id"]], ids[path] = path, entry["id"]

        read_each(self.entries("images"), add, "images")
        return paths

    def image_of(self, annotation: Entry, known: Mapping[Any, T]) -> T:
        """What is known of the image of an annotation. Raises DataError where it has none."""
        if (number := self.value(annotation, "image_id", "annotations", ID, "a number or text")) not in known:
            raise DataError(f"{self.place(annotation, 'annotations')}: no image has the id {shorten(number)}")
        return known[number]

    def image_path(self, entry: Entry, folder: Path) -> Path:
        """The file of an image. Raises DataError for a path that leaves the folder."""
        try:
            return resolve_below(folder, self.value(entry, "file_name", "images", (str,), "text"))
        except ValueError as error:
            raise DataError(f"{self.place(entry, 'images')}: {error}") from None

    def place(self, entry: Entry, kind: str) -> str:
        """The file, line, kind and id of an entry, for a message."""
        if kind not in self.lines:
            self.lines[kind] = self.find_lines(kind)
        lines, number = self.lines[kind], json.dumps(entry.get("id"))
        return f"{self.file}:{lines.get(number, lines[''])} ({kind} id {shorten(entry.get('id'))})"

    def find_lines(self, kind: str) -> dict[str, int]:
        """The line of each id of a kind, as the file has it; at "" that where the list begins. All at once: there may
        be as many faults as entries."""
        start = max(self.text.find(f'"{kind}"'), 0)
        ends = [place for other in self.kinds if (place := self.text.find(f'"{other}"', start + 1)) >= 0]
        line, counted = self.text.count("\n", 0, start) + 1, start
        lines = {"": line}
        for match in ID_IN_TEXT.finditer(self.text, start, min(ends, default=len(self.text))):
            line += self.text.count("\n", counted, match.start())
            counted = match.start()
            lines.setdefault(match[1], line)
        return lines


def shorten(value: object) -> str:
    """As json has it, on one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Place(NamedTuple):
    """The json file of a split, and the folder that its file names are below."""

    json: Path
    images: Path


PlaceKeys = Mapping[str, tuple[str | None, str | None]]  # data.<split>_json and data.<split>_images by split


def find_places(root: Path, keys: PlaceKeys) -> dict[str, Place]:
    """Those of the splits that have a json, train first. Without a train_json each folder named as a split has a json
    and its photos. Raises DataError where a json is not there."""
    if keys["train"][0] is None:
        return find_places_in_folders(root)
    places = {}
    for split, (name, images) in keys.items():
        if name is None:
            continue
        file = root / name
        if not file.is_file():
            advice = ("data.train_json=null reads the json in each of the folders train, val and test"
                      if split == "train" else f"data.{split}_json=null holds out photos of train")
            raise DataError(f"data.{split}_json={name}: no file {file}; {advice}")
        places[split] = Place(file, root / images if images is not None else file.parent)
    return places


def find_places_in_folders(root: Path) -> dict[str, Place]:
    if not root.is_dir():
        raise DataError(f"data.root={root}: no such folder")
    folders, places = find_split_folders(root), {}
    for split in SPLITS:
        if (folder := folders.get(split)) is None:
            continue
        files = [path for path in sorted(folder.glob("*.json")) if not is_hidden(path.name)]
        if len(files) != 1:
            names = ", ".join(path.name for path in files[:3]) or "none"
            raise DataError(f"{folder}: must have one json file, since data.train_json=null, but has {names}")
        places[split] = Place(files[0], folder)
    if not places:
        raise DataError(f"data.root={root}: no folder train; data.train_json=null reads the json in each of the "
                        "folders train, val and test")
    return places
