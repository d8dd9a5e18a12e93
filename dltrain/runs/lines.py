"""The lines of a list of runs: jobs that differ in the seed alone are one line, and forks and extensions
stand below their parents."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import NamedTuple

from dltrain.repeats import deviation_of
from dltrain.runs.filters import Order, value_of
from dltrain.runs.record import Run
from dltrain.runs.varied import signature


class Line(NamedTuple):
    """One run, or several that differ in the seed alone. `branch`: what is drawn before a run below its parent."""

    runs: list[Run]
    branch: str = ""

    @property
    def first(self) -> Run:
        return self.runs[0]

    def numbers(self, key: str) -> list[float]:
        return [value for run in self.runs if (value := run.number(key)) is not None]

    def value(self, key: str) -> str | float | None:
        """What it is sorted by: the mean of a number of the results."""
        numbers = self.numbers("seconds" if key == "time" else key) if key not in self.first.values else []
        return mean(numbers) if numbers else value_of(self.first, key)


def join_seeds(runs: Sequence[Run]) -> list[Line]:
    """Runs of one folder that are done, have no parent and no child, and differ in the seed alone are one line. A seed
    that is there twice is not a repeat: its second run begins another line."""
    parents = {run.place_of_parent() for run in runs}
    lines: list[Line] = []
    open_lines: dict[object, list[Line]] = defaultdict(list)
    for run in runs:
        is_single = run.state.name != "done" or run.origin or "seed" not in run.values or (
            os.path.abspath(run.folder) in parents)
        if is_single:
            lines.append(Line([run]))
            continue
        candidates = open_lines[run.folder.parent, run.pair, run.headline, signature(run)]
        seed = run.values["seed"]
        line = next((line for line in candidates if seed not in [other.values["seed"] for other in line.runs]), None)
        if line is None:
            line = Line([])
            candidates.append(line)
            lines.append(line)
        line.runs.append(run)
    return lines


def as_tree(lines: Sequence[Line]) -> list[Line]:
    """Each line below that of its parent, where this is in the list, in the order of the lines otherwise."""
    places = {os.path.abspath(line.first.folder): line for line in lines}
    children: dict[str, list[Line]] = defaultdict(list)
    roots = []
    for line in lines:
        parent = line.first.place_of_parent()
        if parent in places and not is_in_circle(line, places):
            children[parent].append(line)
        else:
            roots.append(line)
    return [line for root in roots for line in with_children(root, "", "", children)]


def is_in_circle(line: Line, places: dict[str, Line]) -> bool:
    """Whether a run is its own ancestor: parent.json was edited, or a folder took the name of another one."""
    seen: set[str] = set()
    place = os.path.abspath(line.first.folder)
    while place in places and place not in seen:
        seen.add(place)
        place = places[place].first.place_of_parent()
    return place in seen


def with_children(line: Line, branch: str, below: str, children: dict[str, list[Line]]) -> Iterator[Line]:
    """`branch`: before the line; `below`: before those of its children."""
    yield line._replace(branch=branch)
    inner = children[os.path.abspath(line.first.folder)]
    for child in inner:
        is_last = child is inner[-1]
        yield from with_children(child, f"{below}{'└ ' if is_last else '├ '}", f"{below}{'  ' if is_last else '│ '}",
                                 children)


def in_order(lines: Sequence[Line], order: Order) -> list[Line]:
    """By name as a tree; by a value without it, since the best comes first."""
    if order.key == "name":
        return as_tree([*lines][::-1] if order.is_reversed else lines)
    places = order.sorted([line.first for line in lines], [line.value(order.key) for line in lines])
    return [lines[place] for place in places]


def describe_values(values: Sequence[float], write: Callable[[float], str]) -> str:
    """The mean, with the sample standard deviation of several values; "" for none."""
    if not values:
        return ""
    return write(mean(values)) + (f" ± {write(deviation_of(values))}" if len(values) > 1 else "")


def name_of(line: Line) -> str:
    """The folder, as it is typed, and how many others of other seeds."""
    more = f" +{len(line.runs) - 1}" if len(line.runs) > 1 else ""
    return f"{line.first.folder}{more}"
