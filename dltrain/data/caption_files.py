"""Photographs with captions from files: Flickr8k's own, COCO's json, or a person's `path<TAB>caption` lines.

Whatever is wrong with a caption or its photo is named by file and line before the first step.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dltrain.batches import UNKNOWN, generator
from dltrain.data.captioning import Captions
from dltrain.data.classification import read_image
from dltrain.data.coco import Annotations
from dltrain.data.image_folder import check_headers
from dltrain.data.sequences import SPLITS, drawn_splits, encoder, lines_of
from dltrain.data.vocabulary import read_text
from dltrain.errors import DataError


class Line(NamedTuple):
    """A caption, and the file and line where it stands."""

    at: str
    image: Path
    text: str


Photos = dict[Path, list[Line]]


class PhotoCaptions(Captions):
    """A subclass says `splits`. `bad_captions`: one that is empty, stands twice or has no known word is refused by file
    and line, or dropped and counted. Photos are scaled to their central square of image_px."""

    def __init__(self, *, root: str | None, val_share: float, bad_captions: str, num_workers: int, **keys: Any):
        super().__init__(**keys)
        self.root, self.val_share, self.num_workers = root, val_share, num_workers
        self.drops, self.dropped = bad_captions == "drop", 0
        self.files: dict[str, list[Path]] = {}

    def splits(self, root: Path) -> dict[str, Photos]:
        """The captions of each photo, by split, that of val empty where a share of train is to be held out."""
        raise NotImplementedError

    def described(self) -> dict[str, list[list[str]]]:
        if self.root is None:
            raise DataError("data.root must be given: the folder or file with the photos' captions")
        splits = self.splits(Path(self.root).expanduser())
        if not splits["val"]:
            order = list(splits["train"])
            drawn = torch.randperm(len(order), generator=generator("split", "captions")).tolist()
            for number in sorted(drawn[: max(1, round(self.val_share * len(order)))]):
                splits["val"][order[number]] = splits["train"].pop(order[number])
        kept = {split: {image: self.sound(lines) for image, lines in splits[split].items()} for split in SPLITS}
        if "words" not in self.vocabularies:
            self.vocabularies["words"] = self.tokenizer.vocabulary(
                [line.text for lines in kept["train"].values() for line in lines])
        encode = encoder(self.tokenizer, self.vocabularies["words"])
        texts: dict[str, list[list[str]]] = {}
        for split in SPLITS:
            known = {image: self.known(lines, encode) for image, lines in kept[split].items()}
            self.files[split] = [image for image, lines in known.items() if lines]
            texts[split] = [[line.text for line in lines] for lines in known.values() if lines]
        check_headers([image for split in SPLITS for image in self.files[split]])
        return texts

    def sound(self, lines: list[Line]) -> list[Line]:
        """Those that are not empty and not said before."""
        kept: dict[str, Line] = {}
        for line in lines:
            tokens = " ".join(self.tokenizer.split(line.text))
            if not tokens:
                self.fault(line, "the caption is empty")
            elif tokens in kept:
                self.fault(line, f"{line.image.name} has this caption already, at {kept[tokens].at}")
            else:
                kept[tokens] = line
        return list(kept.values())

    def known(self, lines: list[Line], encode: Any) -> list[Line]:
        kept = []
        for line in lines:
            if all(number == UNKNOWN for number in encode(line.text)):
                self.fault(line, f"no word of {line.text.strip()[:40]!r} is in the vocabulary")
            else:
                kept.append(line)
        return kept

    def fault(self, line: Line, why: str) -> None:
        if not self.drops:
            raise DataError(f"{line.at}: {why}; data.bad_captions=drop leaves such captions out")
        self.dropped += 1

    def describe(self) -> str:
        return super().describe() + (f"; {self.dropped} captions dropped" if self.dropped else "")

    def pictures(self, split: str, batches: list[Tensor]) -> Iterator[Tensor]:
        """Workers read ahead; the images are the same with any number of them."""
        yield from DataLoader(Decoded(self.files[split], self.channels, self.image_px), num_workers=self.num_workers,
                              batch_sampler=[batch.tolist() for batch in batches], generator=torch.Generator())

    def write_samples(self, folder: Path) -> str:
        for file in self.files["test"][:4]:
            (folder / file.name).write_bytes(file.read_bytes())
        return f"input={folder}"


class Decoded(Dataset[Tensor]):
    def __init__(self, files: list[Path], channels: int, image_px: int):
        self.files, self.channels, self.image_px = files, channels, image_px

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.files[index], self.channels, self.image_px)


def by_image(lines: Iterable[Line]) -> Photos:
    """Raises DataError for a photo that is not there."""
    found: Photos = {}
    for line in lines:
        if line.image not in found and not line.image.is_file():
            raise DataError(f"{line.at}: no image {line.image}")
        found.setdefault(line.image, []).append(line)
    return found


class Flickr8k(PhotoCaptions):
    """The original files (M. Hodosh et al., 2013): Flickr8k.token.txt, Flickr_8k.{train,dev,test}Images.txt and
    Flicker8k_Dataset/, or captions.txt (image,caption), {train,val,test}.txt and images/. Without lists 80, 10 and 10 %
    of the photos; without a test list val is the test split, and a share of train is held out."""

    def splits(self, root: Path) -> dict[str, Photos]:
        every = by_image(self.lines(root))
        lists = {split: self.listed(root, split, {image.name: image for image in every}) for split in SPLITS}
        if not lists["train"]:
            drawn = drawn_splits([(image,) for image in every])
            lists = {split: {image: "" for (image,) in drawn[split]} for split in SPLITS}
        elif not lists["test"]:
            lists["test"], lists["val"] = lists["val"], {}
        for split, other in (("val", "train"), ("test", "train"), ("test", "val")):
            for image in lists[split].keys() & lists[other].keys():
                raise DataError(f"{lists[split][image]}: {image.name} is in {lists[other][image]} too")
        return {split: {image: every[image] for image in lists[split]} for split in SPLITS}

    def lines(self, root: Path) -> Iterator[Line]:
        file = first(root, ("captions.txt", "Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt"))
        images = first(root, ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset"))
        if file.name == "captions.txt":
            rows = csv.reader(io.StringIO(read_text(file)))
            if next(rows, []) != ["image", "caption"]:
                raise DataError(f"{file}:1: must be image,caption")
            for row in rows:
                if row and len(row) != 2:
                    raise DataError(f"{file}:{rows.line_num}: must be image,caption, but has {len(row)} columns")
                if row:
                    yield Line(f"{file}:{rows.line_num}", inside(images, row[0], f"{file}:{rows.line_num}"), row[1])
            return
        for number, line in lines_of(file, "utf-8"):
            found = re.fullmatch(r"([^\t#]+)#\d+\t(.*)", line)
            if found is None:
                raise DataError(f"{file}:{number}: must be name.jpg#0<TAB>caption, but is {line[:40]!r}")
            yield Line(f"{file}:{number}", inside(images, found[1], f"{file}:{number}"), found[2])

    def listed(self, root: Path, split: str, known: dict[str, Path]) -> dict[Path, str]:
        """The photos of a split's list, with their lines; none where there is no list."""
        name = {"val": "dev"}.get(split, split)
        places = [root / place for place in (f"{split}.txt", f"Flickr_8k.{name}Images.txt",
                                             f"Flickr8k_text/Flickr_8k.{name}Images.txt")]
        found: dict[Path, str] = {}
        for file in [place for place in places if place.is_file()][:1]:
            for number, line in lines_of(file, "utf-8"):
                at, image = f"{file}:{number}", known.get(line.strip())
                if image is None:
                    raise DataError(f"{at}: {line.strip()} has no caption")
                if image in found:
                    raise DataError(f"{at}: {image.name} is listed already, at {found[image]}")
                found[image] = at
        return found


class CocoCaptions(PhotoCaptions):
    """COCO's captions_train2017.json and captions_val2017.json, or a person's own in their form; paths below `root`."""

    def __init__(self, *, train_json: str, train_images: str, test_json: str, test_images: str, **keys: Any):
        super().__init__(**keys)
        self.places = {"train": (train_json, train_images), "test": (test_json, test_images)}

    def splits(self, root: Path) -> dict[str, Photos]:
        found: dict[str, Photos] = {"val": {}}
        for split, (name, images) in self.places.items():
            file = Annotations(root / name, ("images", "annotations"))
            names = {one["id"]: str(file.value(one, "file_name", "images")) for one in file.all("images")}
            lines = []
            for one in file.all("annotations"):
                image = names.get(file.value(one, "image_id", "annotations"))
                if image is None:
                    raise DataError(f"{file.at(one, 'annotations')}: no image has the id {one['image_id']}")
                at = f"{file.file} (annotations id {one.get('id')})"
                lines.append(Line(at, inside(root / images, image, at), str(file.value(one, "caption", "annotations"))))
            found[split] = by_image(lines)
        return found


class CaptionLines(PhotoCaptions):
    """`root`: a file of `path<TAB>caption` lines, a path being relative to the file; a photo may have several lines.
    Its photos are drawn to 80, 10 and 10 %."""

    def splits(self, root: Path) -> dict[str, Photos]:
        lines = []
        for number, line in lines_of(root, "utf-8"):
            name, tab, text = line.partition("\t")
            if not tab:
                raise DataError(f"{root}:{number}: must be path<TAB>caption, but is {line[:40]!r}")
            lines.append(Line(f"{root}:{number}", root.parent / name.strip(), text))
        every = by_image(lines)
        drawn = drawn_splits([(image,) for image in every])
        return {split: {image: every[image] for (image,) in drawn[split]} for split in SPLITS}


def first(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    raise DataError(f"data.root={root}: must have {' or '.join(names)}")


def inside(folder: Path, name: str, at: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{at}: '{name}' must be a name below {folder}")
    return folder / name
