"""The keys of `dltrain bench` that are not keys of the config."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from dltrain.commands.stored import parse_value
from dltrain.errors import UserError

NAMES = ("threads", "memory_format", "compile", "precision")  # as in benchmark/settings.py, which imports torch
BY_DEFAULT = ("threads", "memory_format", "precision")
KEYS = {"seconds": "float > 0", "rounds": "int >= 1", "try": "str", "json": "str", "trace": "str"}  # key -> its rule


class Options(NamedTuple):
    """The keys of the verb. `json`, `trace`: a file, "true" for one below output_dir, None for none."""

    seconds: float = 30.0
    rounds: int = 5
    tries: tuple[str, ...] = BY_DEFAULT
    forced: bool = False  # the tries were named
    json: str | None = None
    trace: str | None = None


def take_options(words: list[str]) -> tuple[Options, list[str]]:
    """The verb's own keys, and the other words. Raises UserError."""
    given: dict[str, Any] = {}
    others = []
    for word in words:
        key, equals, text = word.partition("=")
        if key not in KEYS or not equals:
            if meant := difflib.get_close_matches(key, KEYS, 1, 0.85) if key not in KEYS else []:
                raise UserError(f"unknown key '{key}'; did you mean '{meant[0]}'?")
            others.append(word)
        elif key == "try":
            given |= {"tries": dimensions(text), "forced": True}
        elif text not in ("false", "null", ""):
            given[key] = parse_value(key, text, KEYS[key])
    return Options(**given), others


def dimensions(text: str) -> tuple[str, ...]:
    """The names in `try=`. Raises UserError."""
    names = {"all": NAMES, "none": ()}.get(text, tuple(text.split(",")))
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"try={text}: '{unknown[0]}' must be one of {', '.join(NAMES)}, or it is try=all or try=none")
    return names
