"""Curves over the steps, bars and lines of the results of several runs, by matplotlib."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from dltrain.drawing.style import COLOURS, colour, line, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_INCHES = 0.25  # the least height of a bar with its gap
Curve = tuple[list[int], list[float]]  # steps, values


def mean_curve(runs: Iterable[Iterable[Mapping[str, str]]], metric: str) -> Curve:
    """The metric by step, the mean over the runs that have a value at that step. `runs`: of each, its readings."""
    values: dict[int, list[float]] = defaultdict(list)
    for readings in runs:
        for row in readings:
            if row.get(metric):
                values[int(row["step"])].append(float(row[metric]))
    return sorted(values), [mean(values[step]) for step in sorted(values)]


def draw_comparison(curves: Mapping[str, Mapping[str, Curve]], bars: Mapping[str, Mapping[str, Sequence[float]]],
                    file: Path) -> None:
    """A panel per metric of `curves` (title -> run -> curve), then one per metric of `bars` (title -> run -> values). A
    run has the same colour in all panels, also where another one has no such metric."""
    names = dict.fromkeys(name for of_runs in (*curves.values(), *bars.values()) for name in of_runs)
    is_different = bool(curves) or len(names) <= len(COLOURS)  # else a colour would stand for several runs
    colours = {name: colour(place if is_different else 0) for place, name in enumerate(names)}
    styles = {name: line(place) for place, name in enumerate(names)}
    count = len(curves) + len(bars)
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = -(-count // columns)
    tallest = max((len(of_runs) for of_runs in bars.values()), default=0)
    figure = new_figure(5 * columns + 1, max(3.6, BAR_INCHES * tallest) * rows + 0.5)
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes, (title, of_runs) in zip(panels, curves.items(), strict=False):
        for name, curve in of_runs.items():
            axes.plot(*curve, marker=".", linestyle=styles[name], color=colours[name], label=name, markersize=3,
                      linewidth=1)
        axes.set(title=title, xlabel="step", yscale="log" if title.endswith("loss") else "linear")
    for axes, (title, values) in zip(panels[len(curves) :], bars.items(), strict=False):
        draw_bars(axes, values, colours)
        axes.set(title=title)
        axes.locator_params(axis="x", nbins=5)
    for axes in panels[count:]:
        axes.set_axis_off()
    lines = {line.get_label(): line for axes in panels[: len(curves)] for line in axes.get_lines()}
    if lines:
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(lines), 5))
    save_figure(figure, file)


def draw_rates(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float],
               marks: Mapping[str, float], file: Path) -> None:
    """The loss of each step of a range test over the learning rate, plain and smoothed. `marks`: rates with names."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    axes.plot(rates, losses, ".", color="0.7", markersize=4, label="loss of a step")
    axes.plot(rates, smoothed, color=colour(0), label="smoothed")
    for place, (name, rate) in enumerate(marks.items(), start=1):
        axes.axvline(rate, color=colour(place), linestyle="--", linewidth=1.2, label=f"{name}: {rate:.2g}")
    top = max(smoothed) + 0.15 * (max(smoothed) - min(smoothed))
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(None, top))
    axes.legend(fontsize=9)
    save_figure(figure, file)


def draw_bars(axes: Axes, values: Mapping[str, Sequence[float]], colours: Mapping[str, str] | None = None) -> None:
    """A horizontal bar per name: the mean, with a dot per value. `colours`: by name; by the order if there are none."""
    for place, (name, repeats) in enumerate(values.items()):
        axes.barh(place, mean(repeats), color=colours[name] if colours else colour(place), alpha=0.75)
        axes.plot(repeats, [place] * len(repeats), "k.", markersize=4)
        axes.annotate(f" {mean(repeats):.4g}", (max(repeats), place), va="center", fontsize=9)
    axes.set_yticks(range(len(values)), list(values), fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    pooled = [value for repeats in values.values() for value in repeats]
    spread = max(pooled) - min(pooled)
    if min(pooled) > 2 * spread > 0:  # bars from zero would all look alike
        axes.set_xlim(min(pooled) - spread, max(pooled) + 0.5 * spread)
