"""The config of a run as a table: of each key its value, where the value came from, and its rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dltrain import run_parent
from dltrain.config import groups, schema
from dltrain.config.compose import Sources, compose_unchecked
from dltrain.config.renamed import SHORT_FORMS
from dltrain.dotted import flatten, select
from dltrain.errors import UserError
from dltrain.reports.run_texts import lines_of, starts
from dltrain.run_dir import RunDir, split_words

COMMAND, SWEEP, PARENT, DEFAULT = "command line", "sweep", "parent run", "default"
FILES, OWN = "read from the data", "dltrain"
GIVEN = {COMMAND, SWEEP}


class Row(NamedTuple):
    key: str
    value: str
    source: str  # "" where it is not known: a file has changed since, or was in a folder of the user's
    rule: str


def rows(run_dir: RunDir, config: Mapping[str, Any]) -> list[Row]:
    """In the order of config.yaml."""
    rules, given, stated = run_dir.comments(), given_keys(run_dir.path), values_of_files(config)
    parent, sizes = run_parent.read(run_dir.path), run_dir.read_splits().get("sizes", [])
    above = {} if parent is None else given_keys(parent.folder(run_dir.path))
    listed = []
    for key, value in flatten(config).items():
        name = key.removeprefix("choices.")
        source = given.get(name, "")
        if not source and parent is not None and (key in parent.changes or name in above):
            source = PARENT
        if not source and key.startswith("choices."):
            source = DEFAULT
        if not source and (key in ("class_names", "version") or (key == "trainer.extended" and value)):
            source = OWN
        if not source and key.startswith("data.") and key.removeprefix("data.") in sizes:
            source = FILES
        listed.append(Row(key, schema.yaml_scalar(value), source or source_of(key, value, stated), rules.get(key, "")))
    return listed


def given_keys(folder: Path) -> dict[str, str]:
    """The keys, in full, that the command lines of a run and the sweep of which it is a job have set: COMMAND or
    SWEEP."""
    given = {}
    words = [(COMMAND, word) for start in starts(folder) for word in split_words(start.command)]
    words += [(SWEEP, word) for line in lines_of(folder / "overrides.txt") for word in split_words(line)]
    for source, word in words:
        key, equals, _ = word.partition("=")
        if equals:
            key = key.lstrip("+~")
            given[SHORT_FORMS.get(key, key)] = source
    return given


def values_of_files(config: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Of each key the file of dltrain that states it last, as recipe=x or DEFAULT, and the value there. Choices
    that are not dltrain's own are left out, with their keys."""
    choices = select(config, "choices")[1] or {}
    known = {group: name for group, name in choices.items() if group in groups.GROUPS and (
        name == "none" or groups.path_of(group, name))}
    try:
        places = compose_unchecked([f"{group}={name}" for group, name in known.items()], Sources()).places
    except UserError:
        return {}
    stated: dict[str, tuple[str, Any]] = {}
    for file, package in places:
        group = file.relative_to(groups.CONFIGS).parts[0]
        source = f"{group}={known.get(group)}" if group in ("recipe", "experiment") else DEFAULT
        stated |= {key: (source, line.value) for key, line in schema.assignments(file, package).items()}
    foreign = {group.partition("/")[0] for group in choices.keys() - known.keys() - {"task"}}
    return {key: place for key, place in stated.items() if key.partition(".")[0] not in foreign}


def source_of(key: str, value: object, stated: Mapping[str, tuple[str, Any]]) -> str:
    """The file that states the key, if it has this value there, or an expression."""
    source, written = stated.get(key, ("", None))
    return source if written == value or (type(written) is str and "${" in written) else ""
