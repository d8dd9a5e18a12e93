"""Files of a run that are lines of text, and may be missing or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dltrain import stored_files
from dltrain.errors import UserError


class Start(NamedTuple):
    """A line of command.txt."""

    time: str
    command: str


def starts(folder: Path) -> list[Start]:
    return [Start(time, command) for line in lines_of(folder / "command.txt")
            for time, _, command in [line.partition("  ")] if command]


def lines_of(file: Path) -> list[str]:
    """Of a file of text that may be missing, damaged or large."""
    try:
        return stored_files.read_text(file).splitlines() if file.is_file() else []
    except UserError:
        return []
