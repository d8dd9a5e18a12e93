"""The summary of a model as a table of at most so many columns, and as json."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from dltrain.summaries.rows import Row

Cell = Callable[[Row], str]


class Summary(NamedTuple):
    """`title`: the choices in words; `subject`: what one of is counted; `assumed`: sizes that only the data know."""

    title: str
    subject: str
    papers: list[str]
    assumed: dict[str, int]
    rows: list[Row]

    def totals(self) -> dict[str, Any]:
        """Parameters without `unread`, those that evaluation does not read; multiply-adds by unit."""
        adds: Counter[str] = Counter()
        for row in self.rows:
            adds.update(row.multiply_adds)
        unread = sum(row.unread for row in self.rows)
        return {"parameters": sum(row.parameters for row in self.rows) - unread, "unread": unread,
                "frozen": sum(row.frozen for row in self.rows), "multiply_adds": dict(adds)}

    def as_json(self) -> dict[str, Any]:
        return {"model": self.title, "of": self.subject, "papers": self.papers, "assumed": self.assumed,
                "rows": [{**vars(row), "output": list(row.output) if row.output else None} for row in self.rows],
                "total": self.totals()}

    def as_text(self, columns: int) -> str:
        total = self.totals()
        lines = [fill(self.title, columns), *(fill(f"paper: {paper}", columns, "  ") for paper in self.papers)]
        if not self.papers:
            lines.append("  its docstring names no paper")
        lines += ["", *table(self.rows, columns), "", fill(self.total_words(total), columns)]
        if total["unread"]:
            lines.append(fill(f"{total['unread']:,} more serve training alone: "
                              f"{', '.join(row.name for row in self.rows if row.unread)}", columns))
        if total["frozen"]:
            lines.append(fill(f"{total['frozen']:,} of them are frozen at first (task.freezing)", columns))
        if self.assumed:
            sizes = ", ".join(f"data.{key}={value}" for key, value in self.assumed.items())
            lines.append(fill(f"assumed, since only the data know it: {sizes}; give another value", columns))
        return "\n".join(lines)

    def total_words(self, total: dict[str, Any]) -> str:
        counts = total["multiply_adds"]
        adds = ", ".join(f"{format_operations(count)}{f' per {unit}' * (len(counts) > 1)}"
                         for unit, count in counts.items())
        return f"{total['parameters']:,} parameters; multiply-adds of {self.subject}: {adds or 0}"


def table(rows: Sequence[Row], columns: int) -> list[str]:
    """The columns that fit, the less important ones left out first."""
    cells: dict[str, Cell] = {"stage": lambda row: row.name, "output": lambda row: format_shape(row.output),
                              "parameters": lambda row: f"{row.parameters:,}", "frozen": lambda row: f"{row.frozen:,}",
                              "per gate": lambda row: format_count(row.per_gate),
                              **{header: partial(format_adds, unit) for header, unit in columns_of_units(rows).items()},
                              "stride": lambda row: format_count(row.stride),
                              "field": lambda row: format_count(row.field_px)}
    if not any(row.frozen for row in rows):
        del cells["frozen"]
    if not any(row.per_gate for row in rows):
        del cells["per gate"]
    if not any(row.stride for row in rows):
        del cells["stride"], cells["field"]
    for least in ("", "frozen", "per gate", "field", "stride", "output"):
        cells.pop(least, None)
        lines = aligned([[*cells], *([cell(row) for cell in cells.values()] for row in rows)])
        if max(map(len, lines)) <= columns:
            break
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) if column < 2 and rows[0][column] in ("stage", "output") else text.rjust(width)
                      for column, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def columns_of_units(rows: Sequence[Row]) -> dict[str, str]:
    """The header of each column of multiply-adds, and its unit."""
    units = list(dict.fromkeys(unit for row in rows for unit in row.multiply_adds))
    return {f"per {unit}" if len(units) > 1 else "multiply-adds": unit for unit in units}


def format_adds(unit: str, row: Row) -> str:
    return format_operations(row.multiply_adds.get(unit, 0))


def format_operations(count: int) -> str:
    """Four significant digits from a million on."""
    if count >= 1e9:
        return f"{count / 1e9:.4g} G"
    return f"{count / 1e6:.4g} M" if count >= 1e6 else f"{count:,}"


def format_shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else " x ".join(map(str, shape))


def format_count(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def fill(text: str, columns: int, indent: str = "") -> str:
    return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)
