"""Compares two finished runs to the last bit: weights, optimizer, position, metrics.csv, result.json, files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dltrain import checkpoints
from dltrain.digests import digest, flatten, in_a_row
from dltrain.errors import CheckpointError
from dltrain.run_dir import RunDir

DIFFERENT_EACH_TIME = ("seconds", "folder")  # keys of result.json
MADE_EACH_TIME = ("events.out.", "previous.ckpt")  # beginnings of files that one of two equal runs may lack


class Compared(NamedTuple):
    """One thing of two runs: a digest of each, "-" where it is missing, and what differs first, "" if nothing does."""

    name: str
    digests: tuple[str, str]
    difference: str


def compare(left: Path, right: Path) -> list[Compared]:
    """`left`, `right`: the folders of finished runs with equal configs."""
    a, b = values_of(left), values_of(right)
    return [Compared(name, (digest(a[name]), digest(b[name])), first_difference(a[name], b[name])) for name in a]


def values_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What must be equal, by its name: each a flat mapping."""
    run_dir = RunDir(folder)
    last, best = (read_checkpoint(run_dir.checkpoint(name)) for name in ("last", "best"))
    result = {key: value for key, value in run_dir.read_result().items() if key not in DIFFERENT_EACH_TIME}
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {
        "final weights": flatten(last.get("state_dict", {})),
        "optimizer": flatten({key: last.get(key) for key in ("optimizer_states", "lr_schedulers", "sums")}),
        "position": flatten({"step": last.get("global_step"), **last.get("loops", {})}),
        "best weights": flatten(best.get("state_dict", {})),
        "metrics.csv": metrics_of(run_dir),
        "result.json": result,
        "files": {name: "present" for name in files if not Path(name).name.startswith(MADE_EACH_TIME)},
    }


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Empty where there is none that can be read."""
    try:
        return checkpoints.load(file)
    except CheckpointError:
        return {}


def metrics_of(run_dir: RunDir) -> dict[str, Any]:
    """metrics.csv but for throughput: the columns, and each cell."""
    try:
        rows = run_dir.read_metrics()
    except FileNotFoundError:
        return {}
    columns = [name for name in (rows[0] if rows else {}) if not name.endswith("_per_second")]
    cells = {f"row {number}, {name}": row[name] for number, row in enumerate(rows, start=1) for name in columns}
    return {"columns": ", ".join(columns), **cells}


def first_difference(left: Mapping[str, Any], right: Mapping[str, Any]) -> str:
    """The first value that is not the same in both, in words; "" if there is none."""
    if not left and not right:
        return "missing in both"
    for name in {**left, **right}:
        if name not in left or name not in right:
            return f"{name}: only in the {'second' if name in right else 'first'}"
        a, b = left[name], right[name]
        if torch.is_tensor(a) and torch.is_tensor(b):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{name}: {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}"
            first, second = (in_a_row(tensor).view(torch.uint8) for tensor in (a, b))
            if count := int((first != second).sum()):
                most = (a.double() - b.double()).abs().max().item() if a.is_floating_point() else float("nan")
                return f"{name}: {count} of {a.numel() * a.element_size()} bytes, by up to {most:.3g}"
        elif json.dumps(a, default=repr) != json.dumps(b, default=repr):
            return f"{name}: {a} and {b}"
    return ""
