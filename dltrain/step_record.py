"""first_steps.json of a run folder: how the run began. callbacks/first_steps.py writes it; imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dltrain.errors import CheckpointError

FILE, NUM_STEPS = "first_steps.json", 20


def read(file: Path) -> dict[str, Any]:
    """Raises CheckpointError for a damaged one."""
    try:
        record: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
        [int(step) for step in {**record["weights"]}]
        is_whole = {"code", "batch"} <= record.keys() and all(type(loss) is float for loss in record["losses"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        is_whole = False
    if not is_whole:
        raise CheckpointError(f"{file}: damaged; delete it, the run continues without the record of its steps")
    return record
