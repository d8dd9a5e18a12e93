"""Photos with captions from text files: Flickr8k, or a person's own `path<TAB>caption` lines.

Each fault of a caption or its photo is reported with file and line before the first step.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from dltrain.data.captioning import CaptionedPhotos, CaptionLine, CaptionsByPhoto, group_by_photo
from dltrain.data.datamodule import SPLITS
from dltrain.data.faults import refuse
from dltrain.data.images import resolve_below
from dltrain.data.splits import split_randomly
from dltrain.data.texts import read_lines, read_text
from dltrain.errors import DataError


class Flickr8k(CaptionedPhotos):
    """Flickr8k in its original files (M. Hodosh et al., 2013), which are Flickr8k.token.txt,
    Flickr_8k.{train,dev,test}Images.txt and Flicker8k_Dataset/, or captions.txt (image,caption), {train,val,test}.txt
    and images/. Splits without a list are held out of train, or of all photos if there are no lists."""

    def find_captions(self, root: Path) -> dict[str, CaptionsByPhoto]:
        captions = group_by_photo(self.read_captions(root))
        by_name = {path.name: path for path in captions}
        lists = {split: self.read_list(root, split, by_name) for split in SPLITS}
        if not lists["train"]:
            return split_unlisted(captions, self.test_share)
        if not lists["test"] and self.test_share is None:
            lists["test"], lists["val"] = lists["val"], {}
        for split, other in (("val", "train"), ("test", "train"), ("test", "val")):
            for path in lists[split].keys() & lists[other].keys():
                raise DataError(f"{lists[split][path]}: {path.name} is in {lists[other][path]} too")
        return {split: {path: captions[path] for path in lists[split]} for split in SPLITS}

    def read_captions(self, root: Path) -> Iterator[CaptionLine]:
        file = find_first(root, ("captions.txt", "Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt"))
        images = find_first(root, ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset"))
        for place, name, text in read_csv(file) if file.name == "captions.txt" else read_tokens(file):
            try:
                yield CaptionLine(place, resolve_below(images, name), text)
            except ValueError as error:
                raise DataError(f"{place}: {error}") from None

    def read_list(self, root: Path, split: str, by_name: dict[str, Path]) -> dict[Path, str]:
        """Maps each photo in a split's list to the file:line that lists it; empty if there is no list."""
        name = {"val": "dev"}.get(split, split)
        candidates = [root / file for file in (f"{split}.txt", f"Flickr_8k.{name}Images.txt",
                                               f"Flickr8k_text/Flickr_8k.{name}Images.txt")]
        places: dict[Path, str] = {}
        for file in [file for file in candidates if file.is_file()][:1]:
            for number, line in read_lines(file):
                place, path = f"{file}:{number}", by_name.get(line.strip())
                if path is None:
                    raise DataError(f"{place}: {line.strip()} has no caption")
                if path in places:
                    raise DataError(f"{place}: {path.name} is listed already, at {places[path]}")
                places[path] = place
        return places


def read_csv(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yields the place, the name of the photo and the caption of each row."""
    rows = csv.reader(io.StringIO(read_text(file)), strict=True)
    last = 0
    try:
        if [column.strip() for column in next(rows, [])] != ["image", "caption"]:
            raise DataError(f"{file}:1: must be image,caption")
        last = rows.line_num
        for row in rows:
            last, place = rows.line_num, f"{file}:{rows.line_num}"
            if row and len(row) != 2:
                raise DataError(f"{place}: must be image,caption, but has {len(row)} columns")
            if row:
                yield place, row[0], row[1]
    except csv.Error as error:
        raise DataError(f"{file}:{last + 1}: a quotation mark that is not closed, or stands alone ({error}); write two "
                        "inside a quoted caption") from None


def read_tokens(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yields the place, the name of the photo and the caption of each line."""
    for number, line in read_lines(file):
        match = re.fullmatch(r"([^\t#]+)#\d+\t(.*)", line)
        if match is None:
            raise DataError(f"{file}:{number}: must be name.jpg#0<TAB>caption, but is {line[:40]!r}")
        yield f"{file}:{number}", match[1], match[2]


class CaptionLines(CaptionedPhotos):
    """`root` is a file of `path<TAB>caption` lines, a path being relative to the file; a photo may have several lines.
    The test split and val are held out of all photos."""

    def find_captions(self, root: Path) -> dict[str, CaptionsByPhoto]:
        lines, faults = [], []
        for number, line in read_lines(root):
            name, tab, text = line.partition("\t")
            if not tab:
                faults.append(f"{root}:{number}: must be path<TAB>caption, but is {line[:40]!r}")
            lines.append(CaptionLine(f"{root}:{number}", root.parent / name.strip(), text))
        refuse(faults, f"{len(faults)} of {len(lines)} lines have no caption")
        return split_unlisted(group_by_photo(lines), self.test_share)


def split_unlisted(captions: CaptionsByPhoto, test_share: float | None) -> dict[str, CaptionsByPhoto]:
    """Photos of which no list names a split, all in train; runs of earlier versions, which have no `test_share`, split
    them 80 : 10 : 10."""
    if test_share is not None:
        return {"train": captions, "val": {}, "test": {}}
    return {split: {path: captions[path] for path in paths} for split, paths in
            split_randomly(list(captions)).items()}


def find_first(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_file() or (root / name).is_dir():
            return root / name
    raise DataError(f"data.root={root}: must have {' or '.join(names)}")
