"""The picture of a sweep (results.png): curves, the test metric, and what each key that varies does."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

from dltrain.drawing.curves import draw_bars, mean_curve
from dltrain.drawing.effects import draw_lines, draw_main_effect, draw_parallel, effects
from dltrain.drawing.style import COLOURS, colour, new_figure, save_figure
from dltrain.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Group = tuple[str, ...]  # the values of a setting
MOST_CURVES, MOST_BARS = len(COLOURS), 16  # settings, the best ones
MOST_LINES = 10  # in one panel
MOST_KEYS, MOST_ACROSS = 8, 4  # whose effects are drawn; panels beside one another


class Done(Protocol):
    """A job that is done."""

    @property
    def run_dir(self) -> RunDir: ...

    @property
    def result(self) -> Mapping[str, float | str]: ...


def draw(groups: Mapping[Group, Sequence[Done]], headline: str, mode: str, keys: Sequence[str], title: str, file: Path
         ) -> None:
    """First row: the headline metric by step, in validation (solid) and in training (dashed), and the test metric, a
    dot per seed: as lines over the first key whose values are at least three numbers, one per choice of the other keys,
    or as bars. With two or more keys, the main effects, a panel each; with three or more, parallel coordinates."""
    every = [(group, float(job.result[headline])) for group, jobs in groups.items() for job in jobs]
    finite = [(group, result) for group, result in every if math.isfinite(result)]
    rows, results = [group for group, _ in finite], [result for _, result in finite]
    used = strongest(keys, rows, results) if len(keys) >= 2 and rows else []
    columns = {key: [row[place] for row in rows] for place, key in enumerate(keys) if key in used}
    across = min(len(columns), MOST_ACROSS)
    down = -(-len(columns) // across) if columns else 0
    first = 4.2 if axis_of(groups, keys) is not None else max(4.2, 1.4 + 0.26 * min(len(groups), MOST_BARS))
    heights = [first, *[0.4 + 2.7 * down] * (down > 0), *[4.2] * (len(columns) >= 3)]
    figure = new_figure(11.5, sum(heights) + 0.4)
    figure.suptitle(textwrap.fill(title, 110), fontsize=11)
    panels = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    left, right = next(panels).subplots(1, 2)
    draw_curves(left, groups, headline, keys)
    draw_test(right, groups, headline.partition("/")[2], keys)
    note = (f", the strongest {len(used)} of {len(keys)} keys" * (len(used) < len(keys))
            + f"; {len(every) - len(finite)} of {len(every)} have no finite {headline}" * (len(finite) < len(every)))
    if down:
        panel = next(panels)
        panel.suptitle(f"main effects: mean and deviation of all jobs with a value{note}", fontsize=10)
        places = panel.subplots(down, across, sharey=True, squeeze=False)
        for axes, (key, values) in zip(places.flat, columns.items(), strict=False):
            draw_main_effect(axes, key, values, results)
        for axes in places.flat[len(columns) :]:
            axes.set_axis_off()
        for axes in places[:, 0]:
            axes.set(ylabel=headline)
    if len(columns) >= 3:
        panel = next(panels)
        panel.suptitle(f"each job, from its values to its result{note}", fontsize=10)
        draw_parallel(panel.subplots(), [*columns], [*zip(*columns.values(), strict=True)], headline, results, mode)
    save_figure(figure, file)


def axis_of(groups: Mapping[Group, object], keys: Sequence[str]) -> int | None:
    """The place of the first key whose values are at least three numbers; None if there is none, or if the other keys
    have more combinations than one panel holds lines."""
    axis = next((place for place in range(len(keys)) if is_scale({group[place] for group in groups})), None)
    if axis is None or len({group[:axis] + group[axis + 1 :] for group in groups}) > MOST_LINES:
        return None
    return axis


def is_scale(values: set[str]) -> bool:
    """Whether the values are at least three numbers."""
    try:
        return len({float(value) for value in values}) >= 3
    except ValueError:
        return False


def draw_curves(axes: Axes, groups: Mapping[Group, Sequence[Done]], headline: str, keys: Sequence[str]) -> None:
    name = headline.partition("/")[2]
    for place, (group, jobs) in enumerate([*groups.items()][:MOST_CURVES]):
        readings, paint = [job.run_dir.read_metrics() for job in jobs], colour(place)
        axes.plot(*mean_curve(readings, headline), color=paint, label=", ".join(group) or "all")
        axes.plot(*mean_curve(readings, f"train/{name}"), color=paint, linestyle="--", linewidth=1, alpha=0.6)
    note = f": the best {MOST_CURVES} of {len(groups)}" * (len(groups) > MOST_CURVES)
    axes.set(xlabel="step", ylabel=name.replace("_", " "), title=f"validation (solid), training (dashed){note}")
    axes.legend(title=textwrap.fill(", ".join(keys), 50) or None, fontsize=8, title_fontsize=8)


def draw_test(axes: Axes, groups: Mapping[Group, Sequence[Done]], name: str, keys: Sequence[str]) -> None:
    values = {group: [float(job.result[f"test/{name}"]) for job in jobs] for group, jobs in groups.items()}
    axis, count, note = axis_of(groups, keys), len(groups), ""
    if axis is None:
        draw_bars(axes, {", ".join(group) or "all": values[group] for group in [*values][:MOST_BARS]})
        note = f": the best {MOST_BARS} of {count} in validation" * (count > MOST_BARS)
    else:
        lines: dict[str, dict[str, list[float]]] = defaultdict(dict)
        for group, repeats in values.items():
            lines[", ".join(group[:axis] + group[axis + 1 :])][group[axis]] = repeats
        draw_lines(axes, lines, keys[axis], ", ".join([*keys[:axis], *keys[axis + 1 :]]))
    axes.set(title=f"test/{name}{note}")


def strongest(keys: Sequence[str], rows: Sequence[Group], results: Sequence[float]) -> list[str]:
    """At most MOST_KEYS of the keys, in their order: those between whose values the means differ most."""
    def strength(key: str) -> float:
        means = [average for average, _ in effects([row[[*keys].index(key)] for row in rows], results).values()]
        return max(means) - fmean(means)

    kept = sorted(keys, key=strength, reverse=True)[:MOST_KEYS]
    return [key for key in keys if key in kept]
