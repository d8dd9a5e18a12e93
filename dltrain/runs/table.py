"""The list of runs as a table for people, and as rows for other programs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from dltrain.config.groups import GROUPS
from dltrain.drawing.tables import format_count, format_duration
from dltrain.errors import printable
from dltrain.runs.filters import SPECIAL, value_of
from dltrain.runs.layout import Column, fit
from dltrain.runs.lines import Line, describe_values, name_of
from dltrain.runs.record import STATES, Run
from dltrain.runs.varied import known_value, titles, varied_keys

MOST_REASONS = 10  # of runs that have failed, below the table


class Request(NamedTuple):
    """`keys`: of conditions and of the order, to be among the columns; `width`: of the terminal, None for a pipe."""

    keys: Sequence[str]
    width: int | None


def table_of(lines: Sequence[Line], request: Request) -> str:
    columns = columns_of(lines, request.keys)
    fitted = fit(columns, request.width)
    text = [*fitted.lines]
    if fitted.left_out:
        text += fill(f"left out for the width: {', '.join(fitted.left_out)}; csv=FILE and a pipe have all columns",
                     request.width, "  ")
    runs = [run for line in lines for run in line.runs]
    for note in [*reasons(runs), summary(runs)]:
        text += fill(note, request.width)
    return "\n".join(text)


def columns_of(lines: Sequence[Line], requested: Sequence[str] = ()) -> list[Column]:
    runs = [run for line in lines for run in line.runs]
    varied = [key for key in varied_keys(runs) if key != "seed"]
    numbers = [key for key in dict.fromkeys(requested) if key not in SPECIAL and not any(
        key in run.values for run in runs) and key not in headlines(runs)]
    configured = [key for key in dict.fromkeys(requested) if key not in (*varied, "seed", "model", "data", *SPECIAL)
                  and any(key in run.values for run in runs)]
    own_keys = [*varied, *configured]
    names = titles(own_keys)
    pairs = [" on ".join(filter(None, line.first.pair)) if line.first.is_readable else "?" for line in lines]
    states = [line.first.state for line in lines]
    return [
        Column("run", [f"{line.branch}{name_of(line)}" for line in lines], 0, is_path=True),
        Column("model on data", pairs, 15 if len({*pairs}) > 1 else 40),
        Column("state", [describe(line.first) for line in lines], 5, short=[
            state.short if state.name != "unreadable" else "cannot be read" for state in states]),
        *(Column(names[key], [shorten(known_value(line.first.values, key)) for line in lines], 20 + place,
                 key not in GROUPS) for place, key in enumerate(own_keys)),
        Column("seed", [seeds_of(line) for line in lines] if has_seeds(runs) else [], 10, right=True),
        metric_column("test", lines, 2), metric_column("val", lines, 30 + len(own_keys)),
        *(Column(key, [describe_values(line.numbers(key), four_digits) for line in lines], 3, right=True)
          for key in numbers),
        Column("time", [describe_values(line.numbers("seconds"), format_duration).partition(" ±")[0]
                        for line in lines], 50 + len(own_keys), right=True),
        Column("parent", [describe_parent(line.first, is_below=bool(line.branch)) for line in lines],
               60 + len(own_keys), is_path=True)]


def describe(run: Run) -> str:
    return str(run.state) if run.is_readable else "cannot be read"


def headlines(runs: Sequence[Run]) -> set[str]:
    """The metrics that have a column."""
    names = {run.headline for run in runs if run.headline}
    return {*names, *(name.replace("val/", "test/") for name in names)}


def metric_column(split: str, lines: Sequence[Line], rank: int) -> Column:
    """The headline metric of a split. Where it is not the same for all, each cell names it."""
    metrics = [line.first.headline.replace("val/", f"{split}/") for line in lines]
    cells = [describe_values(line.numbers(metric), four_digits) for line, metric in zip(lines, metrics, strict=True)]
    names = {metric for metric, cell in zip(metrics, cells, strict=True) if cell}
    if len(names) <= 1:
        return Column(next(iter(names), split), cells, rank, right=True)
    named = [f"{metric} {cell}" if cell else "" for metric, cell in zip(metrics, cells, strict=True)]
    return Column(split, named, rank)


def four_digits(value: float) -> str:
    return f"{value:.4f}"


def shorten(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"


def has_seeds(runs: Sequence[Run]) -> bool:
    return len({run.values["seed"] for run in runs if "seed" in run.values}) > 1


def seeds_of(line: Line) -> str:
    return f"{len(line.runs)} seeds" if len(line.runs) > 1 else line.first.values.get("seed", "")


def describe_parent(run: Run, is_below: bool) -> str:
    """`is_below`: its parent stands above it."""
    if run.origin is None:
        return ""
    return f"epoch {run.origin.epoch}" + ("" if is_below else f" of {run.origin.folder}")


def reasons(runs: Sequence[Run]) -> list[str]:
    """Why runs cannot be read, and the errors of those that failed."""
    failed = [run for run in runs if run.state.name in ("failed", "diverged")]
    listed = failed if len(failed) == len(runs) else failed[:MOST_REASONS]
    more = [f"and {len(failed) - len(listed)} more; dltrain ls runs state=failed,diverged says why"] * (
        len(listed) < len(failed))
    return [*(run.state.reason for run in runs if not run.is_readable),
            *(f"{run.folder} {run.state.name}: {run.state.reason}" for run in listed), *more]


def summary(runs: Sequence[Run]) -> str:
    """`12 runs: 9 done, 3 failed`."""
    count = Counter(run.state.name for run in runs)
    states = ", ".join(f"{count[name]} {name}" for name in STATES if count[name])
    return f"{format_count(len(runs), 'run')}: {states}"


def fill(text: str, width: int | None, indent: str = "") -> list[str]:
    text = printable(text)
    return [f"{indent}{text}"] if width is None else textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False) or [indent]


def rows_of(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """A row for each run, with its varied values and all numbers of its result, None for what it does not have."""
    runs = [run for line in lines for run in line.runs]
    varied = [key for key in varied_keys(runs) if key != "seed"]
    numbers = sorted({key for run in runs for key in run.result if run.number(key) is not None and key != "seed"})
    numbers.sort(key=lambda key: (key not in headlines(runs), key))
    rows = []
    for run in runs:
        model, data = run.pair
        rows.append({
            "run": str(run.folder), "model": model, "data": data, "state": run.state.name, "epoch": run.state.epoch,
            "epochs": run.state.epochs, **{key: known_value(run.values, key) or None for key in varied},
            "seed": value_of(run, "seed"), **{key: run.result.get(key) if run.number(key) is not None else None
                                              for key in numbers},
            "parent": str(run.origin.folder) if run.origin else None,
            "parent_epoch": run.origin.epoch if run.origin else None, "reason": run.state.reason or None})
    return rows
