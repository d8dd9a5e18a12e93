"""Pairs of sequences: dates as people write them and as ISO 8601 does, or a person's own lines."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dltrain.batches import END, START, PairBatch, generator
from dltrain.data import sequences
from dltrain.data.sequences import SPLITS, Sample, Sequences, Tokenizer, encoder, padded
from dltrain.errors import DataError

Pair = tuple[str, str]


class Pairs(Sequences):
    """A subclass says `pairs`. A training pair with a side of more than `max_length` symbols is left out; of the
    others, what is longer is read whole."""

    batch_type = PairBatch

    def __init__(self, *, words: bool, max_length: int, lower: bool = False, min_count: int = 1,
                 vocab_size: int | None = None, target_vocab_size: int | None = None, **keys: Any):
        super().__init__(**keys)
        self.tokenizer, self.max_length = Tokenizer(words, lower, min_count), max_length
        self.vocab_size, self.target_vocab_size = vocab_size, target_vocab_size

    def pairs(self) -> dict[str, list[Pair]]:
        """The splits, as texts."""
        raise NotImplementedError

    def load(self) -> None:
        self.texts = self.pairs()
        for place, name in enumerate(("source", "target")):
            if name not in self.vocabularies:
                self.vocabularies[name] = self.tokenizer.vocabulary([pair[place] for pair in self.texts["train"]])
        source, target = (encoder(self.tokenizer, self.vocabularies[name]) for name in ("source", "target"))
        for split in SPLITS:
            both = [(source(one), [START, *target(other), END]) for one, other in self.texts[split]]
            if split == "train":
                both = [pair for pair in both if max(len(pair[0]), len(pair[1]) - 2) <= self.max_length]
            self.samples[split] = [pair for pair in both if pair[0]]

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["source"]), "target_vocab_size": len(self.vocabularies["target"])}

    def describe(self) -> str:
        return self.counted("pairs")

    def batch(self, samples: list[Sample]) -> PairBatch:
        source, source_lengths = padded([sample[0] for sample in samples])
        target, target_lengths = padded([sample[1] for sample in samples])
        return PairBatch(source, source_lengths, target, target_lengths)

    def unscored(self, sample: Sample) -> Sample:
        return (sample[0], [START])

    def encode_inputs(self, texts: list[str]) -> PairBatch:
        """A person's own sources as a batch, without targets."""
        source = encoder(self.tokenizer, self.vocabularies["source"])
        return self.batch([(source(text), [START]) for text in texts])

    def join(self, side: str, numbers: list[int]) -> str:
        return self.tokenizer.join([self.vocabularies[side][number] for number in numbers])

    def write_samples(self, folder: Path) -> str:
        (folder / "sources.txt").write_text("\n".join(one for one, _ in self.texts["test"][:10]) + "\n",
                                            encoding="utf-8")
        return f"input={folder}/sources.txt decode=beam"


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FIRST_DAY, LAST_DAY = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)


def ordinal(day: int) -> str:
    tail = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{tail}"


WAYS: list[Callable[[datetime.date], str]] = [
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


class Dates(Pairs):
    """`3rd of March 1998` and eleven other ways to `1998-03-03`, of the days from 1900 to 2099; 3/12/1998 is the
    American way, in March. 1,000 days each are held out for validation and test, drawn once for all."""

    def __init__(self, *, num_train: int, **keys: Any):
        super().__init__(**keys)
        self.num_train = num_train

    def pairs(self) -> dict[str, list[Pair]]:
        draws = generator("split", "dates")
        order = torch.randperm((LAST_DAY - FIRST_DAY).days + 1, generator=draws)
        ways = torch.randint(len(WAYS), (len(order),), generator=draws).tolist()
        days = [FIRST_DAY + datetime.timedelta(days=number) for number in order.tolist()]
        both = [(WAYS[way](day), day.isoformat()) for way, day in zip(ways, days, strict=True)]
        return {"test": both[:1000], "val": both[1000:2000], "train": both[2000 : 2000 + self.num_train]}


class PairFiles(Pairs):
    """`root`: a file of `source<TAB>target` lines, of which 80 % are trained on; a folder with such a file for each of
    train, val and test; or, with `languages`, a folder of parallel files as train.en and train.de."""

    def __init__(self, *, root: str | None, languages: list[str] | None, encoding: str, num_train: int | None,
                 **keys: Any):
        super().__init__(**keys)
        self.root, self.languages, self.encoding, self.num_train = root, languages, encoding, num_train
        if languages is not None and len(languages) != 2:
            raise ValueError(f"languages must be two endings of file names, as [en, de], but is {languages}")

    def pairs(self) -> dict[str, list[Pair]]:
        if self.root is None:
            raise DataError("data.root must be given: a file of source<TAB>target lines, or a folder with train, val "
                            "and test files")
        root = Path(self.root).expanduser()
        if root.is_file():
            both: list[Any] = self.tab_separated(root)
            found: dict[str, list[Pair]] = sequences.drawn_splits(both)
        elif not root.is_dir():
            raise DataError(f"data.root={root}: no such file or folder")
        elif self.languages is None:
            files = sequences.found_splits(root, [], "data.root")
            found = {split: self.tab_separated(file) for split, file in files.items()}
        else:
            one, other = (sequences.found_splits(root, [f".{tail}"], "data.root") for tail in self.languages)
            found = {split: self.parallel(one[split], other[split]) for split in SPLITS}
        found["train"] = found["train"][: self.num_train]
        return found

    def tab_separated(self, file: Path) -> list[Pair]:
        both = []
        for number, line in sequences.lines_of(file, self.encoding):
            sides = [side.strip() for side in line.split("\t")]
            if len(sides) != 2 or not all(sides):
                raise DataError(f"{file}:{number}: must be source<TAB>target, but has {len([s for s in sides if s])} "
                                f"side(s): {line.strip()[:40]!r}")
            both.append((sides[0], sides[1]))
        return both

    def parallel(self, one: Path, other: Path) -> list[Pair]:
        sides = [dict(sequences.lines_of(file, self.encoding)) for file in (one, other)]
        if sides[0].keys() != sides[1].keys():
            number = min(sides[0].keys() ^ sides[1].keys())
            raise DataError(f"{one} and {other} must have the same lines, but line {number} is in one only")
        return [(sides[0][number].strip(), sides[1][number].strip()) for number in sides[0]]
