"""Tables on the terminal and in CSV files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dltrain.disk import write_text
from dltrain.errors import printable

WIDE = 10_000  # columns of a file or pipe: nothing is wrapped


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of cells as lines, wrapped to the width of a terminal, never wrapped elsewhere. An empty `header` is left
    out; `right`: the columns that are aligned to the right."""
    body = [list(row) for row in rows]
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    table = Table(box=None, show_header=bool(header), pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in range(len(header) or len(body[0]) if body else len(header)):
        table.add_column(header[column] if header else "", justify="right" if column in right else "left",
                         overflow="fold")
    for row in body:
        table.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(f"  {line}".rstrip() for line in capture.get().splitlines())


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Raises MachineError if the disk refuses it."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    write_text(file, text.getvalue())


def format_number(value: float) -> str:
    """Four significant digits; whole numbers from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_values(values: Sequence[float]) -> str:
    """The mean, with the standard deviation of several values; a dash for none."""
    if not values:
        return "-"
    deviation = stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan
    return format_number(mean(values)) + (f" ± {deviation:.2g}" if len(values) > 1 else "")


def format_count(count: int, noun: str) -> str:
    """`1 epoch`, `2,000 epochs`: nouns whose plural ends in s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Such as "12 s", "3:05 min", "2:10 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
