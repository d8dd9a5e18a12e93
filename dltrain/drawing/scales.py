"""Where the values of a key stand on an axis: by their logarithm if they are spaced so, by their size, or one beside
the other if they are no numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import mean, pstdev
from typing import NamedTuple

MOST_VALUES = 10  # that are each written at the axis


class Scale(NamedTuple):
    """`places`: of each value, as it is written in a config. `ticks`: places and labels."""

    kind: str  # log, linear or names
    places: dict[str, float]
    ticks: list[tuple[float, str]]


def scale_of(values: Iterable[str]) -> Scale:
    """A log axis has a value of 0 one step below the smallest one."""
    texts = [*dict.fromkeys(values)]
    try:
        numbers = {text: float(text) for text in texts}
    except ValueError:
        numbers = {}
    if len({*numbers.values()}) < 2 or not all(map(math.isfinite, numbers.values())):
        places = {text: float(place) for place, text in enumerate(sorted(texts, key=lambda text: numbers.get(text, 0)))}
        return Scale("names", places, [(place, text) for text, place in places.items()])
    if is_log_spaced([*numbers.values()]):
        logs = [math.log10(number) for number in sorted({*numbers.values()} - {0})]
        below = logs[0] - max(mean(high - low for low, high in pairwise(logs)), 0.3)
        places = {text: math.log10(number) if number else below for text, number in numbers.items()}
        decades = [(float(power), f"{10.0**power:g}") for power in range(math.floor(logs[0]), math.ceil(logs[-1]) + 1)]
        return Scale("log", places, ticks(places, [(below, "0")] * (0 in numbers.values()) + decades))
    low, high = min(numbers.values()), max(numbers.values())
    even = [low + (high - low) * step / 4 for step in range(5)]
    return Scale("linear", numbers, ticks(numbers, [(number, f"{number:.4g}") for number in even]))


def is_log_spaced(numbers: Sequence[float]) -> bool:
    """Whether the ratios of neighbours are more alike than their differences: at least three numbers, none below 0, of
    which 0 itself is left aside."""
    positive = sorted({*numbers} - {0})
    if len(positive) < 3 or positive[0] < 0:
        return False
    differences = [high - low for low, high in pairwise(positive)]
    ratios = [math.log(high / low) for low, high in pairwise(positive)]
    return pstdev(ratios) / mean(ratios) < pstdev(differences) / mean(differences) - 1e-9


def ticks(places: dict[str, float], round_ones: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The values themselves, or round ones where they are many."""
    if len(places) > MOST_VALUES:
        return round_ones
    return sorted({place: text for text, place in places.items()}.items())
