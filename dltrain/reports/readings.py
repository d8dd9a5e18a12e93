"""The readings of metrics.csv as the points of curves, few enough for a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter

Points = list[tuple[int, float]]  # step and value


def points_of(rows: Sequence[Mapping[str, str]], keys: Sequence[str]) -> dict[str, Points]:
    """The steps and values of each metric."""
    return {key: [(int(row["step"]), float(row[key])) for row in rows if row[key]] for key in keys
            if rows and key in rows[0]}


def thin(points: Sequence[tuple[int, float]], most: int) -> Points:
    """At most that many of the points: of each of equal sections the least and the greatest value, so that no peak is
    lost; the first point and the last one."""
    if len(points) <= most:
        return [*points]
    inner, sections = points[1:-1], max((most - 2) // 2, 1)
    kept = {points[0], points[-1]}
    for section in range(sections):
        span = inner[section * len(inner) // sections : (section + 1) * len(inner) // sections]
        kept |= {min(span, key=itemgetter(1)), max(span, key=itemgetter(1))}
    return sorted(kept)


def rounded(value: float) -> float | None:
    """None for what is not finite, which JSON does not have."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
