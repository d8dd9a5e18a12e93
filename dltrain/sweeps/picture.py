"""The picture of a sweep (results.png): curves of its settings, and the test metric over what varies."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from dltrain.drawing.curves import COLOURS, draw_bars, draw_lines, mean_curve, new_figure, save_figure
from dltrain.run_dir import RunDir

Group = tuple[str, ...]  # the values of a setting
MOST_CURVES, MOST_NAMES = 8, 12  # groups: with more, lines have no curves beside them, and curves have no legend


class Done(Protocol):
    """A job that is done."""

    @property
    def run_dir(self) -> RunDir: ...

    @property
    def result(self) -> Mapping[str, float | str]: ...


def draw(groups: Mapping[Group, Sequence[Done]], headline: str, keys: Sequence[str], title: str, file: Path) -> None:
    """Left: the headline metric by step, in validation (solid) and in training (dashed). Right: the test metric, a dot
    per seed, as bars; or, if the values of a varied key are at least three numbers, as lines over the first such key,
    one per choice of the other keys. With such lines and more than MOST_CURVES groups there is no left panel."""
    name = headline.partition("/")[2]
    axis = next((place for place in range(len(keys)) if is_scale({group[place] for group in groups})), None)
    has_curves = axis is None or len(groups) <= MOST_CURVES
    height = max(4.2, 1.6 + 0.28 * len(groups)) if axis is None else 4.4
    figure = new_figure(11 if has_curves else 7.5, height)
    *left, right = figure.subplots(1, 2 if has_curves else 1, squeeze=False)[0]
    for axes in left:
        for place, (group, jobs) in enumerate(groups.items()):
            readings, colour = [job.run_dir.read_metrics() for job in jobs], f"C{place % COLOURS}"
            axes.plot(*mean_curve(readings, headline), color=colour, label=", ".join(group) or "all")
            axes.plot(*mean_curve(readings, f"train/{name}"), color=colour, linestyle="--", linewidth=1, alpha=0.6)
        axes.set(xlabel="step", ylabel=name.replace("_", " "), title="validation (solid), training (dashed)")
        if len(groups) <= MOST_NAMES:
            axes.legend(title=", ".join(keys) or None, fontsize=8)
    values = {group: [float(job.result[f"test/{name}"]) for job in jobs] for group, jobs in groups.items()}
    if axis is None:
        draw_bars(right, {", ".join(group) or "all": repeats for group, repeats in values.items()})
    else:
        lines: dict[str, dict[float, list[float]]] = defaultdict(dict)
        for group, repeats in values.items():
            lines[", ".join(group[:axis] + group[axis + 1 :])][float(group[axis])] = repeats
        draw_lines(right, lines, keys[axis], ", ".join([*keys[:axis], *keys[axis + 1 :]]))
    right.set(title=f"test/{name}")
    for axes in (*left, right):
        axes.grid(alpha=0.25)
    figure.suptitle(textwrap.fill(title, 110 if has_curves else 75), fontsize=11)
    save_figure(figure, file)


def is_scale(values: set[str]) -> bool:
    """Whether the values are at least three numbers."""
    try:
        return len({float(value) for value in values}) >= 3
    except ValueError:
        return False
