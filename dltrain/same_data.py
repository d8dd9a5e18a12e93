"""Whether the data of a run are those that it began with.

splits.json has the number of samples of each split and a digest of them; samples.tsv, for people's own files, a line
for each sample: its split, its name, a digest of its content, and its target. Runs of earlier versions have neither, or
splits.json without digests: they continue with the data that are there, and note them."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dltrain import stored_files
from dltrain.disk import write_text
from dltrain.errors import CheckpointError, DataError, UserError
from dltrain.run_dir import RunDir

if TYPE_CHECKING:
    from dltrain.data.datamodule import DataModule

SPLITS = ("train", "val", "test")
HEADER = "split\tname\tcontent\ttarget"
KEY = "on_changed_data"  # a word of the command line, not of the config
NAMED = 3  # samples of each kind, in a message


class Sample(NamedTuple):
    """A line of samples.tsv."""

    split: str
    name: str
    content: str
    target: str


class Difference(NamedTuple):
    """What happened to a sample since the run began. `then` and `now`: None if it was, or is, not there."""

    kind: str
    then: Sample | None
    now: Sample | None

    def touches(self, split: str) -> bool:
        return split in {sample.split for sample in (self.then, self.now) if sample}

    @property
    def place(self) -> str:
        """What happened, and in which splits."""
        if self.then is None or self.now is None:
            return f"added to {self.now.split}" if self.now else f"removed from {self.then.split}" if self.then else ""
        if self.then.split != self.now.split:
            return f"{self.kind} from {self.then.split} to {self.now.split}"
        return f"{self.kind} in {self.now.split}"

    @property
    def name(self) -> str:
        return next(sample.name for sample in (self.now, self.then) if sample)


# Which samples of then and now are the same one, by what they have in common, the surest first.
PAIRS: list[tuple[str, Callable[[Sample], tuple[str, ...]]]] = [
    ("moved", lambda sample: (sample.name, sample.content, sample.target)),
    ("relabelled", lambda sample: (sample.split, sample.name, sample.content)),
    ("renamed", lambda sample: (sample.split, sample.content, sample.target)),
    ("moved", lambda sample: (sample.content, sample.target)),
    ("relabelled", lambda sample: (sample.content,)),
    ("changed", lambda sample: (sample.split, sample.name)),
]


def differences(then: Iterable[Sample], now: Iterable[Sample]) -> list[Difference]:
    """What happened to the samples that are not the same in both; [] if only their order differs."""
    old, new = Counter(then), Counter(now)
    gone, come = sorted((old - new).elements()), sorted((new - old).elements())
    pairs = []
    for kind, key in PAIRS:
        candidates: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
        for sample in reversed(come):
            candidates[key(sample)].append(sample)
        unmatched = []
        for sample in gone:
            if matches := candidates[key(sample)]:
                pairs.append(Difference(kind, sample, matches.pop()))
            else:
                unmatched.append(sample)
        gone, come = unmatched, sorted(sample for matches in candidates.values() for sample in matches)
    return [*pairs, *(Difference("removed", sample, None) for sample in gone),
            *(Difference("added", None, sample) for sample in come)]


def summarize(changed: Iterable[Difference]) -> str:
    """How many of each kind, with the first names: `2 added to train (cat/8.png, cat/9.png), 1 moved from ...`."""
    names: dict[str, list[str]] = defaultdict(list)
    for item in changed:
        names[item.place].append(item.name)
    return ", ".join(f"{len(listed):,} {kind} ({', '.join(listed[:NAMED])}{', ...' if len(listed) > NAMED else ''})"
                     for kind, listed in names.items())


class Record(NamedTuple):
    """What a run keeps of its data. `splits`: the number of samples and the digest of each; `lines`: those of
    samples.tsv, none for data that are not people's own files; `sizes`: the keys of data that only the files know."""

    splits: dict[str, dict[str, Any]]
    lines: list[str]
    sizes: list[str]

    @classmethod
    def of(cls, data: DataModule) -> Record:
        splits = {split: {"samples": data.num_samples(split), "digest": data.digest(split)} for split in SPLITS}
        lines = [f"{split}\t{line}" for split, listed in data.sample_lines.items() for line in listed]
        return cls(splits, lines, data.sizes_read)

    def write(self, run_dir: RunDir) -> None:
        run_dir.write_json("splits.json", {**self.splits, "sizes": self.sizes})
        if self.lines:
            text = "\n".join([HEADER, *self.lines, ""])
            write_text(run_dir.path / "samples.tsv", text)

    @classmethod
    def read(cls, run_dir: RunDir) -> Record:
        """Without digests for runs of earlier versions."""
        kept = run_dir.read_splits()
        file = run_dir.path / "samples.tsv"
        lines = stored_files.read_text(file).split("\n")[1:-1] if os.path.lexists(file) else []
        if fault := next((number for number, line in enumerate(lines, start=2) if line.count("\t") < 3), None):
            raise CheckpointError(f"{file}: damaged (line {fault} is no sample); {stored_files.RESTORE}")
        return cls({split: kept[split] for split in SPLITS if "digest" in kept.get(split, {})}, lines,
                   kept.get("sizes", []))

    def samples(self) -> list[Sample]:
        return [Sample(*line.split("\t", 3)) for line in self.lines]


def changed_splits(then: Record, now: Record, data: DataModule) -> list[str]:
    """The splits whose samples are not those of `then`. Samples that are read differently each time, as those of a
    class that changes them at random, cannot be compared: only their number counts."""
    changed = []
    for split, kept in then.splits.items():
        if kept == now.splits[split]:
            continue
        is_repeatable = bool(now.lines) or data.digest(split) == now.splits[split]["digest"]
        if is_repeatable or kept["samples"] != now.splits[split]["samples"]:
            changed.append(split)
    return changed


def describe_changes(run_dir: RunDir, then: Record, now: Record, splits: Sequence[str]) -> str:
    """One line about these splits, of which at least one has changed."""
    changed = differences(then.samples(), now.samples()) if then.lines and now.lines else []
    if changed := [item for item in changed if any(map(item.touches, splits)) or item.touches("files")]:
        return summarize(changed)
    faults = []
    for split in splits:
        old, new = then.splits[split]["samples"], now.splits[split]["samples"]
        is_listed = any(line.startswith(f"{split}\t") for line in now.lines)
        faults.append(f"the {split} split has {'its samples in another order' if is_listed else 'other samples'}"
                      f"{f' ({old:,} then, {new:,} now)' if old != new else ''}")
    return ", ".join(faults)


def settle(run_dir: RunDir, now: Record, data: DataModule) -> str:
    """A run continues with the data that it began with. Returns a line if they have changed and that is accepted, or if
    an earlier version did not note them, else "". Raises DataError with what differs."""
    then = Record.read(run_dir)
    if not then.splits:
        return f"{run_dir} is of a version that kept no digest of its data; those of now are taken as the same"
    splits = changed_splits(then, now, data)
    if not splits:
        return ""
    listed = ""
    if then.lines and now.lines and (changed := differences(then.samples(), now.samples())):
        lines = [f"{item.place}\t{item.name}" for item in changed]
        write_text(run_dir.path / "changed_samples.tsv", "\n".join(["what\tname", *lines, ""]))
        listed = f"; {run_dir}/changed_samples.tsv lists them"
    message = f"the data have changed since {run_dir} began: {describe_changes(run_dir, then, now, splits)}{listed}"
    if run_dir.accepts_changed_data:
        return f"{message}; {KEY}=accept: it continues with those of now"
    raise DataError(f"{message}; restore the files, choose another name=, or continue with them by {KEY}=accept")


def describe_measured(run_dir: RunDir, data: DataModule, split: str) -> str:
    """A line if the split of an evaluation has other samples than when the run began, and on how many of them it was
    trained; "" if it has the same, or the run is of a version that did not note them."""
    then, now = Record.read(run_dir), Record.of(data)
    if split not in changed_splits(then, now, data):
        return ""
    line = (f"the {split} split has other samples than when {run_dir} began: "
            f"{describe_changes(run_dir, then, now, [split])}")
    if split == "train":
        return line
    if not then.lines or not now.lines:
        return f"{line}; the run may have trained on some"
    count = count_trained_on(then, now, split)
    return f"{line}; the run was trained on {count:,} of the {now.splits[split]['samples']:,}" if count else line


def count_trained_on(then: Record, now: Record, split: str) -> int:
    trained = {sample.content for sample in then.samples() if sample.split == "train"}
    return sum(sample.split == split and sample.content in trained for sample in now.samples())


def describe_overlap(source: RunDir, now: Record) -> list[str]:
    """Lines if a run that starts with the weights of another one is evaluated on what that was trained on."""
    then, lines = Record.read(source), []
    for split in ("val", "test"):
        if count := count_trained_on(then, now, split):
            lines.append(f"{count:,} of the {now.splits[split]['samples']:,} {split} samples are training samples of "
                         f"{source}, whose weights this run starts with: its {split} metrics say too much")
    return lines


def take_word(words: Iterable[str]) -> tuple[list[str], bool]:
    """The words without on_changed_data=, and whether it is accept. Raises UserError for another value."""
    others = []
    accept = False
    for word in words:
        key, equals, value = word.partition("=")
        if key != KEY or not equals:
            others.append(word)
        elif value not in ("accept", "refuse"):
            raise UserError(f"{word}: must be accept, or refuse, which is the default")
        else:
            accept = value == "accept"
    return others, accept
