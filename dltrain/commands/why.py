"""`dltrain why KEY [choices]`: shows where a config value comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from dltrain.config import checks, groups, launch, schema
from dltrain.config.compose import Composed, Sources, compose_unchecked
from dltrain.config.words import full_key
from dltrain.errors import UserError, suggest

HELP = """\
dltrain why KEY [choices]    shows where a config value was set, in a file or on the command line, and what it replaced

  dltrain why task.optimizer.lr model=resnet56 data=cifar10
  dltrain why augment data=cifar10        a choice: which yaml's defaults list selected it"""


@dataclass(frozen=True)
class Source:
    """One place that sets a value."""

    place: str
    value: str
    comment: str = ""


def run(words: list[str]) -> int:
    print(answer(words))
    return 0


def answer(words: list[str]) -> str:
    flags = launch.parse_flags(words)
    if not flags.overrides:
        raise UserError("why needs a key: dltrain why task.optimizer.lr model=resnet56 data=cifar10")
    return explain(flags.overrides[0], flags.overrides[1:], flags.config_dir)


def explain(key: str, words: list[str], config_dir: str | None = None) -> str:
    """The answer, as printed. Raises UserError for an unknown key or choice."""
    key = full_key(key)
    composed = compose_unchecked(words, Sources(config_dir))
    if key in groups.GROUPS or key == "task":
        answer = format_sources(key, composed.chosen.get(key) or "none", sources_of_choice(composed, key))
        has_keys = OmegaConf.select(composed.config, key.replace("/", ".")) is not None
        return f"{answer}\n  (a choice; its keys are {key.replace('/', '.')}.*)" if has_keys else answer
    known = checks.flat_keys(composed.config)
    if key not in known:
        checks.refuse_old_key(key)
        raise UserError(f"unknown key '{key}'{suggest(key, known) or '; dltrain --cfg job shows every key'}")
    value = OmegaConf.select(composed.config, key)
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return format_sources(key, schema.format_value(plain), sources_of_value(composed, key))


def format_sources(key: str, value: str, sources: list[Source]) -> str:
    """The value, then its sources, the one that counts first."""
    lines = [f"{key} = {value}"]
    width = max((len(source.place) for source in sources), default=0)
    for position, source in enumerate(reversed(sources)):
        word = "set by" if position == 0 else "over  "
        lines.append(f"  {word} {source.place:<{width}}  {source.value}")
    comment = next((source.comment for source in reversed(sources) if source.comment), "")
    return "\n".join([*lines, f"  # {comment}"] if comment else lines)


def sources_of_value(composed: Composed, key: str) -> list[Source]:
    """In the order of merging: the files, then the command line."""
    sources = []
    for file, package in composed.places:
        if line := schema.assignments(file, package).get(key):
            sources.append(Source(f"{display(file)}:{line.line}", schema.format_value(line.value), line.comment))
    return sources + overrides_of(composed, key)


def sources_of_choice(composed: Composed, group: str) -> list[Source]:
    """The defaults lists that name the group, then the command line."""
    sources = []
    for file, _ in sorted(composed.places, key=lambda place: place[0] != groups.CONFIGS / "train.yaml"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            entry = line.strip().removeprefix("- ").removeprefix("optional ").removeprefix("override ").lstrip("/")
            name, colon, value = entry.partition(":")
            if line.strip().startswith("- ") and colon and name == group:
                sources.append(Source(f"{display(file)}:{number}", value.partition("#")[0].strip()))
    return sources + overrides_of(composed, group)


def overrides_of(composed: Composed, key: str) -> list[Source]:
    swept = key in (composed.experiment_sweep or {})
    place = "the experiment's sweep, first job" if swept else "the command line"
    return [Source(composed.reasons.get(str(override.input_line), place), schema.format_value(override.value()))
            for override in composed.overrides
            if override.key_or_group == key and not override.is_delete()]


def display(file: Path) -> str:
    """Relative to the current folder if it lies below it."""
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
