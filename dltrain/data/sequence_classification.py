"""Sequences with one label each: the rows of the digits, a person's own texts, a first symbol to be remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, LabelledBatch, generator
from dltrain.data import sequences
from dltrain.data.digits import Digits
from dltrain.data.loader import DataModule
from dltrain.data.sequences import SPLITS, Sample, Sequences, Tokenizer, encoder, padded
from dltrain.errors import DataError

Labelling = tuple[str, str]  # a text and its label


class DigitsRows(DataModule):
    """The real handwritten digits, read as eight rows from top to bottom: 8 steps of 8 grey values in [0, 1]."""

    batch_type = LabelledBatch
    reads_pictures = True  # what `predict` is asked about

    def __init__(self, *, features: int, vocab_size: None, num_classes: int, **keys: Any):
        super().__init__(**keys)
        self.eval_batch_size = max(self.batch_size, 256)
        self.digits = Digits(channels=1, num_classes=num_classes, image_px=features, **keys)

    def load(self) -> None:
        self.digits.load()
        self.class_names = self.digits.class_names

    def num_samples(self, split: str) -> int:
        return self.digits.num_samples(split)

    def read(self, split: str, batches: list[Tensor]) -> Iterator[LabelledBatch]:
        for images, labels in self.digits.read(split, batches):
            yield as_rows(images, labels)

    def encode_inputs(self, files: list[str]) -> LabelledBatch:
        """A person's own pictures as a batch."""
        images = torch.stack([self.digits.read_input(Path(file)) for file in files])
        return as_rows(images, torch.full((len(files),), IGNORED_LABEL))

    def write_samples(self, folder: Path) -> str:
        return self.digits.write_samples(folder)


def as_rows(images: Tensor, labels: Tensor) -> LabelledBatch:
    rows = images[:, 0].float() / 255
    return LabelledBatch(rows, (rows.shape[1],) * len(rows), labels)


class Labelled(Sequences):
    """Texts with a label. A subclass says `texts`."""

    batch_type = LabelledBatch
    reads_pictures = False

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, features: None = None, vocab_size: int | None = None,
                 num_classes: int | None = None, **keys: Any):
        super().__init__(**keys)
        self.tokenizer, self.max_length = tokenizer, max_length

    def texts(self) -> dict[str, list[Labelling]]:
        """The splits."""
        raise NotImplementedError

    def load(self) -> None:
        found = self.labelled = self.texts()
        if "text" not in self.vocabularies:
            self.vocabularies["text"] = self.tokenizer.vocabulary([text for text, _ in found["train"]])
        kept = "labels" in self.vocabularies
        self.class_names = self.vocabularies.setdefault("labels", sorted({label for _, label in found["train"]}))
        if len(self.class_names) < 2:
            raise DataError(f"the training split must have at least two labels, but has {self.class_names}")
        known = "run" if kept else "training split"
        numbers = {name: number for number, name in enumerate(self.class_names)}
        encode = encoder(self.tokenizer, self.vocabularies["text"])
        for split in SPLITS:
            for _, label in found[split]:
                if label not in numbers:
                    raise DataError(f"the {split} split has the label {label!r}, which the {known} has not")
            both = [(encode(text)[: self.max_length], numbers[label]) for text, label in found[split]]
            self.samples[split] = [sample for sample in both if sample[0]]

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["text"]), "num_classes": len(self.class_names)}

    def describe(self) -> str:
        return f"{self.counted('texts')}, {len(self.class_names)} classes"

    def batch(self, samples: list[Sample]) -> LabelledBatch:
        tokens, lengths = padded([sample[0] for sample in samples])
        return LabelledBatch(tokens, lengths, torch.tensor([sample[1] for sample in samples]))

    def unscored(self, sample: Sample) -> Sample:
        return (sample[0], IGNORED_LABEL)

    def encode_inputs(self, texts: list[str]) -> LabelledBatch:
        """A person's own texts as a batch."""
        encode = encoder(self.tokenizer, self.vocabularies["text"])
        return self.batch([(encode(text)[: self.max_length], IGNORED_LABEL) for text in texts])

    def write_samples(self, folder: Path) -> str:
        (folder / "texts.txt").write_text("\n".join(text for text, _ in self.labelled["test"][::max(
            1, len(self.labelled["test"]) // 10)][:10]) + "\n", encoding="utf-8")
        return f"input={folder}/texts.txt"


class LabelledText(Labelled):
    """`root`: a folder with a file for each label, a text a line (the label is the file's name); a file of
    `label<TAB>text` lines; or a folder with such a file for each of train, val and test. Without given splits
    80 % of each label are trained on and 10 % each held out, drawn once for all."""

    def __init__(self, *, root: str | None, encoding: str, words: bool, lower: bool, min_count: int, **keys: Any):
        super().__init__(tokenizer=Tokenizer(words, lower, min_count), **keys)
        self.root, self.encoding = root, encoding

    def texts(self) -> dict[str, list[Labelling]]:
        if self.root is None:
            raise DataError("data.root must be given: a folder with a text file for each label, or a file of "
                            "label<TAB>text lines")
        root = Path(self.root).expanduser()
        if root.is_file():
            return self.drawn(self.tab_separated(root))
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such file or folder")
        files = sorted(file for file in root.iterdir() if file.is_file() and not file.name.startswith("."))
        if any("train" in file.stem.lower() for file in files):
            splits = sequences.found_splits(root, [], "data.root")
            return {split: self.tab_separated(file) for split, file in splits.items()}
        if len(files) < 2:
            raise DataError(f"data.root={root}: must have a file for each label, at least two, but has {len(files)}")
        by_stem = len({file.stem for file in files}) == len(files)
        return self.drawn([(line.strip(), file.stem if by_stem else file.name) for file in files
                           for _, line in sequences.lines_of(file, self.encoding)])

    def drawn(self, found: list[Labelling]) -> dict[str, list[Any]]:
        return sequences.drawn_splits(found, [label for _, label in found])

    def tab_separated(self, file: Path) -> list[Labelling]:
        found = []
        for number, line in sequences.lines_of(file, self.encoding):
            label, tab, text = line.partition("\t")
            if not tab or not label.strip() or not text.strip():
                raise DataError(f"{file}:{number}: must be label<TAB>text, but is {line.strip()[:40]!r}")
            found.append((text.strip(), label.strip()))
        return found


class Recall(Labelled):
    """`CAABDB`: which symbol came first? It is followed by `delay` others of the same kind, so that a net must hold on
    to it for so many steps and let nothing else in. Drawn once for all."""

    def __init__(self, *, delay: int, symbols: int, num_train: int, **keys: Any):
        super().__init__(tokenizer=Tokenizer(words=False), max_length=delay + 1, bucketed=False, **keys)
        self.delay, self.symbols, self.num_train = delay, symbols, num_train

    def texts(self) -> dict[str, list[Labelling]]:
        counts = {"train": self.num_train, "val": 500, "test": 1000}
        return {split: self.drawn(split, count) for split, count in counts.items()}

    def drawn(self, split: str, count: int) -> list[Labelling]:
        draws = generator("recall", split, self.delay)
        rows = torch.randint(self.symbols, (count, 1 + self.delay), generator=draws).tolist()
        texts = ["".join(chr(65 + number) for number in row) for row in rows]
        return [(text, text[0]) for text in texts]
