"""One style for every picture with axes, by matplotlib, whose own settings, which may be a user's, stay as they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from dltrain.disk import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that colour-blind people can tell apart, on white: M. Okabe, K. Ito, "Color Universal Design", 2008, without
# their yellow, which is too light for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")  # of the first lines of each colour, of the next ones, ...
DPI = 110
QUIET = "0.35"  # grey of axes and of their numbers


def colour(place: int) -> str:
    """Of the curve or bar at this place, from 0."""
    return COLOURS[place % len(COLOURS)]


def line(place: int) -> str:
    """The line style of the curve at this place. Together with its colour it is unique among the first 28 curves."""
    return LINES[place // len(COLOURS) % len(LINES)]


def new_figure(width: float, height: float) -> Figure:
    """Width and height in inches. matplotlib is imported here, because it is slow to import."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save_figure(figure: Figure, file: Path) -> None:
    """Gives the axes the style, and writes the file as its suffix says. Raises MachineError if the disk refuses it."""
    for axes in figure.axes:
        apply_style(axes)
    content = io.BytesIO()
    figure.savefig(content, format=file.suffix[1:])
    write_bytes(file, content.getvalue())


def apply_style(axes: Axes) -> None:
    """Grey axes at the left and below, and a light grid behind the lines; horizontal bars have vertical grid lines
    only. An image keeps its frame and has no grid."""
    from matplotlib.container import BarContainer

    axes.tick_params(which="both", colors=QUIET, labelcolor="0.2")
    axes.title.set_fontsize(min(axes.title.get_fontsize(), 11))
    if axes.images or axes.get_label() == "<colorbar>":
        return
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.set_axisbelow(True)
    bars = next((container for container in axes.containers if isinstance(container, BarContainer)), None)
    is_across = bars is not None and bars.orientation == "horizontal"
    axes.grid(axis="x" if is_across else "both", alpha=0.3, linewidth=0.6)
    legend = axes.get_legend()
    if legend is not None:
        legend.get_frame().set(linewidth=0, alpha=0.85)
