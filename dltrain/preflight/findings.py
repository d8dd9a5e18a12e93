"""What a check says: ok, a warning or a fault, the figure, and what to do."""

from __future__ import annotations

from typing import NamedTuple

OK, WARNING, FAULT, SKIPPED = "ok", "warning", "fault", "-"
NAME_WIDTH = 20
NAMES_LISTED = 4


class Finding(NamedTuple):
    """`check`: its name; `figure`: what was measured, in words; `advice`: what to do, one sentence, where it is not ok;
    SKIPPED: the pair has nothing that this check examines."""

    check: str
    status: str
    figure: str
    advice: str = ""

    def line(self) -> str:
        end = f"; {self.advice}" if self.advice else ""
        return f"{self.status:8} {self.check:{NAME_WIDTH}} {self.figure}{end}"


def list_names(names: list[str]) -> str:
    """The first NAMES_LISTED of them, and how many more there are."""
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return ", ".join(names[:NAMES_LISTED]) + more
