"""paused.json of a run folder: where the training has ended before its full length, to be continued later or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from dltrain.disk import write_text
from dltrain.errors import CheckpointError
from dltrain.stored_files import read_json

FILE = "paused.json"


class Paused(NamedTuple):
    """After `epoch` of `epochs` epochs. `value`: the best of the headline metric so far."""

    epoch: int
    epochs: int
    steps: int
    pruned: bool
    headline: str
    headline_mode: str
    value: float

    def __str__(self) -> str:
        return (f"{'pruned' if self.pruned else 'paused'} at epoch {self.epoch} of {self.epochs}, {self.headline} "
                f"{self.value:.4f}")


def write(folder: Path, paused: Paused) -> None:
    write_text(folder / FILE, json.dumps(paused._asdict(), indent=1) + "\n")


def forget(folder: Path) -> None:
    """To be called when the training continues."""
    (folder / FILE).unlink(missing_ok=True)


def read(folder: Path) -> Paused | None:
    """None if the run is not paused. Raises CheckpointError for a damaged file."""
    file = folder / FILE
    if not file.is_file() or (folder / "result.json").is_file():
        return None
    advice = "delete it, and the run counts as one that was stopped"
    stored = read_json(file, advice)
    kinds = {"epoch": int, "epochs": int, "steps": int, "pruned": bool, "headline": str, "headline_mode": str,
             "value": float}
    if type(stored) is not dict or {key: type(value) for key, value in stored.items()} != kinds:
        raise CheckpointError(f"{file}: damaged (must have {', '.join(kinds)}); {advice}")
    return Paused(**stored)
