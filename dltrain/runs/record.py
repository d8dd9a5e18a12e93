"""What is known of a run: its folder, state, config and result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

STATES = ("done", "running", "stopped", "diverged", "failed", "paused", "pruned", "unreadable")


class State(NamedTuple):
    """`name`: one of STATES. `epoch`: the latest with a reading, of `epochs`; None where they are not known. `reason`:
    the first line of error.txt, or why the run cannot be read."""

    name: str
    epoch: int | None = None
    epochs: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        return self.name if self.epoch is None else f"{self.name} at epoch {self.epoch}{self.limit(' of ')}"

    @property
    def short(self) -> str:
        return self.name if self.epoch is None else f"{self.name} {self.epoch}{self.limit('/')}"

    def limit(self, before: str) -> str:
        return "" if self.epochs is None else f"{before}{self.epochs}"


class Origin(NamedTuple):
    """Where a run continues another one: the folder of its parent, and the whole epochs that were done."""

    folder: Path
    epoch: int


class Run(NamedTuple):
    """`values`: of config.yaml, as text by dotted key, choices also by their group; `result`: result.json, or what is
    known of the headline of a run that is not done; all empty for a run that cannot be read."""

    folder: Path
    state: State
    values: dict[str, str]
    result: dict[str, Any]
    origin: Origin | None = None

    @property
    def is_readable(self) -> bool:
        return self.state.name != "unreadable"

    @property
    def pair(self) -> tuple[str, str]:
        """The names of model and data; of a study its experiment."""
        if any(key.startswith("study.") for key in self.values):
            return self.values.get("experiment", "study"), ""
        return self.values.get("model", "?"), self.values.get("data", "?")

    @property
    def headline(self) -> str:
        """The metric of validation that decides, as val/accuracy; "" where it is not known."""
        return str(self.result.get("headline", ""))

    def number(self, key: str) -> float | None:
        """A number of its result, as test/accuracy or seconds."""
        value = self.result.get(key)
        return float(value) if isinstance(value, int | float) and type(value) is not bool else None

    def place_of_parent(self) -> str:
        """The absolute path of the folder of its parent; "" for none."""
        return os.path.abspath(self.origin.folder) if self.origin else ""
