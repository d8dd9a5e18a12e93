"""parent.json of a run folder: the run, and the place in it, with whose checkpoint this one begins."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from dltrain.disk import write_text
from dltrain.errors import CheckpointError
from dltrain.stored_files import read_json

FILE = "parent.json"
ADVICE = "delete it, and the run counts as one without a parent"


class Parent(NamedTuple):
    """`run`: its folder, as seen from that of its child. `epoch`: whole epochs that were done. `changes`: the values
    that differ from there on, by key."""

    run: str
    epoch: int
    step: int
    changes: dict[str, Any]

    def folder(self, child: Path) -> Path:
        return Path(os.path.normpath(child / self.run))

    def describe(self, child: Path) -> str:
        changed = ", ".join(describe_change(key, value) for key, value in self.changes.items())
        return (f"begins after {place_of(self.epoch, self.step)} of {self.folder(child)}"
                f"{f', with {changed}' if changed else ''}")


def describe_change(key: str, value: Any) -> str:
    is_extension = key == "trainer.extended" and type(value) is list and value and type(value[-1]) is dict
    return f"schedule={value[-1].get('schedule')}" if is_extension else f"{key}={value}"


def place_of(epoch: int, step: int) -> str:
    return f"epoch {epoch}, step {step:,}"


def write(folder: Path, parent: Parent) -> None:
    write_text(folder / FILE, json.dumps(parent._asdict(), indent=1, ensure_ascii=False) + "\n")


def read(folder: Path) -> Parent | None:
    """None for a run that began by itself. Raises CheckpointError for a damaged file."""
    file = folder / FILE
    if not os.path.lexists(file):
        return None
    stored = read_json(file, ADVICE)
    kinds = {"run": str, "epoch": int, "step": int, "changes": dict}
    if {key: type(value) for key, value in stored.items()} != kinds:
        raise CheckpointError(f"{file}: damaged (must have {', '.join(kinds)}); {ADVICE}")
    return Parent(**stored)
