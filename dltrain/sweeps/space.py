"""What a search chooses from: for each swept key an interval or a list of values, as Hydra's grammar states them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple, cast

from hydra.core.override_parser.types import IntervalSweep, Override

from dltrain.errors import UserError

DIGITS = 4  # of a number that is proposed


class Interval(NamedTuple):
    """Numbers from `low` to `high`, both included: lr=interval(0.1, 1), or on a log scale
    lr=tag(log, interval(0.001, 1)); integers of int(interval(1, 9))."""

    key: str
    low: float
    high: float
    is_log: bool
    is_integer: bool

    def text(self, value: float) -> str:
        """The value with DIGITS digits, as a word has it."""
        if self.is_integer:
            return str(round(value))
        return f"{min(max(float(f'{value:.{DIGITS}g}'), self.low), self.high):.12g}"

    def ends(self) -> list[str]:
        return [self.text(self.low), self.text(self.high)]

    def draw(self, rng: random.Random) -> str:
        if self.is_log:
            return self.text(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.text(rng.uniform(self.low, self.high))


class Choice(NamedTuple):
    """Listed values: lr=0.1,0.2 or choice(...), and range(...), whose values have an order."""

    key: str
    values: tuple[str, ...]
    has_order: bool

    def ends(self) -> list[str]:
        return [*self.values]

    def draw(self, rng: random.Random) -> str:
        return rng.choice(self.values)


Dimension = Interval | Choice


def dimension_of(override: Override) -> Dimension:
    """Of an override that is swept. Raises UserError for an interval that has no numbers."""
    key = override.get_key_element()
    if not override.is_interval_sweep():
        return Choice(key, (*override.sweep_string_iterator(),), override.is_range_sweep())
    sweep = cast(IntervalSweep, override.value())
    low, high, is_log = sweep.start or 0, sweep.end or 0, "log" in sweep.tags
    if low >= high or (is_log and low <= 0):
        raise UserError(f"{override.input_line}: must be interval(low, high) with low < high"
                        f"{' and, on a log scale, low > 0' if is_log else ''}")
    return Interval(key, low, high, is_log, type(low) is int)


class Space(NamedTuple):
    """`fixed`: the words that all jobs share."""

    fixed: list[str]
    dimensions: list[Dimension]

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Space:
        """Raises UserError if nothing is swept."""
        swept = [override for override in overrides if override.is_sweep_override()]
        if not swept:
            raise UserError("search: no key has several values; sweep one, as 'lr=tag(log, interval(1e-3, 1))' or "
                            "lr=0.1,0.2")
        fixed = [str(override.input_line) for override in overrides if override not in swept]
        return cls(fixed, [dimension_of(override) for override in swept])

    @property
    def swept(self) -> list[str]:
        return [dimension.key for dimension in self.dimensions]

    def words(self, texts: Sequence[str]) -> list[str]:
        """Of the job with these values."""
        return [*self.fixed, *(f"{dimension.key}={text}" for dimension, text in
                               zip(self.dimensions, texts, strict=True))]

    def draw(self, seed: int, number: int) -> list[str]:
        """The words of random job `number`."""
        rng = random.Random(f"{seed} {number}")
        return self.words([dimension.draw(rng) for dimension in self.dimensions])

    def corners(self) -> list[list[str]]:
        """Words that have each listed value and each end of an interval once, beside the first of the others."""
        first = [dimension.ends()[0] for dimension in self.dimensions]
        return [self.words([*first[:place], text, *first[place + 1 :]])
                for place, dimension in enumerate(self.dimensions) for text in dimension.ends()]

    @property
    def has_interval(self) -> bool:
        return any(type(dimension) is Interval for dimension in self.dimensions)

    def __str__(self) -> str:
        return " ".join(f"{dimension.key} in {dimension[1:]}" for dimension in self.dimensions)
