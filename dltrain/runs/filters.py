"""Which runs are listed, and in which order: the words of `dltrain ls runs`.

A condition is KEY=VALUE, KEY!=VALUE, or of numbers KEY<VALUE, KEY<=VALUE, KEY>VALUE, KEY>=VALUE. A key is one of
SPECIAL, of the config (in full, in short form, or by its last name), or of result.json. A word without an operator is
a pattern (glob) of the name of the folder.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import NamedTuple

from dltrain.config.groups import natural_key
from dltrain.config.renamed import SHORT_FORMS, new_name
from dltrain.errors import UserError, suggest
from dltrain.runs.record import STATES, Run

SPECIAL = ("state", "name", "time")  # name: of the folder; time: the seconds of training
CONDITION = re.compile(r"([\w./-]+?)(<=|>=|!=|=|<|>)(.*)", re.DOTALL)
ORDERS: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt,
                                                     ">=": operator.ge}


class Filter(NamedTuple):
    """`key`: resolved by `Keys`; "" for a pattern of the folder, which is `text`."""

    key: str
    sign: str
    text: str

    def holds(self, run: Run) -> bool:
        """Never for a run that cannot be read, unless only its folder or its state counts."""
        if not self.key:
            return fnmatchcase(run.folder.absolute().name, self.text)
        value = value_of(run, self.key)
        if value is None:
            return False
        if self.sign in ORDERS:
            numbers = to_number(value), to_number(self.text)
            return None not in numbers and ORDERS[self.sign](*numbers)  # type: ignore[arg-type]
        is_equal = any(same(value, text) for text in (self.text, *self.text.split(",")))
        return is_equal == (self.sign == "=")


def value_of(run: Run, key: str) -> str | float | None:
    """None where the run does not have it."""
    match key:
        case "state":
            return run.state.name
        case "name":
            return run.folder.absolute().name
        case "time":
            return run.number("seconds")
    if key in run.values:
        return run.values[key]
    return run.number(key)


def to_number(value: object) -> float | None:
    with suppress(ValueError):
        return float(str(value))
    return None


def same(value: str | float, text: str) -> bool:
    """0.1 and 1e-1 are the same number."""
    number = to_number(value)
    return str(value) == text or (number is not None and number == to_number(text))


class Keys:
    """The keys that any of the runs has."""

    def __init__(self, runs: Iterable[Run]):
        runs = [*runs]
        config = set[str]().union(*(run.values for run in runs))
        numbers = {key for run in runs for key in run.result if run.number(key) is not None}
        self.known = {*SPECIAL, *config, *numbers}
        self.has_runs = bool(config)

    def resolve(self, key: str) -> str:
        """Raises UserError for a key that no run has."""
        full = SHORT_FORMS.get(key, key)
        if full in self.known or not self.has_runs:
            return full
        ends = sorted(name for name in self.known if name.endswith(f".{key}") and not name.startswith("choices."))
        if len(ends) == 1:
            return ends[0]
        if ends:
            raise UserError(f"'{key}' may be {' or '.join(ends)}; write one of them")
        renamed = new_name(key)
        hint = f"; it is now {renamed}" if renamed else suggest(key, [*sorted(self.known), *SHORT_FORMS])
        raise UserError(f"ls runs: unknown key '{key}'{hint or '; a key is of the config or of result.json'}")

    def parse(self, word: str) -> Filter:
        """Raises UserError for a condition that no run can fulfil."""
        match = CONDITION.fullmatch(word)
        if match is None:
            return Filter("", "", word)
        key, sign, text = self.resolve(match[1]), match[2], match[3]
        if key == "state" and (unknown := {*text.split(",")} - {*STATES}):
            name = sorted(unknown)[0]
            raise UserError(f"state={text}: unknown state '{name}'{suggest(name, [*STATES])}; there are: "
                            f"{', '.join(STATES)}")
        if sign in ORDERS and to_number(text) is None:
            raise UserError(f"ls runs: '{word}': must be a number after {sign}")
        return Filter(key, sign, text)


class Order(NamedTuple):
    """`key`: resolved; "name" for the order of folders. `is_reversed`: by a minus before the key."""

    key: str
    is_reversed: bool

    def sorted(self, runs: Sequence[Run], values: Sequence[str | float | None]) -> list[int]:
        """The numbers of the runs in this order: of a metric that is a headline the best first, of other values the
        smallest first, and with a minus the other way round. Those without a value come last. `values`: of each run."""
        backwards = self.is_reversed != (mode_of(self.key, runs) == "max")
        there = [number for number, value in enumerate(values) if value not in (None, "null") and value == value]
        there.sort(key=lambda number: rank_of(values[number]), reverse=backwards)
        return [*there, *(number for number in range(len(values)) if number not in {*there})]


def rank_of(value: str | float | None) -> tuple[float, list[str | int]]:
    """Numbers before texts, and these in natural order."""
    number = to_number(value)
    return (number, []) if number is not None else (float("inf"), natural_key(str(value)))


def mode_of(key: str, runs: Iterable[Run]) -> str:
    """max or min for the headline metric of a run, as val/accuracy, and the same metric of the test; else ""."""
    return next((str(run.result.get("headline_mode", "")) for run in runs
                 if run.headline and key in (run.headline, run.headline.replace("val/", "test/"))), "")
