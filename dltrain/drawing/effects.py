"""What the keys of a sweep do to a metric: lines, main effects and parallel coordinates, by matplotlib."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from dltrain.drawing.scales import Scale, scale_of
from dltrain.drawing.style import colour, line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDEST_LABELS = 44  # characters of all labels of an axis beside one another
LONGEST_LABEL = 14
BAND = 0.06  # of the height of parallel coordinates: lines through one value


def draw_lines(axes: Axes, lines: Mapping[str, Mapping[str, Sequence[float]]], xlabel: str, legend: str) -> None:
    """A line per name through the means at each value of a key, with a dot per repeat. `lines`: name -> value ->
    repeats."""
    scale = scale_of(value for points in lines.values() for value in points)
    for place, (name, points) in enumerate(lines.items()):
        paint = colour(place)
        values = sorted(points, key=scale.places.__getitem__)
        axes.plot([scale.places[value] for value in values], [fmean(points[value]) for value in values], color=paint,
                  linestyle=line(place), marker="o", markersize=3, label=name or None)
        for value in values:
            axes.plot([scale.places[value]] * len(points[value]), list(points[value]), ".", color=paint, alpha=0.5)
    axes.set(xlabel=f"{xlabel} (log)" if scale.kind == "log" else xlabel)
    set_ticks(axes, scale)
    if len(lines) > 1:
        axes.legend(title=legend, fontsize=8)


def effects(values: Sequence[str], results: Sequence[float]) -> dict[str, tuple[float, float]]:
    """The main effect of a key: of all jobs with a value of it, the mean of the results and their standard deviation, 0
    for one job."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for value, result in zip(values, results, strict=True):
        grouped[value].append(result)
    return {value: (fmean(group), stdev(group) if len(group) > 1 else 0.0) for value, group in grouped.items()}


def draw_main_effect(axes: Axes, key: str, values: Sequence[str], results: Sequence[float]) -> None:
    """`values` of the key and `results`: one per job."""
    scale, means = scale_of(values), effects(values, results)
    order = sorted(means, key=scale.places.__getitem__)
    places = [scale.places[value] for value in order]
    axes.plot([scale.places[value] for value in values], results, ".", color="0.6", markersize=3, alpha=0.5, zorder=1)
    axes.errorbar(places, [means[value][0] for value in order], [means[value][1] for value in order], color=colour(0),
                  marker="o", markersize=4, linewidth=1.5 if scale.kind != "names" else 0, elinewidth=1.2, capsize=3)
    axes.set(xlabel=f"{key} (log)" if scale.kind == "log" else key)
    axes.margins(x=0.08 if scale.kind != "names" else 0.3 / max(len(order) - 1, 1) + 0.05)
    set_ticks(axes, scale)


def set_ticks(axes: Axes, scale: Scale) -> None:
    """The labels of a crowded axis are turned."""
    places, labels = zip(*scale.ticks, strict=True)
    short = [shorten(label) for label in labels]
    span = max(places) - min(places)
    is_crowded = sum(map(len, short)) > WIDEST_LABELS or any(
        high - low < 0.06 * span for low, high in pairwise(places))
    axes.set_xticks(places, short, fontsize=8, rotation=45 if is_crowded else 0, ha="right" if is_crowded else "center")


def draw_parallel(axes: Axes, keys: Sequence[str], rows: Sequence[Sequence[str]], metric: str, results: Sequence[float],
                  mode: str) -> None:
    """A line per job through its value of each key, at the left, to its result, at the right, which colours it; the
    best are dark and lie on top. Lines through the same value are shifted a little, by their results."""
    from matplotlib.collections import LineCollection

    columns = [scale_of(row[column] for row in rows) for column in range(len(keys))]
    low, high = min(results), max(results)
    lines = []
    for row, result in zip(rows, results, strict=True):
        end = (result - low) / ((high - low) or 1)
        heights = [height(scale, scale.places[value]) for scale, value in zip(columns, row, strict=True)]
        lines.append([*((place, at + BAND * (end - 0.5)) for place, at in enumerate(heights)), (len(keys), end)])
    order = sorted(range(len(rows)), key=lambda number: results[number], reverse=mode == "min")
    crowd = min(1.0, max(0.25, 40 / len(rows)))
    axes.add_collection(LineCollection(
        [lines[number] for number in order], cmap="viridis_r" if mode == "max" else "viridis", linewidths=1.2,
        array=[results[number] for number in order], alpha=[crowd] * (len(rows) - 1) + [1.0]))
    for place, scale in enumerate(columns):
        axes.axvline(place, color="0.3", linewidth=0.8)
        for value, label in scale.ticks:
            axes.annotate(shorten(label), (place, height(scale, value)), xytext=(-4, 0), textcoords="offset points",
                          ha="right", va="center", fontsize=8,
                          bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "linewidth": 0})
    axes.axvline(len(keys), color="0.3", linewidth=0.8)
    for step in range(5):
        axes.annotate(f"{low + (high - low) * step / 4:.4g}", (len(keys), step / 4), xytext=(4, 0), fontsize=8,
                      textcoords="offset points", va="center")
    names = [f"{key}\n(log)" if scale.kind == "log" else key for key, scale in zip(keys, columns, strict=True)]
    axes.set_xticks(range(len(keys) + 1), [*names, metric], fontsize=8)
    axes.set(xlim=(-0.35, len(keys) + 0.3), ylim=(-0.05, 1.05), yticks=[])
    axes.spines[["left", "right", "top", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def height(scale: Scale, place: float) -> float:
    """From 0 to 1."""
    low, high = min(scale.places.values()), max(scale.places.values())
    return 0.5 if high == low else (place - low) / (high - low)


def shorten(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 3]}..."
