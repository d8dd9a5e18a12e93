"""Sequences of different lengths: texts to symbols, symbols to indices, indices to padded batches.

A vocabulary is SPECIAL_SYMBOLS and then the symbols of the training split; it is kept with the run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NotRequired, TypeVar, Unpack

import torch
from torch import Tensor

from dltrain.batches import PAD, UNKNOWN, Lengths
from dltrain.data.datamodule import SPLITS, DataKeys, DataModule
from dltrain.data.loader import BatchT

SPECIAL_SYMBOLS = ["<pad>", "<unk>", "<start>", "<end>"]  # at PAD, UNKNOWN, START, END
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")  # a word or a punctuation mark
SampleT = TypeVar("SampleT", bound=tuple[list[int], object])  # the input's indices, and the target


class SequenceKeys(DataKeys):
    bucket_by_length: NotRequired[bool]


class Sequences(DataModule[BatchT, str], Generic[BatchT, SampleT]):
    """Sequences in memory. A subclass sets `samples` in `load`, and gives `collate` and `hide_target`.

    `bucket_by_length`: training samples whose inputs have similar length share a batch."""

    input_kind = "text"
    input_name = "text"  # of the vocabulary of the inputs

    def __init__(self, *, bucket_by_length: bool = True, **keys: Unpack[DataKeys]):
        super().__init__(**keys)
        self.bucket_by_length = bucket_by_length
        self.eval_batch_size = max(self.batch_size, 128)
        self.samples: dict[str, list[SampleT]] = {}

    def num_samples(self, split: str) -> int:
        return len(self.samples[split])

    def bucket_keys(self) -> Tensor | None:
        if not self.bucket_by_length:
            return None
        return torch.tensor([len(tokens) for tokens, _ in self.samples["train"]])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[BatchT]:
        samples = self.samples[split]
        for indices in batches:
            yield self.collate([samples[i] if i >= 0 else self.hide_target(samples[0]) for i in indices.tolist()])

    def read_rows(self, split: str, batches: list[Tensor]) -> Iterator[BatchT]:
        """Padded to the longest sequence of the batch of all, since dropout draws numbers for the padding too."""
        for batch in self.read(split, batches):
            yield type(batch)(*map(self.share_of, batch))  # type: ignore[call-overload]  # a NamedTuple of rows

    def share_of(self, field: Tensor | tuple[int, ...]) -> Tensor | Lengths:
        return self.own_rows(field) if isinstance(field, Tensor) else Lengths(self.own_rows(field), min(field))

    def collate(self, samples: list[SampleT]) -> BatchT:
        raise NotImplementedError

    def hide_target(self, sample: SampleT) -> SampleT:
        """Returns the sample with a target that is not scored."""
        raise NotImplementedError

    def split_input(self, text: str) -> list[str]:
        """The symbols of a user's text, as they stand in the vocabulary."""
        raise NotImplementedError

    def encode_input(self, text: str) -> list[int]:
        return encode_symbols(self.split_input(text), index_symbols(self.vocabularies[self.input_name]))

    def unknown_inputs(self, texts: list[str]) -> tuple[list[str], int]:
        known = index_symbols(self.vocabularies[self.input_name])
        symbols = [symbol for text in texts for symbol in self.split_input(text)]
        return [symbol for symbol in symbols if symbol not in known], len(symbols)

    def describe_counts(self, noun: str) -> str:
        """States the number of samples and of symbols."""
        counts = ", ".join(f"{len(self.samples[split]):,} {split}" for split in SPLITS)
        sizes = " and ".join(f"{len(symbols):,}" for name, symbols in self.vocabularies.items() if name != "labels")
        return f"{counts} {noun} of {sizes} symbols"


def count_unknown(rows: Iterable[list[int]]) -> tuple[int, int]:
    """How many indices are UNKNOWN, and how many there are."""
    counts = [(row.count(UNKNOWN), len(row)) for row in rows]
    return sum(unknown for unknown, _ in counts), sum(length for _, length in counts)


def pad_sequences(rows: Sequence[Sequence[int]], fill: int = PAD) -> tuple[Tensor, tuple[int, ...]]:
    """Returns (B, T) int64, and the length of each row before padding."""
    lengths = tuple(len(row) for row in rows)
    longest = max(lengths)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows]), lengths


class Tokenizer:
    """Splits a text into characters or, with `words`, into words and punctuation marks; with `lower` in lower case.
    Words that occur fewer than `min_count` times in the training split are unknown."""

    def __init__(self, words: bool, lower: bool = False, min_count: int = 1):
        self.words, self.lower, self.min_count = words, lower, min_count
        self.noun = "words" if words else "characters"

    def tokenize(self, text: str) -> list[str]:
        text = text.strip().lower() if self.lower else text.strip()
        return WORD.findall(text) if self.words else list(text)

    def vocabulary(self, texts: Sequence[str]) -> list[str]:
        if self.words:
            return word_vocabulary(map(self.tokenize, texts), self.min_count)
        return character_vocabulary("".join("".join(self.tokenize(text)) for text in texts))

    def encode(self, text: str, indices: dict[str, int]) -> list[int]:
        """`indices`: those of the symbols, by index_symbols."""
        return encode_symbols(self.tokenize(text), indices)

    def join(self, symbols: Sequence[str]) -> str:
        return (" " if self.words else "").join(symbols)


def character_vocabulary(text: str) -> list[str]:
    """Returns the special symbols, then the characters by code point."""
    return SPECIAL_SYMBOLS + sorted(set(text))


def word_vocabulary(sentences: Iterable[Sequence[str]], min_count: int = 1) -> list[str]:
    """Returns the special symbols, then the words by decreasing count and, among equal counts, by name."""
    counts = Counter(word for words in sentences for word in words)
    kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    return SPECIAL_SYMBOLS + kept


def index_symbols(vocabulary: list[str]) -> dict[str, int]:
    """Returns the index of each symbol but the special ones: the letters "<pad>" in a text are not PAD."""
    return {symbol: index for index, symbol in enumerate(vocabulary) if index >= len(SPECIAL_SYMBOLS)}


def encode_symbols(symbols: Sequence[str], indices: dict[str, int]) -> list[int]:
    return [indices.get(symbol, UNKNOWN) for symbol in symbols]
