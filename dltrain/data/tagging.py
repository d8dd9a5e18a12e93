"""Sequences with a tag for each symbol: the base class of their data sets."""

from __future__ import annotations

from collections import Counter
from typing import Unpack

from dltrain.batches import IGNORED_LABEL, UNKNOWN, TaggedBatch
from dltrain.data.datamodule import SPLITS
from dltrain.data.listing import digest_of
from dltrain.data.sequences import (
    SequenceKeys,
    Sequences,
    count_unknown,
    encode_symbols,
    index_symbols,
    pad_sequences,
)
from dltrain.errors import DataError

TaggedSymbols = tuple[list[str], list[str]]  # symbols, and the tag of each
TagSample = tuple[list[int], list[int]]


class TaggedSequences(Sequences[TaggedBatch, TagSample]):
    """Sequences with a tag per symbol. A subclass implements `read_samples`, `build_vocabulary` and `tokenize`."""

    batch_type = TaggedBatch
    counted = "tags"

    def __init__(self, **keys: Unpack[SequenceKeys]):
        super().__init__(**keys)
        self.examples: list[TaggedSymbols] = []  # of the test split

    def read_samples(self) -> dict[str, list[TaggedSymbols]]:
        """The samples of each split."""
        raise NotImplementedError

    def build_vocabulary(self, samples: list[TaggedSymbols]) -> list[str]:
        raise NotImplementedError

    def tokenize(self, text: str) -> list[str]:
        """Splits a person's own text into symbols."""
        raise NotImplementedError

    def normalize(self, symbols: list[str]) -> list[str]:
        """Returns the symbols as they stand in the vocabulary."""
        return symbols

    def split_input(self, text: str) -> list[str]:
        return self.normalize(self.tokenize(text))

    def unknown_counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        noun = "characters" if self.reads_whole_files else "words"
        return {noun: {split: count_unknown(row for row, _ in self.samples[split]) for split in SPLITS}}

    def load(self) -> None:
        splits = self.settle_leaks(self.read_samples(), lambda sample: tuple(sample[0]),
                                   lambda sample: " ".join(sample[0])[:60])
        if "text" not in self.vocabularies:
            self.vocabularies["text"] = self.build_vocabulary(splits["train"])
        owner = "run" if "labels" in self.vocabularies else "training split"
        own = [sample for split in ("train", *self.held_out) for sample in splits[split]]
        self.class_names = self.vocabularies.setdefault("labels", sorted({tag for _, tags in own for tag in tags}))
        labels = {name: label for label, name in enumerate(self.class_names)}
        indices = index_symbols(self.vocabularies["text"])
        for split in SPLITS:
            for _, tags in splits[split]:
                if unknown := {*tags} - labels.keys():
                    raise DataError(f"the {split} split has the tag {min(unknown)!r}, which the {owner} does not have")
            self.samples[split] = [(encode_symbols(self.normalize(symbols), indices), [labels[tag] for tag in tags])
                                   for symbols, tags in splits[split]]
        self.list_texts(splits, lambda sample: (" ".join(sample[0]), digest_of(sample)))
        self.examples = splits["test"][:10]

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["text"]), "num_classes": len(self.class_names)}

    def class_counts(self) -> dict[str, int]:
        counts = Counter(label for _, labels in self.samples["train"] for label in labels)
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    def describe(self) -> str:
        return f"{self.describe_counts('sequences')}, {len(self.class_names)} classes"

    def collate(self, samples: list[TagSample]) -> TaggedBatch:
        tokens, lengths = pad_sequences([tokens for tokens, _ in samples])
        return TaggedBatch(tokens, lengths, pad_sequences([tags for _, tags in samples], IGNORED_LABEL)[0])

    def hide_target(self, sample: TagSample) -> TagSample:
        tokens, _ = sample
        return tokens, [IGNORED_LABEL] * len(tokens)

    def encode_inputs(self, inputs: list[str]) -> TaggedBatch:
        rows = [self.encode_input(text) or [UNKNOWN] for text in inputs]
        return self.collate([self.hide_target((row, [])) for row in rows])
