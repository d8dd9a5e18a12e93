"""The values that the jobs of a sweep are trained with, from their config.yaml.

The texts of these files differ in a few values. The first of each kind is read in full, with all checks; of the others,
which are the same but for single words after keys that state a rule, only these words are read and checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dltrain import stored_files
from dltrain.config import schema, yaml_text
from dltrain.config.groups import GROUPS
from dltrain.config.schema import format_value
from dltrain.dotted import flatten
from dltrain.errors import UserError
from dltrain.run_links import stray_file

LINE = re.compile(r"^( *[A-Za-z_]\w*: )(.*?)(  # .*)$", re.MULTILINE)  # of a key with a comment
WORD = re.compile(r"[\w.+/-]*\w")
LIST = re.compile(rf"\[({WORD.pattern}(, {WORD.pattern})*)?\]")
PLAIN_NAME = re.compile(r"\w+")
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
PLAIN = (str, int, float, bool, type(None))


class Known(NamedTuple):
    """A config that was read in full: its values, also of choices, and the values in the lines of its keys with rules,
    with their names and rules."""

    values: dict[str, str]
    words: list[str]
    keys: list[str]
    rules: list[str]


class Values:
    """Reads the values of many jobs. `known`: by the text without the values of keys with rules. `refuse`: is called
    with each config that is read in full and its file, to raise UserError for one that lacks keys."""

    def __init__(self, refuse: Callable[[dict[str, Any], Path], None] | None = None) -> None:
        self.known: dict[tuple[str, ...], Known] = {}
        self.refuse = refuse

    def read(self, folder: Path, keys: Iterable[str]) -> dict[str, str]:
        """The values of these keys that the job of this folder is trained with; empty if it has not started. Raises
        UserError for a damaged config."""
        used = self.read_all(folder)
        return {key: used[key] for key in keys if key in used}

    def read_all(self, folder: Path) -> dict[str, str]:
        """The values of all keys."""
        file = folder / "config.yaml"
        if not file.is_file():
            return {}
        if message := stray_file(folder):
            raise UserError(message)
        text = stored_files.read_text(file, most_bytes=yaml_text.MOST_BYTES)
        pieces = LINE.split(text)  # after the text before a line: its key, its value and its comment
        words = pieces[2::4]
        del pieces[2::4]
        frame = tuple(pieces)
        used = changed(self.known[frame], words) if frame in self.known else None
        if used is None:
            config = stored_files.read_config(folder)
            if self.refuse:
                self.refuse(config, file)
            used = {**{key: format_value(value) for key, value in flatten(config).items()}, **config.get("choices", {})}
            if known := examine(text, used):
                self.known[frame] = known
        return used


def examine(text: str, values: dict[str, str]) -> Known | None:
    """None for a text, not written by dltrain, in which a line with a comment may be something else than a key."""
    lines = {line.line: (key, line.comment) for key, line in schema.parse(text, "").items()}
    known = Known(values, [], [], [])
    for match in LINE.finditer(text):
        key, comment = lines.get(text.count("\n", 0, match.start()) + 1, ("", ""))
        rule = schema.rule_of(comment)
        if rule is None or comment != match[3].strip(" #"):
            return None
        known.words.append(match[2])
        known.keys.append(key)
        known.rules.append(rule)
    return known


def changed(known: Known, words: list[str]) -> dict[str, str] | None:
    """The values of a config with these words; None if they are not plain, or against a rule."""
    used = dict(known.values)
    for key, before, word, rule in zip(known.keys, known.words, words, known.rules, strict=True):
        if word == before:
            continue
        text = plain_value(word, rule)
        if text is None:
            return None
        used[key] = text
    return used


@lru_cache(maxsize=10_000)
def plain_value(word: str, rule: str) -> str | None:
    """The value of a word, or of a list of words, as `format_value` writes it; None if it is not plain, or against the
    rule."""
    try:
        value = yaml.load(word, Loader=yaml_text.FASTEST) if WORD.fullmatch(word) or LIST.fullmatch(word) else ()
    except ValueError:  # a day that no month has
        return None
    is_plain = all(type(item) in PLAIN for item in (value if type(value) is list else [value]))
    return format_value(value) if is_plain and not schema.violation(rule, value) else None


def refuse_other_values(folder: Path, used: Mapping[str, str], given: Mapping[str, str]) -> None:
    """Raises UserError where the config of a job has another number or another choice than the words of its command."""
    for key, word in given.items():
        now = used.get(key, word)
        if NUMBER.fullmatch(word):
            is_other = not NUMBER.fullmatch(now) or float(now) != float(word)
        else:
            is_other = key in GROUPS and PLAIN_NAME.fullmatch(word) is not None and now != word
        if is_other:
            raise UserError(f"{folder / 'config.yaml'}: damaged or edited, it has {key}={now.strip() or repr(now)}, "
                            f"but the job was started with {key}={word}; {stored_files.RESTORE}")
