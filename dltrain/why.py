"""`dltrain why KEY [choices]`: which file and line, or which word, set a value, and which others it was set over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dltrain.config import groups, schema
from dltrain.config.compose import Composed, compose_unchecked, flat_keys
from dltrain.errors import UserError, nearest


@dataclass(frozen=True)
class Source:
    where: str
    value: str
    comment: str = ""


def why(key: str, words: list[str], config_dir: str | None = None) -> str:
    """The answer, as printed. Raises UserError for an unknown key or choice."""
    composed = compose_unchecked(words, config_dir)
    if key in groups.GROUPS or key == "task":
        sources = sources_of_choice(composed, key)
        value = composed.chosen.get(key) or "none"
        node = key.replace("/", ".")  # where the keys of the choice stand
        if OmegaConf.select(composed.config, node) is not None:
            return told(key, value, sources) + f"\n  (a choice; its keys are {node}.*)"
        return told(key, value, sources)
    known = flat_keys(composed.config)
    if key not in known:
        raise UserError(f"unknown key '{key}'{nearest(key, known) or '; dltrain --cfg job shows every key'}")
    value = OmegaConf.select(composed.config, key)
    sources = sources_of_value(composed, key)
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return told(key, shown(plain), sources)


def told(key: str, value: str, sources: list[Source]) -> str:
    """The value, then its sources, the one that counts first."""
    lines = [f"{key} = {value}"]
    width = max((len(source.where) for source in sources), default=0)
    for place, source in enumerate(reversed(sources)):
        word = "set by" if place == 0 else "over  "
        lines.append(f"  {word} {source.where:<{width}}  {source.value}")
    meaning = next((source.comment for source in reversed(sources) if source.comment), "")
    return "\n".join([*lines, f"  # {meaning}"] if meaning else lines)


def sources_of_value(composed: Composed, key: str) -> list[Source]:
    """In the order of merging: the files, then the command line."""
    found = []
    for file, package in composed.places:
        if assignment := schema.assignments(file, package).get(key):
            found.append(Source(f"{display(file)}:{assignment.line}", shown(assignment.value), assignment.comment))
    for override in composed.overrides:
        if override.key_or_group == key and not override.is_delete():
            found.append(Source(word_of(composed, override.key_or_group), shown(override.value())))
    return found


def sources_of_choice(composed: Composed, group: str) -> list[Source]:
    """The defaults lists that name the group, then the command line."""
    found = []
    for file, _ in sorted(composed.places, key=lambda place: place[0] != groups.CONFIGS / "train.yaml"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            entry = line.strip().removeprefix("- ").removeprefix("optional ").removeprefix("override ").lstrip("/")
            name, colon, value = entry.partition(":")
            if line.strip().startswith("- ") and colon and name == group:
                found.append(Source(f"{display(file)}:{number}", value.partition("#")[0].strip()))
    for override in composed.overrides:
        if override.key_or_group == group:
            found.append(Source(word_of(composed, override.key_or_group), shown(override.value())))
    return found


def word_of(composed: Composed, key: str) -> str:
    return "the experiment's sweep, first job" if key in (composed.swept or {}) else "the command line"


def display(file: Path) -> str:
    """Relative to here where it lies below here."""
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
