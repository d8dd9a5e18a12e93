"""A table that fits the width of a terminal: columns are shortened, then left out, the least important first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from dltrain.errors import printable

SHORTEST = 20  # cells of a column that can be shortened
PLAIN_SIGNS = str.maketrans({"├": "|", "└": "`", "│": "|", "…": "~"})
GAP = 2  # cells between columns; also before the first


class Column(NamedTuple):
    """`rank`: the higher, the sooner it is left out; 0: never. `short`: the same cells in fewer letters, if there are
    such. `is_path`: cells may lose their beginning."""

    title: str
    cells: Sequence[str]
    rank: int
    right: bool = False
    short: Sequence[str] | None = None
    is_path: bool = False

    @property
    def width(self) -> int:
        return max(cell_len(cell) for cell in (self.title, *self.cells))

    def cut(self, width: int) -> Column:
        return self._replace(cells=[cut_beginning(cell, width) for cell in self.cells],
                             title=cut_beginning(self.title, width))


class Fitted(NamedTuple):
    lines: list[str]
    left_out: list[str]  # titles of columns


def terminal_width() -> int | None:
    """None for a file or a pipe."""
    console = Console()
    return console.width if console.is_terminal else None


def fit(columns: Sequence[Column], width: int | None) -> Fitted:
    """The table as lines of at most `width` cells; None: as wide as it is. A column without any text is left out."""
    columns = [column._replace(cells=[printable(cell) for cell in column.cells]) for column in columns
               if any(column.cells)]
    left_out: list[str] = []
    while width is not None and total(columns) > width:
        if any(column.short for column in columns):
            columns = [column._replace(cells=column.short or column.cells, short=None) for column in columns]
        elif shortened := shorten_paths(columns, width):
            columns = shortened
        elif any(column.rank for column in columns):
            least = max(columns, key=lambda column: column.rank)
            left_out.append(least.title)
            columns = [column for column in columns if column is not least]
        else:
            break
    widths = [column.width for column in columns]
    lines = [line_of(cells, columns, widths) for cells in (
        [column.title for column in columns], *zip(*(column.cells for column in columns), strict=True))]
    return Fitted([line if width is None else cut_end(line, width) for line in lines], left_out)


def total(columns: Sequence[Column]) -> int:
    return sum(column.width + GAP for column in columns)


def shorten_paths(columns: Sequence[Column], width: int) -> list[Column] | None:
    """The columns of paths cut so far that all fit; None if that leaves fewer than SHORTEST cells of one."""
    paths = [column for column in columns if column.is_path]
    free = width - total([column for column in columns if not column.is_path])
    each = free // max(1, len(paths)) - GAP
    if not paths or each < SHORTEST:
        return None
    return [column.cut(each) if column.is_path else column for column in columns]


def line_of(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = []
    for cell, column, width in zip(cells, columns, widths, strict=True):
        blanks = " " * (width - cell_len(cell))
        padded.append(f"{blanks}{cell}" if column.right else f"{cell}{blanks}")
    return (" " * GAP + (" " * GAP).join(padded)).rstrip()


def cut_beginning(text: str, width: int) -> str:
    """`…/lr0.1`: the end of a path says which run it is, cut at a slash if there is one. What is drawn before a path
    stays."""
    if cell_len(text) <= width:
        return text
    name = text.lstrip("├└│ ")
    branch = text[: len(text) - len(name)][: max(0, width - 4)]
    while name and cell_len(name) > width - len(branch) - 1:
        name = name[1:]
    return f"{branch}…{name[max(0, name.find('/')):]}"


def cut_end(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)) + "…"


def in_encoding(text: str, encoding: str) -> str:
    """The text with signs that the encoding of the output has, as wide as before; other letters as their escapes."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.replace(" ± ", " +-").translate(PLAIN_SIGNS)
        return plain.encode(encoding, "backslashreplace").decode(encoding)
    return text
