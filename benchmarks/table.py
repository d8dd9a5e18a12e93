"""The table of docs/benchmarks.md, from the files in results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.timing import Row
from dltrain.drawing.tables import format_count

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
BEGIN, END = "<!-- made by python -m benchmarks table -->\n", "<!-- end of the table -->\n"
ORDER = ("framework", "augmented_mlp", "resnet20", "guards", "recurrent", "sampling", "detection", "stochastic_depth",
         "augment", "transforms", "decoding", "confusion", "image_statistics", "long_text", "scanning", "epoch_end",
         "first_step", "start", "list_models")  # of the table


def write() -> None:
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def replaced(page: str) -> str:
    """The page with a new table."""
    before, _, others = page.partition(BEGIN)
    return before + BEGIN + "".join(f"{line}\n" for line in lines()) + END + others.partition(END)[2]


def lines() -> list[str]:
    """Of the table, and what it was measured on; none without files."""
    contents = {name: json.loads(file.read_text()) for name in ORDER if (file := RESULTS / f"{name}.json").is_file()}
    if not contents:
        return []
    table = ["", "| `python -m benchmarks` | what | dltrain | beside it | dltrain against it | wanted |",
             "| --- | --- | --- | --- | --- | --- |"]
    for name, content in contents.items():
        table += [f"| {name} | {' | '.join(cells(Row(**row)))} |" for row in content["rows"]]
    return [*table, "", *sorted({machine(content) for content in contents.values()}), ""]


def machine(content: dict[str, Any]) -> str:
    hardware, versions = content["hardware"], content["versions"]
    return (f"{hardware['processor']}, {format_count(hardware['cores'], 'core')}, torch {versions['torch']}, "
            f"{content['date'].partition(' ')[0]}; medians of {content['rounds']}, in brackets the smallest and the "
            "largest.")


def cells(row: Row) -> list[str]:
    (_, ours), *others = row.values.items()
    minus = row.compared == "difference"
    against = [f"{row.against[name]['median']:+.3g} {row.unit}" if minus else show(row.against[name])
               for name, _ in others]
    return [row.what, f"{show(ours)} {row.unit}",
            "; ".join(f"{name} {number(value['median'])}" for name, value in others) or "-",
            "; ".join(against) or "-", row.wanted or "-"]


def describe(row: Row) -> str:
    """A row for the terminal."""
    what, ours, beside, against, wanted = cells(row)
    return f"{what}: {ours}; {beside}; {against}{f' (wanted {wanted})' if wanted != '-' else ''}"


def show(spread: dict[str, Any] | Any) -> str:
    """`4,797 (4,700 to 4,850)`."""
    if spread["n"] == 1:
        return number(spread["median"])
    return f"{number(spread['median'])} ({number(spread['low'])} to {number(spread['high'])})"


def number(value: float) -> str:
    """Three significant digits; whole numbers from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
