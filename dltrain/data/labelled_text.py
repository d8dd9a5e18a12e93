"""A person's own texts with one label each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Unpack

from dltrain.data.datamodule import check_classes, require_root
from dltrain.data.faults import refuse
from dltrain.data.sequence_classification import LabelledTexts, TextAndLabel
from dltrain.data.sequences import SequenceKeys, Tokenizer
from dltrain.data.splits import SPLIT_NAMES, hold_out_of_texts, split_randomly
from dltrain.data.texts import find_split_files, other_files, read_lines
from dltrain.errors import DataError
from dltrain.image_files import is_hidden

HEADERS = {f"{label}\t{text}" for label in ("label", "class", "category", "target") for text in ("text", "sentence")}


class LabelledTextFiles(LabelledTexts):
    """Labelled texts from `root`: a folder with a file for each label, a text per line (the label is the file's name);
    a file of `label<TAB>text` lines; or a folder with such a file for each of train, val and test, of which val and
    test are held out of train if they are not there. Without files for the splits, 80 % of each label are for training,
    10 % for validation and 10 % for the test."""

    def __init__(self, *, root: str | None, encoding: str, words: bool, lower: bool, min_count: int, max_length: int,
                 features: None = None, vocab_size: int | None = None, num_classes: int | None = None,
                 **keys: Unpack[SequenceKeys]):
        super().__init__(tokenizer=Tokenizer(words, lower, min_count), max_length=max_length, **keys)
        self.root, self.encoding = root, encoding

    def texts(self) -> dict[str, list[TextAndLabel]]:
        root = require_root(self.root, "a folder with a text file for each label, or a file of label<TAB>text lines")
        if root.is_file():
            self.held_out = ["test", "val"]
            return split_by_label(self.read_labelled_lines(root))
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such file or folder")
        files = sorted(file for file in root.iterdir() if file.is_file() and not is_hidden(file.name))
        named = {split for file in files for split, names in SPLIT_NAMES.items() for name in names
                 if name in re.split(r"[^a-z]+", file.stem.lower())}
        if "train" in named and (len(named) > 1 or len(files) == 1):  # a label may be called train too
            by_split = find_split_files(root)
            self.leave_out("a file of no split", other_files(root, by_split.values()))
            splits = {split: self.read_labelled_lines(file) for split, file in by_split.items()}
            self.held_out = hold_out_of_texts(splits, "texts")
            return splits
        self.held_out = ["test", "val"]
        files = self.leave_out_read_me(files)
        if len(files) < 2:
            raise DataError(f"data.root={root}: must have a file for each label, at least two, but has {len(files)}")
        by_stem = len({file.stem for file in files}) == len(files)
        names = [file.stem if by_stem else file.name for file in files]
        check_classes(None, names, root)
        return split_by_label([(line.strip(), name) for name, file in zip(names, files, strict=True)
                               for _, line in read_lines(file, self.encoding)])

    def leave_out_read_me(self, files: list[Path]) -> list[Path]:
        """The files without those that tell people about the others: README, or LICENSE, of any suffix."""
        about = [file for file in files if file.stem.lower() in ("readme", "license", "licence", "about")]
        self.leave_out("a file about the others", about)
        return [file for file in files if file not in about]

    def read_labelled_lines(self, file: Path) -> list[TextAndLabel]:
        """Raises DataError for a line without a label, and for a file in which the labels stand behind the texts."""
        samples, faults = [], []
        for number, line in read_lines(file, self.encoding):
            if number == 1 and line.strip().lower() in HEADERS:
                self.leave_out("a header", [f"{file}:1"])
                continue
            label, tab, text = line.partition("\t")
            if not tab or not label.strip() or not text.strip():
                faults.append(f"{file}:{number}: must be label<TAB>text, but is {line.strip()[:40]!r}")
            samples.append((text.strip(), label.strip()))
        refuse(faults, f"{file}: {len(faults)} of {len(samples)} lines have no label or no text")
        texts, labels = ({*column} for column in zip(*samples, strict=True)) if samples else (set(), set())
        if len(samples) >= 20 and len(labels) > len(samples) / 2 and len(texts) < len(samples) / 10:
            raise DataError(f"{file}: has {len(labels)} labels and {len(texts)} texts in {len(samples)} lines; a line "
                            "must be label<TAB>text, not the other way round")
        return samples


def split_by_label(samples: list[TextAndLabel]) -> dict[str, list[TextAndLabel]]:
    return split_randomly(samples, [label for _, label in samples])
