"""What sequences of different lengths share: samples as lists of numbers in memory, padded to a batch's longest.

A subclass reads its samples, a tuple of number lists each, makes batches of them and says what a person's own text
becomes. `Tokenizer` turns texts to symbols and back, by characters or by words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dltrain.batches import PAD, UNKNOWN, generator
from dltrain.data.loader import DataModule
from dltrain.data.vocabulary import SPECIAL, characters_of, numbered, read_text, words_of
from dltrain.errors import DataError

SPLITS = ("train", "val", "test")
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")  # words, and marks by themselves
Sample = tuple[Any, ...]


class Sequences(DataModule):
    """`bucketed`: training samples of like length come together."""

    def __init__(self, *, bucketed: bool = True, **keys: Any):
        super().__init__(**keys)
        self.bucketed = bucketed
        self.eval_batch_size = max(self.batch_size, 128)
        self.samples: dict[str, list[Sample]] = {}  # the first of each is what is read

    def num_samples(self, split: str) -> int:
        return len(self.samples[split])

    def lengths(self) -> Tensor | None:
        return torch.tensor([len(sample[0]) for sample in self.samples["train"]]) if self.bucketed else None

    def read(self, split: str, batches: list[Tensor]) -> Iterator[Any]:
        samples = self.samples[split]
        for indices in batches:
            yield self.batch([samples[i] if i >= 0 else self.unscored(samples[0]) for i in indices.tolist()])

    def batch(self, samples: list[Sample]) -> Any:
        raise NotImplementedError

    def unscored(self, sample: Sample) -> Sample:
        """One like this that only fills a batch."""
        raise NotImplementedError

    def counted(self, what: str) -> str:
        """The sizes, and what share of the symbols of the held-out splits the vocabulary has not."""
        sizes = ", ".join(f"{len(self.samples[split]):,} {split}" for split in SPLITS)
        unknown = {split: share_unknown(self.samples[split]) for split in SPLITS}
        told = ", ".join(f"{share:.1%} in {split}" for split, share in unknown.items() if share)
        symbols = " and ".join(f"{len(found):,}" for name, found in self.vocabularies.items() if name != "labels")
        return f"{sizes} {what} of {symbols} symbols" + (f" (unknown: {told})" if told else "")


def share_unknown(samples: list[Sample]) -> float:
    count = sum(len(sample[0]) for sample in samples)
    return sum(sample[0].count(UNKNOWN) for sample in samples) / max(count, 1)


def padded(rows: Sequence[Sequence[int]], fill: int = PAD) -> tuple[Tensor, tuple[int, ...]]:
    """(B, T) int64, and the rows' own lengths."""
    lengths = tuple(len(row) for row in rows)
    longest = max(lengths)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows]), lengths


class Tokenizer:
    """By characters or, with `words`, by words and marks; all in lower case where `lower`. A word is known that comes
    at least `min_count` times in the training split; a character, once."""

    def __init__(self, words: bool, lower: bool = False, min_count: int = 1):
        self.words, self.lower, self.min_count = words, lower, min_count

    def split(self, text: str) -> list[str]:
        text = text.strip().lower() if self.lower else text.strip()
        return WORD.findall(text) if self.words else list(text)

    def vocabulary(self, texts: Sequence[str]) -> list[str]:
        if self.words:
            return words_of(map(self.split, texts), self.min_count)
        return characters_of("".join("".join(self.split(text)) for text in texts))

    def join(self, symbols: Sequence[str]) -> str:
        return (" " if self.words else "").join(symbols)


def places_of(symbols: list[str]) -> dict[str, int]:
    """Each symbol's number, the special ones left out: a text that says <pad> means its letters."""
    return {symbol: number for number, symbol in enumerate(symbols) if number >= len(SPECIAL)}


def encoder(tokenizer: Tokenizer, symbols: list[str]) -> Callable[[str], list[int]]:
    places = places_of(symbols)
    return lambda text: numbered(tokenizer.split(text), places)


def lines_of(file: Path, encoding: str) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    text = read_text(file, encoding)
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def drawn_splits(samples: list[Sample], labels: Sequence[Any] | None = None) -> dict[str, list[Sample]]:
    """80 % train, 10 % val, 10 % test, the same for every seed; of each label its own share, where there are labels."""
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    groups: dict[Any, list[Sample]] = {}
    for sample, label in zip(samples, labels or [0] * len(samples), strict=True):
        groups.setdefault(label, []).append(sample)
    for label in sorted(groups):
        group = groups[label]
        order = torch.randperm(len(group), generator=generator("split", str(label))).tolist()
        one, two = round(len(group) * 0.8), round(len(group) * 0.9)
        for split, chosen in zip(SPLITS, (order[:one], order[one:two], order[two:]), strict=True):
            splits[split] += [group[i] for i in sorted(chosen)]
    return splits


def found_splits(root: Path, tails: Sequence[str], key: str) -> dict[str, Path]:
    """The files of the three splits in a folder, by the beginning or middle of their names. Raises DataError."""
    found = {}
    for split, names in (("train", ("train",)), ("val", ("val", "dev", "valid")), ("test", ("test",))):
        fits = [file for file in sorted(root.iterdir()) if file.is_file()
                and any(name in re.split(r"[^a-z]+", file.stem.lower()) for name in names)
                and (not tails or file.name.endswith(tuple(tails)))]
        if len(fits) != 1:
            said = "none" if not fits else ", ".join(file.name for file in fits[:4])
            raise DataError(f"{key}={root}: must have one {split} file ({' or '.join(names)} in its name"
                            f"{', ending in ' + ' or '.join(tails) if tails else ''}), but has {said}")
        found[split] = fits[0]
    return found
