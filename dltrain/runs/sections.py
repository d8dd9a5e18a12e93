"""In what two runs differ, kind by kind: config, choices, code, versions, data and results, by the files of their
folders. `A` and `B` stand for the two."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dltrain import run_parent, same_data, step_record, stored_files
from dltrain.config.free_keys import DERIVED, EARLIER
from dltrain.dotted import flatten, select
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.run_parent import place_of
from dltrain.same_config import differences
from dltrain.stored_files import shorten

IDENTITY = {"name", "output_dir"}  # keys of the config in which any two runs differ
NO_METRICS = {"seed", "seconds"}  # numbers of result.json
FREE_NOTE = "changes no weights"
FILES_NAMED = 10  # of code


class Section(NamedTuple):
    """`rows`: what differs, with the values of both and a note; `lines`: what is to be read as a sentence. Nothing
    differs if both are empty."""

    title: str
    rows: list[tuple[str, str, str, str]]
    lines: list[str]
    note_title: str = ""


class Pair(NamedTuple):
    """Two run folders with their configs."""

    a: Path
    b: Path
    config_a: dict[str, Any]
    config_b: dict[str, Any]

    def read(self, read: Callable[[Path], Any]) -> tuple[Any, Any]:
        return read(self.a), read(self.b)

    def not_recorded(self, what: str, a: object, b: object) -> list[str]:
        """A line if one of them, or both, do not have it."""
        missing = [name for name, value in (("A", a), ("B", b)) if not value]
        return [f"{what} not recorded in {' and '.join(missing)}"] if missing else []


def config_section(pair: Pair) -> Section:
    """Keys that change the training first; choices and class names have sections of their own."""
    changes = [change._replace(then=effective(change.key, change.then), now=effective(change.key, change.now))
               for change in differences(pair.config_a, pair.config_b)
               if change.key.partition(".")[0] not in DERIVED | IDENTITY]
    rows = [(change.key, text_at(pair.config_a, change.key, change.then),
             text_at(pair.config_b, change.key, change.now), FREE_NOTE * change.is_free)
            for change in sorted(changes, key=lambda change: change.is_free) if change.then != change.now]
    return Section("config", rows, [])


def effective(key: str, value: object) -> object:
    """What runs did before they had the key; None for an empty list, which is as good as none."""
    value = EARLIER.get(key) if value is None else value
    return None if value == [] or value == {} else value


def text_at(config: Mapping[str, Any], key: str, value: object) -> str:
    """"-" for a key that the config does not have, unless it is known what runs did before they had it."""
    return "-" if value is None and not select(config, key)[0] else shorten(value)


def choices_section(pair: Pair) -> Section:
    a, b = (config.get("choices", {}) for config in (pair.config_a, pair.config_b))
    return Section("choices", rows_of(a, b), pair.not_recorded("choices", a, b))


def rows_of(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The keys with other values; "-" where one does not have it."""
    texts = {key: [shorten(values[key]) if key in values else "-" for values in (a, b)]
             for key in dict.fromkeys([*a, *b]) if key not in a or key not in b or a[key] != b[key]}
    return [(key, then, now, "") for key, (then, now) in texts.items()]


def code_section(pair: Pair) -> Section:
    """The commit of dltrain, the modules of dltrain that the training used, and the user's own."""
    environments = pair.read(read_environment)
    commits = [values.get("git_commit") for values in environments]
    rows = [("git commit", str(commits[0]), str(commits[1]), "")] if None not in commits and (
        commits[0] != commits[1]) else []
    lines = pair.not_recorded("git commit", *commits)
    codes = pair.read(lambda folder: read_record(folder).get("code", {}))
    lines += pair.not_recorded("digests of the code (first_steps.json)", *codes)
    if all(codes):
        lines += describe_files(*codes)
    own = pair.read(lambda folder: read_optional(folder / "own_code.json"))
    if any(own):  # most runs have no code of their own
        lines += pair.not_recorded("own code (own_code.json)", *own)
        rows += [(f"own code: {name}", a[:8], b[:8], note) for name, a, b, note in rows_of(*own)]
    return Section("code", rows, lines)


def describe_files(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Of two digests by file."""
    kinds = {"differ": [name for name in a if name in b and a[name] != b[name]],
             "only in A": [name for name in a if name not in b], "only in B": [name for name in b if name not in a]}
    return [f"{kind}: {', '.join(names[:FILES_NAMED])}{and_more(len(names) - FILES_NAMED)}"
            for kind, names in kinds.items() if names]


def and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def versions_section(pair: Pair) -> Section:
    """Versions, device and threads of the last start of each."""
    a, b = ({key: value for key, value in values.items() if key != "git_commit"}
            for values in pair.read(read_environment))
    if not a or not b:
        return Section("versions", [], pair.not_recorded("environment.json", a, b))
    return Section("versions", rows_of(a, b), [])


def data_section(pair: Pair) -> Section:
    """By the digests of the splits and, for people's own files, what has become of each sample from A to B."""
    then, now = pair.read(lambda folder: same_data.Record.read(RunDir(folder)))
    lines = pair.not_recorded("digests of the splits", then.splits, now.splits)
    rows = [(split, describe_split(then.splits[split]), describe_split(now.splits[split]), "")
            for split in same_data.SPLITS if split in then.splits and split in now.splits
            and then.splits[split] != now.splits[split]]
    if then.lines and now.lines and (changed := same_data.differences(then.samples(), now.samples())):
        lines.append(f"from A to B: {same_data.summarize(changed)}")
    names = [config.get("class_names") or [] for config in (pair.config_a, pair.config_b)]
    if names[0] != names[1]:
        rows.append(("class names", shorten(names[0]), shorten(names[1]), ""))
    return Section("data", rows, lines)


def describe_split(split: Mapping[str, Any]) -> str:
    return f"{split['samples']:,} samples, digest {str(split['digest'])[:8]}"


def metrics_section(pair: Pair) -> Section:
    """Numbers of result.json, the headline first."""
    a, b = pair.read(lambda folder: stored_files.read_result(folder / "result.json"))
    numbers = [{key: value for key, value in result.items() if stored_files.is_number(value)
                and key not in NO_METRICS} for result in (a, b)]
    rows = [(key, *(format(values[key], ".6g") if key in values else "-" for values in numbers),
             format(numbers[1][key] - numbers[0][key], "+.4g") if all(key in values for values in numbers) else "")
            for key in sorted({**numbers[0], **numbers[1]}, key=lambda key: (key.count("/") != 1, key))
            if repr(numbers[0].get(key)) != repr(numbers[1].get(key))]
    missing = [name for name, result in (("A", a), ("B", b)) if not result]
    if missing:
        return Section("metrics", [], [f"not recorded in {' and '.join(missing)}: no result.json, the run is not done"])
    return Section("metrics", rows, [], "B - A")


def parent_section(pair: Pair) -> Section:
    """Where the two part, if one is the parent of the other, or both have an ancestor in common."""
    chains = [ancestors(folder) for folder in (pair.a, pair.b)]
    if not any(len(chain) > 1 for chain in chains):
        return Section("parent", [], [])
    places = [{place: number for number, (place, _) in enumerate(chain)} for chain in chains]
    common = next((place for place, _ in chains[0] if place in places[1]), None)
    lines = []
    for name, chain, folder in zip("AB", chains, (pair.a, pair.b), strict=True):
        if parent := chain[0][1]:
            lines.append(f"{name} {parent.describe(folder)}")
    if common is None:
        return Section("parent", [], [*lines, "they have no run in common"])
    links = [chain[number[common] - 1][1] if number[common] else None
             for chain, number in zip(chains, places, strict=True)]
    step, epoch = min((link.step, link.epoch) for link in links if link)
    name = "A" if common == os.path.abspath(pair.a) else "B" if common == os.path.abspath(pair.b) else (
        os.path.relpath(common))
    return Section("parent", [], [*lines, f"the same up to {place_of(epoch, step)} of {name}, where they part"])


def ancestors(folder: Path) -> list[tuple[str, run_parent.Parent | None]]:
    """The folder itself, its parent and so on, each by its absolute path and with its own parent.json."""
    chain: list[tuple[str, run_parent.Parent | None]] = []
    while (place := os.path.abspath(folder)) not in [seen for seen, _ in chain]:
        parent = run_parent.read(folder)
        chain.append((place, parent))
        if parent is None:
            break
        folder = parent.folder(folder)
    return chain


def read_environment(folder: Path) -> dict[str, Any]:
    return flatten(read_optional(folder / "environment.json"))


def read_optional(file: Path) -> dict[str, Any]:
    """Empty where there is no file."""
    return stored_files.read_json(file, "delete it, and it counts as not recorded") if os.path.lexists(file) else {}


def read_record(folder: Path) -> dict[str, Any]:
    file = folder / step_record.FILE
    return step_record.read(file) if os.path.lexists(file) else {}


def guarded(title: str, make: Callable[[Pair], Section], pair: Pair) -> Section:
    """A damaged file costs its own section alone."""
    try:
        return make(pair)
    except UserError as error:
        return Section(title, [], [f"cannot be read: {error}"])
