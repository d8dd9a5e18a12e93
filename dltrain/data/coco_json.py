"""Json files in COCO's form: their entries with the line of each, and where the splits of a data set have theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dltrain.data.datamodule import SPLITS
from dltrain.data.images import resolve_below
from dltrain.data.splits import find_split_folders
from dltrain.errors import DataError
from dltrain.image_files import is_hidden

Entry = dict[str, Any]  # an image, annotation or category of the json file


class Annotations:
    """A json file with the lists named in `kinds`. Errors state the line of an entry."""

    def __init__(self, file: Path, kinds: tuple[str, ...] = ("images", "annotations", "categories")):
        self.file, self.kinds = file, kinds
        try:
            self.text = file.read_text(encoding="utf-8")
            self.content = json.loads(self.text)
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 at byte {error.start}") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None
        for kind in kinds:
            if type(self.content) is not dict or type(self.content.get(kind)) is not list:
                raise DataError(f"{file}: must have a list '{kind}'")
            for entry in self.content[kind]:
                if kind != "annotations" or "id" in entry:
                    self.value(entry, "id", kind)

    def entries(self, kind: str) -> list[Entry]:
        entries: list[Entry] = self.content[kind]
        return entries

    def value(self, entry: Entry, key: str, kind: str) -> Any:
        if key not in entry:
            raise DataError(f"{self.place(entry, kind)}: must have '{key}'")
        return entry[key]

    def image_path(self, entry: Entry, folder: Path) -> Path:
        """The file of an image. Raises DataError for a path that leaves the folder."""
        try:
            return resolve_below(folder, str(self.value(entry, "file_name", "images")))
        except ValueError as error:
            raise DataError(f"{self.place(entry, 'images')}: {error}") from None

    def place(self, entry: Entry, kind: str) -> str:
        """The file, line, kind and id of an entry, for a message."""
        start = self.text.find(f'"{kind}"')
        ends = [match.start() for other in self.kinds if (match := re.search(f'"{other}"', self.text[start + 1 :]))]
        end = start + 1 + min(ends, default=len(self.text))
        pattern = re.compile(rf'"id"\s*:\s*{re.escape(json.dumps(entry.get("id")))}\s*[,}}]')
        match = pattern.search(self.text, start, end)
        line = self.text.count("\n", 0, match.start() if match else max(start, 0)) + 1
        return f"{self.file}:{line} ({kind} id {entry.get('id')})"


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
                      if split == "train" else f"data.{split}_json=null holds photos of train out")
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
