"""The words of a sweep that limit what a command does of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from dltrain.errors import UserError


class Limits(NamedTuple):
    """What a command may do of a sweep: `max_jobs` runs, none that starts after `max_hours`; with `plan` none."""

    plan: bool = False
    max_jobs: int | None = None
    max_hours: float | None = None


def limits_of(words: Iterable[str]) -> Limits:
    """From the words plan=, max_jobs= and max_hours=. Raises UserError for another value than theirs."""
    kinds: dict[str, tuple[str, Callable[[str], Any]]] = {
        "plan": ("true or false", {"true": True, "false": False}.__getitem__),
        "max_jobs": ("an integer >= 1", int), "max_hours": ("a number > 0", float)}
    values = {}
    for word in words:
        key, _, text = word.partition("=")
        kind, parse = kinds[key]
        try:
            values[key] = parse(text)
        except (KeyError, ValueError):
            values[key] = -1
        if values[key] < 0 or (values[key] == 0 and key != "plan"):
            raise UserError(f"{word}: must be {kind}")
    return Limits(**values)
