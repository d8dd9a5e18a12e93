"""Sequences with one label each: the base class of data sets of texts, and a generated memory task."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Unpack

import torch

from dltrain.batches import IGNORED_LABEL, LabelledBatch, generator
from dltrain.data.datamodule import SEE_CONFUSION, SPLITS, DataKeys
from dltrain.data.sequences import SequenceKeys, Sequences, Tokenizer, count_unknown, index_symbols, pad_sequences
from dltrain.errors import DataError

TextAndLabel = tuple[str, str]
LabelSample = tuple[list[int], int]


class LabelledTexts(Sequences[LabelledBatch, LabelSample]):
    """Texts with one label each. A subclass implements `texts`. A text is cut to `max_length` symbols."""

    batch_type = LabelledBatch
    counted, if_unbalanced = "texts", SEE_CONFUSION

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, **keys: Unpack[SequenceKeys]):
        super().__init__(**keys)
        self.tokenizer, self.max_length = tokenizer, max_length
        self.labelled: dict[str, list[TextAndLabel]] = {}

    def texts(self) -> dict[str, list[TextAndLabel]]:
        """The samples of each split."""
        raise NotImplementedError

    def load(self) -> None:
        self.labelled = self.settle_leaks(self.texts(), itemgetter(0), lambda sample: sample[0][:60])
        self.list_texts(self.labelled, lambda sample: sample)
        train = self.labelled["train"]
        own = [sample for split in ("train", *self.held_out) for sample in self.labelled[split]]
        if "text" not in self.vocabularies:
            self.vocabularies["text"] = self.tokenizer.vocabulary([text for text, _ in train])
        owner = "run" if "labels" in self.vocabularies else "training split"
        self.class_names = self.vocabularies.setdefault("labels", sorted({label for _, label in own}))
        if len(self.class_names) < 2:
            raise DataError(f"the training split must have at least two labels, but has {self.class_names}")
        labels = {name: label for label, name in enumerate(self.class_names)}
        for split in SPLITS:
            for _, name in self.labelled[split]:
                if name not in labels:
                    raise DataError(f"the {split} split has the label {name!r}, which the {owner} does not have")
            rows = self.encode_texts([text for text, _ in self.labelled[split]])
            self.leave_out("a text without a symbol", [text for row, (text, _) in
                                                       zip(rows, self.labelled[split], strict=True) if not row])
            self.samples[split] = [(row, labels[name]) for row, (_, name) in
                                   zip(rows, self.labelled[split], strict=True) if row]

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        indices = index_symbols(self.vocabularies["text"])
        return [self.tokenizer.encode(text, indices)[: self.max_length] for text in texts]

    def split_input(self, text: str) -> list[str]:
        return self.tokenizer.tokenize(text)[: self.max_length]

    def unknown_counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        return {self.tokenizer.noun: {split: count_unknown(row for row, _ in self.samples[split]) for split in SPLITS}}

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["text"]), "num_classes": len(self.class_names)}

    def class_counts(self) -> dict[str, int]:
        counts = Counter(label for _, label in self.samples["train"])
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    def describe(self) -> str:
        return f"{self.describe_counts('texts')}, {len(self.class_names)} classes"

    def collate(self, samples: list[LabelSample]) -> LabelledBatch:
        tokens, lengths = pad_sequences([tokens for tokens, _ in samples])
        return LabelledBatch(tokens, lengths, torch.tensor([label for _, label in samples]))

    def hide_target(self, sample: LabelSample) -> LabelSample:
        return sample[0], IGNORED_LABEL

    def encode_inputs(self, inputs: list[str]) -> LabelledBatch:
        return self.collate([(row, IGNORED_LABEL) for row in self.encode_texts(inputs)])

    def write_samples(self, folder: Path) -> str:
        test = self.labelled["test"]
        spread = test[:: max(1, len(test) // 10)][:10]
        (folder / "texts.txt").write_text("\n".join(text for text, _ in spread) + "\n", encoding="utf-8")
        return f"input={folder}/texts.txt"


class Recall(LabelledTexts):
    """`CAABDB`: which symbol came first? `delay` others of the same alphabet of `symbols` letters follow it, so that a
    net must keep the first one for so many steps and ignore the others. The samples are the same for every seed."""

    def __init__(self, *, delay: int, symbols: int, num_train: int, features: None = None,
                 vocab_size: int | None = None, num_classes: int | None = None, **keys: Unpack[DataKeys]):
        super().__init__(tokenizer=Tokenizer(words=False), max_length=delay + 1, bucket_by_length=False, **keys)
        self.delay, self.symbols, self.num_train = delay, symbols, num_train

    def texts(self) -> dict[str, list[TextAndLabel]]:
        counts = {"train": self.num_train, "val": 500, "test": 1000}
        return {split: self.generate(split, count) for split, count in counts.items()}

    def generate(self, split: str, count: int) -> list[TextAndLabel]:
        rng = generator("recall", split, self.delay)
        rows = torch.randint(self.symbols, (count, 1 + self.delay), generator=rng).tolist()
        texts = ["".join(chr(ord("A") + index) for index in row) for row in rows]
        return [(text, text[0]) for text in texts]
