"""Runs that differ in the seed alone are repeats of one setting: mean, deviation and interval, and whether two settings
differ clearly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

LEVEL, POWER = 0.95, 0.8  # of intervals and tests; with which a test would find the difference that was seen
MOST_SEEDS = 1000
NO_SPREAD = 1e-9  # deviation over mean of differences that are equal but for rounding


class Interval(NamedTuple):
    low: float
    high: float


class Comparison(NamedTuple):
    """A paired t test over the seeds that both settings have; where all differences are equal, as shares of few samples
    may be, there is no spread to test with, and it is a sign test. `p`: how often a difference as large comes about
    where there is none. `seeds_needed`: with so many the test finds the difference that was seen with probability
    POWER; None if above MOST_SEEDS."""

    difference: float
    interval: Interval
    p: float
    seeds: int
    seeds_needed: int | None

    @property
    def is_clear(self) -> bool:
        return self.p < 1 - LEVEL


def quantile(probability: float, freedom: int) -> float:
    """Of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def deviation_of(values: Sequence[float]) -> float:
    """Their standard deviation; NaN where one is not finite, on which `statistics.stdev` raises AttributeError. Needs
    two values."""
    return stdev(values) if all(map(math.isfinite, values)) else math.nan


def interval_of(values: Sequence[float]) -> Interval:
    """Of the mean, by Student's t distribution. Needs two values."""
    half = quantile(0.5 + LEVEL / 2, len(values) - 1) * deviation_of(values) / math.sqrt(len(values))
    return Interval(mean(values) - half, mean(values) + half)


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> Comparison | None:
    """Values by seed. None with fewer than two seeds in common, or where a difference is not finite."""
    from scipy.special import stdtr

    differences = [first[seed] - second[seed] for seed in first if seed in second]
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    average, deviation = mean(differences), stdev(differences)
    if average == deviation == 0:
        p, needed = 1.0, None
    elif deviation <= NO_SPREAD * abs(average):
        p, needed = 2.0 ** (1 - len(differences)), 1 + math.ceil(-math.log2(1 - LEVEL))
    else:
        t = average / (deviation / math.sqrt(len(differences)))
        p, needed = 2 * float(stdtr(len(differences) - 1, -abs(t))), seeds_needed(abs(average) / deviation)
    return Comparison(average, interval_of(differences), p, len(differences), needed)


def seeds_needed(effect: float) -> int | None:
    """`effect`: the difference in its standard deviations. By the usual approximation, n >= ((t(1 - alpha/2) +
    t(power)) / effect)^2 with t of n - 1 degrees of freedom."""
    return next((count for count in range(2, MOST_SEEDS) if effect * math.sqrt(count) >= quantile(
        0.5 + LEVEL / 2, count - 1) + quantile(POWER, count - 1)), None)


def detectable(count: int) -> float:
    """The true mean difference, in standard deviations of a single one, whose sign the interval of `count` seeds shows
    with probability POWER (by the noncentral t distribution)."""
    from scipy.special import nctdtrinc

    return float(nctdtrinc(count - 1, 1 - POWER, quantile(0.5 + LEVEL / 2, count - 1))) / math.sqrt(count)


def describe(names: tuple[str, str], metric: str, comparison: Comparison) -> str:
    """A sentence for the user."""
    low, high = comparison.interval
    text = (f"{names[0]} against {names[1]}, {metric}, {comparison.seeds} seeds: {comparison.difference:+.4f} "
            f"({low:+.4f} to {high:+.4f}), p = {comparison.p:.2g}")
    if comparison.is_clear:
        return f"{text}: a clear difference"
    if comparison.seeds_needed is None:
        return f"{text}: no clear difference, nor with {MOST_SEEDS} seeds"
    more = max(comparison.seeds_needed - comparison.seeds, 1)
    return f"{text}: no clear difference yet; about {more} more seed{'s' * (more > 1)} may settle it"
