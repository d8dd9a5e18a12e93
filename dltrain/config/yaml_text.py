"""What the text of a config may be: plain yaml of a bounded size, each key once.

A few lines of yaml can stand for more values than there is memory for, since an alias may repeat a list of aliases:
they are counted before anything is expanded. This module imports neither Hydra nor torch.
"""

from __future__ import annotations

from pathlib import Path

import yaml

FASTEST = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # libyaml's is ten times as fast
FASTEST_DUMPER = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper
MOST_BYTES, MOST_VALUES, DEEPEST = 4 * 2**20, 100_000, 60
TAGGED = (yaml.ScalarEvent, yaml.MappingStartEvent, yaml.SequenceStartEvent)
PLAIN_TYPES = ("str", "int", "float", "bool", "null", "seq", "map")
PLAIN_TAGS = {None, "!", *(f"tag:yaml.org,2002:{name}" for name in PLAIN_TYPES)}


def read_yaml_text(file: Path) -> str:
    """The text of a yaml file that may come from somewhere else. Raises ValueError, with a message for the user that
    names the file and the line, for what is no plain yaml, or too much."""
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file}: a config has at most {MOST_BYTES // 2**20} MB, but this file has "
                        f"{file.stat().st_size / 2**20:.0f}")
    try:
        text = file.read_text(encoding="utf-8")
        refuse_text(text, str(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not plain yaml: {on_one_line(error)}") from None
    return text


def on_one_line(error: Exception) -> str:
    return " ".join(str(error).replace('in "<unicode string>", ', "in ").split())[:200]


class Level:
    """A list or mapping that is being read: how many values it stands for, and the keys of a mapping."""

    def __init__(self, anchor: str | None, is_mapping: bool):
        self.anchor, self.values = anchor, 1
        self.keys: set[str] | None = set() if is_mapping else None
        self.is_key = True  # the next value


def refuse_text(text: str, place: str) -> None:
    """Raises ValueError for a yaml text that is nested too deep, has too many values once its aliases are expanded, a
    key twice, or a tag that makes other objects than plain ones. Raises yaml.YAMLError for what is no yaml."""
    sizes: dict[str, int] = {}  # by anchor
    levels = [Level(None, is_mapping=False)]
    for event in yaml.parse(text, Loader=FASTEST):
        kind, top, fault = type(event), levels[-1], ""
        if kind is yaml.ScalarEvent:
            if top.keys is not None and top.is_key and event.value != "<<":
                fault = f"the key '{event.value[:60]}' is there twice; delete one of them" * (event.value in top.keys)
                top.keys.add(event.value)
            add(top, 1, event.anchor, sizes)
        elif kind in (yaml.MappingStartEvent, yaml.SequenceStartEvent):
            levels.append(Level(event.anchor, kind is yaml.MappingStartEvent))
            fault = f"nested too deep: a config has at most {DEEPEST} levels" * (len(levels) > DEEPEST)
        elif kind in (yaml.MappingEndEvent, yaml.SequenceEndEvent):
            levels.pop()
            add(levels[-1], top.values, top.anchor, sizes)
        elif kind is yaml.AliasEvent:
            fault = f"*{event.anchor} stands in itself, or for nothing" * (event.anchor not in sizes)
            add(top, sizes.get(event.anchor, 0), None, sizes)
        if kind in TAGGED and event.tag not in PLAIN_TAGS:
            fault = f"the tag {event.tag[:60]} is not allowed: a config has plain values only"
        if levels[-1].values > MOST_VALUES:
            fault = f"too many values, once its aliases are expanded: a config has at most {MOST_VALUES:,}"
        if fault:
            raise ValueError(f"{place}:{event.start_mark.line + 1}: {fault}")


def add(level: Level, values: int, anchor: str | None, sizes: dict[str, int]) -> None:
    level.values += values
    level.is_key = not level.is_key
    if anchor is not None:
        sizes[anchor] = values
