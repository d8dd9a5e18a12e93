"""Pairs of a source and a target sequence: the base class of their data sets, and dates that are generated."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, Unpack

import torch
import torch.nn.functional as F

from dltrain.batches import END, PAD, START, PairBatch, generator
from dltrain.data.datamodule import SPLITS
from dltrain.data.listing import digest_of
from dltrain.data.sequences import (
    SequenceKeys,
    Sequences,
    Tokenizer,
    count_unknown,
    index_symbols,
    pad_sequences,
)
from dltrain.errors import DataError

SIDES = ("source", "target")
TextPair = tuple[str, str]
PairSample = tuple[list[int], list[int]]  # the target with START and END


class PairKeys(SequenceKeys):
    words: bool | str
    max_length: int
    lower: NotRequired[bool | str]
    min_count: NotRequired[int]
    vocab_size: NotRequired[int | None]
    target_vocab_size: NotRequired[int | None]


class TextPairs(Sequences[PairBatch, PairSample]):
    """Pairs of texts. A subclass implements `pairs`. `words`: true, false, or the side, source or target, whose symbols
    are words; those of the other are characters. `lower`: likewise, the side in lower case. A training pair with a side
    of more than `max_length` symbols is left out; longer pairs of the other splits are read whole."""

    batch_type = PairBatch
    input_name = "source"

    def __init__(self, *, words: bool | str, max_length: int, lower: bool | str = False, min_count: int = 1,
                 vocab_size: int | None = None, target_vocab_size: int | None = None, **keys: Unpack[SequenceKeys]):
        super().__init__(**keys)
        self.tokenizers = [Tokenizer(words in (True, side), lower in (True, side), min_count) for side in SIDES]
        self.max_length = max_length
        self.vocab_size, self.target_vocab_size = vocab_size, target_vocab_size
        self.texts: dict[str, list[TextPair]] = {}

    def pairs(self) -> dict[str, list[TextPair]]:
        """The texts of each split."""
        raise NotImplementedError

    def load(self) -> None:
        self.texts = self.settle_leaks(self.pairs(), lambda pair: pair, lambda pair: " = ".join(pair)[:60])
        self.list_texts(self.texts, lambda pair: (pair[0], digest_of(pair[1])))
        for side, (name, tokenizer) in enumerate(zip(SIDES, self.tokenizers, strict=True)):
            if name not in self.vocabularies:
                self.vocabularies[name] = tokenizer.vocabulary([pair[side] for pair in self.texts["train"]])
        source_indices, target_indices = (index_symbols(self.vocabularies[name]) for name in SIDES)
        reader, writer = self.tokenizers
        for split in SPLITS:
            pairs = [(reader.encode(source, source_indices), writer.encode(target, target_indices))
                     for source, target in self.texts[split]]
            longest = self.max_length if split == "train" else math.inf
            kept = [bool(source) and max(len(source), len(target)) <= longest for source, target in pairs]
            self.leave_out(f"a pair with more than data.max_length={self.max_length} symbols",
                           [text for (text, _), keep in zip(self.texts[split], kept, strict=True) if not keep])
            self.samples[split] = [(source, [START, *target, END]) for (source, target), keep in
                                   zip(pairs, kept, strict=True) if keep]
        if not self.samples["train"] and self.texts["train"]:
            raise DataError(f"all {len(self.texts['train'])} training pairs have more than data.max_length="
                            f"{self.max_length} symbols: set a larger one")

    def split_input(self, text: str) -> list[str]:
        return self.tokenizers[0].tokenize(text)

    def unknown_counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        source, target = (f"{side} {tokenizer.noun}" for side, tokenizer in zip(SIDES, self.tokenizers, strict=True))
        return {source: {split: count_unknown(row for row, _ in self.samples[split]) for split in SPLITS},
                target: {split: count_unknown(row[1:-1] for _, row in self.samples[split]) for split in SPLITS}}

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["source"]), "target_vocab_size": len(self.vocabularies["target"])}

    def describe(self) -> str:
        return self.describe_counts("pairs")

    def collate(self, samples: list[PairSample]) -> PairBatch:
        source, source_lengths = pad_sequences([source for source, _ in samples])
        target, target_lengths = pad_sequences([target for _, target in samples])
        if target.shape[1] == 1:  # no target is scored, but a net reads one symbol at least
            target = F.pad(target, (0, 1), value=PAD)
        return PairBatch(source, source_lengths, target, target_lengths)

    def hide_target(self, sample: PairSample) -> PairSample:
        return sample[0], [START]

    def encode_inputs(self, inputs: list[str]) -> PairBatch:
        return self.collate([(self.encode_input(text), [START]) for text in inputs])

    def write_samples(self, folder: Path) -> str:
        (folder / "sources.txt").write_text("\n".join(source for source, _ in self.texts["test"][:10]) + "\n",
                                            encoding="utf-8")
        return f"input={folder}/sources.txt decode=beam"


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FIRST_DAY, LAST_DAY = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)


def ordinal(day: int) -> str:
    suffix = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


FORMATS: list[Callable[[datetime.date], str]] = [
    lambda d: f"{d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}",
    lambda d: f"{MONTHS[d.month - 1][:3]} {ordinal(d.day)}, {d.year}",
    lambda d: f"the {ordinal(d.day)} of {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{DAYS[d.weekday()]}, {d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{DAYS[d.weekday()][:3]} {MONTHS[d.month - 1][:3]} {d.day} {d.year}",
    lambda d: f"{d.day:02}-{MONTHS[d.month - 1][:3].upper()}-{d.year}",
    lambda d: f"{d.day}.{d.month}.{d.year}",
    lambda d: f"{d.month}/{d.day}/{d.year}",
    lambda d: f"{d.year}/{d.month:02}/{d.day:02}",
    lambda d: f"{d.year}, {MONTHS[d.month - 1].lower()} {d.day}",
    lambda d: f"{MONTHS[d.month - 1].lower()} the {ordinal(d.day)} {d.year}",
]


class Dates(TextPairs):
    """Dates of the years 1900 to 2099, each in one of twelve formats, to ISO 8601: `3rd of March 1998` to `1998-03-03`.
    3/12/1998 is in the American format: 12 March. 1,000 days each are held out for validation and test, the same for
    every seed."""

    def __init__(self, *, num_train: int, **keys: Unpack[PairKeys]):
        super().__init__(**keys)
        self.num_train = num_train

    def pairs(self) -> dict[str, list[TextPair]]:
        rng = generator("split", "dates")
        order = torch.randperm((LAST_DAY - FIRST_DAY).days + 1, generator=rng)
        formats = torch.randint(len(FORMATS), (len(order),), generator=rng).tolist()
        days = [FIRST_DAY + datetime.timedelta(days=offset) for offset in order.tolist()]
        pairs = [(FORMATS[index](day), day.isoformat()) for index, day in zip(formats, days, strict=True)]
        return {"test": pairs[:1000], "val": pairs[1000:2000], "train": pairs[2000 : 2000 + self.num_train]}
