"""`dltrain ls runs`: reads the runs below a folder, chooses, orders and joins them, and writes the list."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dltrain.drawing.tables import format_count, write_csv
from dltrain.errors import UserError
from dltrain.runs.filters import Keys, Order
from dltrain.runs.layout import in_encoding, terminal_width
from dltrain.runs.lines import Line, in_order, join_seeds
from dltrain.runs.reading import read_runs
from dltrain.runs.record import Run
from dltrain.runs.table import Request, rows_of, table_of


def answer(folder: Path, conditions: Sequence[str], options: Mapping[str, Any]) -> str:
    """`options`: those of `dltrain ls runs`, sort, seeds, json and csv. Raises UserError."""
    runs = read_runs(folder)
    if not runs:
        return f"  no runs below {folder}; `dltrain` makes one"
    keys = Keys(runs)
    filters = [keys.parse(word) for word in conditions]
    order = order_of(options.get("sort", "name"), keys)
    chosen = [run for run in runs if all(condition.holds(run) for condition in filters)]
    is_flat = options.get("seeds") == "each" or options.get("json") or "csv" in options
    lines = in_order([Line([run]) for run in chosen] if is_flat else join_seeds(chosen), order)
    if "csv" in options:
        return write_rows(Path(options["csv"]), lines)
    if options.get("json"):
        return json.dumps(rows_of(lines), indent=1)
    if not chosen:
        return none_left(folder, runs, conditions)
    columns = [*(condition.key for condition in filters if condition.key), order.key]
    return in_encoding(table_of(lines, Request(columns, terminal_width())), sys.stdout.encoding or "utf-8")


def order_of(text: str, keys: Keys) -> Order:
    """Raises UserError for a key that no run has."""
    return Order(keys.resolve(text.removeprefix("-")), text.startswith("-"))


def none_left(folder: Path, runs: Sequence[Run], conditions: Sequence[str]) -> str:
    patterns = [word for word in conditions if not any(sign in word for sign in "=<>*?[")]
    hint = f"; '*{patterns[0]}*' matches a folder that has it in its name" if patterns else ""
    return f"  none of the {format_count(len(runs), 'run')} below {folder} fulfils {' '.join(conditions)}{hint}"


def write_rows(file: Path, lines: Sequence[Line]) -> str:
    """Raises UserError if there is nothing to write."""
    rows = rows_of(lines)
    if not rows:
        raise UserError(f"csv={file}: no run fulfils the conditions; nothing is written")
    write_csv(file, [*rows[0]], [["" if value is None else value for value in row.values()] for row in rows])
    return f"{file}: {format_count(len(rows), 'run')}"
