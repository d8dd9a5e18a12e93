"""The readers of dltrain, each with a small data set of files and the count of what must come of it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dltrain.data.datamodule import SPLITS, DataModule
from dltrain.data.language_modeling import TextStreams
from tests import fuzzing


class Reader(NamedTuple):
    """A data set of `files` and how it is read. `words`: of the command. `below`: the folder whose files are all the
    samples; or `total`: the number of samples in the folder."""

    files: fuzzing.Files
    words: str
    below: str = ""
    total: Callable[[Path], int] | None = None


def lines_of(file: Path) -> list[str]:
    raw = file.read_bytes()
    text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    return re.split("\r\n|\r|\n", text)


def texts_of(root: Path) -> list[list[str]]:
    """The lines of every file, without hidden ones."""
    return [lines_of(file) for file in root.iterdir() if file.is_file() and file.name[0] != "."]


def count_lines(root: Path) -> int:
    """Those that are not empty."""
    return sum(bool(line.strip()) for lines in texts_of(root) for line in lines)


def count_pairs_of_lines(root: Path) -> int:
    """Those of parallel files that are not empty on both sides."""
    files = {split: [lines_of(root / f"{split}.{language}") for language in ("en", "de")] for split in SPLITS}
    return sum(len({number for lines in both for number, line in enumerate(lines) if line.strip()})
               for both in files.values())


def count_sentences(root: Path) -> int:
    """The blocks of lines with a word: an empty line ends one, a comment and 3-4 are no words."""
    count = 0
    for lines in texts_of(root):
        inside = False
        for line in [*lines, ""]:
            count += inside and not line.strip()
            inside = bool(line.strip()) and (inside or not re.match(r"#|\d+[-.]\d+\s", line))
    return count


def count_entries(root: Path) -> int:
    """The images of both json files."""
    return sum(len(json.loads("\n".join(lines_of(root / f"{split}.json")))["images"]) for split in ("train", "test"))


def count_captioned(root: Path) -> int:
    return len({line.split("\t")[0].strip() for line in lines_of(root / "c.tsv") if line.strip()})


def count_captioned_in_csv(root: Path) -> int:
    rows = csv.reader(io.StringIO("\n".join(lines_of(root / "captions.txt"))))
    return len({row[0] for row in list(rows)[1:] if row})


PHOTOS = "data.image_px=32 data.num_workers=0"
COCO = f"{PHOTOS} data.train_json=train.json data.train_images=images data.test_json=test.json data.test_images=images"
READERS = {
    "image_folder": Reader(fuzzing.image_folder(), f"resnet20 image_folder {PHOTOS}", "."),
    "unsplit_folder": Reader(fuzzing.unsplit_folder(), f"resnet20 image_folder {PHOTOS}", "."),
    "mask_folder": Reader(fuzzing.mask_folder(), f"fcn8s mask_folder {PHOTOS}", "images"),
    "listed_masks": Reader(fuzzing.listed_masks(), f"fcn8s mask_folder {PHOTOS}", "images"),
    "voc_folder": Reader(fuzzing.voc_folder(), f"faster_rcnn voc_folder {PHOTOS}", "JPEGImages"),
    "coco": Reader(fuzzing.coco(), f"faster_rcnn coco {COCO}", total=count_entries),
    "coco_captions": Reader(fuzzing.coco_captions(), f"captioner coco_captions {COCO} data.min_count=1",
                            total=count_entries),
    "captions_file": Reader(fuzzing.caption_lines(), f"captioner captions_file {PHOTOS} data.min_count=1",
                            total=count_captioned),
    "captions_csv": Reader(fuzzing.caption_csv(), f"captioner flickr8k {PHOTOS} data.min_count=1",
                           total=count_captioned_in_csv),
    "labelled_lines": Reader(fuzzing.labelled_lines(), "seq_classifier labelled_text", total=count_lines),
    "label_files": Reader(fuzzing.label_files(), "seq_classifier labelled_text", total=count_lines),
    "conll": Reader(fuzzing.conll(), "tagger conll", total=count_sentences),
    "pairs": Reader(fuzzing.pairs(), "seq2seq pairs", total=count_lines),
    "parallel": Reader(fuzzing.parallel(), "seq2seq pairs data.languages=[en,de]", total=count_pairs_of_lines),
    "text": Reader(fuzzing.text(), "char_rnn text data.batch_size=2"),
    "vectors": Reader(fuzzing.vectors(), ""),
}


def lost_samples(reader: Reader, root: Path, data: DataModule) -> str:
    for place in data.left_out.pop("a file of no split", []):
        Path(place).unlink()
    loaded = sum(data.num_samples(split) for split in SPLITS)
    if isinstance(data, TextStreams):  # whose samples are characters
        left_out, loaded, there = 0, sum(data.counts.values()), len("\n".join(map("\n".join, texts_of(root))))
    elif reader.total:
        left_out, there = sum(map(len, data.left_out.values())), reader.total(root)
    else:
        folder = root / reader.below
        left_out = sum(os.path.abspath(place).startswith(os.path.abspath(folder)) for places in data.left_out.values()
                       for place in places)
        there = sum(name[0] != "." for _, _, names in os.walk(folder) for name in names)
    return "" if loaded + left_out == there else f"{loaded} samples and {left_out} left out of {there}"
