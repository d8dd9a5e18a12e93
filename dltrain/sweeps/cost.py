"""What a job of a sweep takes, which jobs take the same, and what is left to do takes together."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dltrain.drawing.tables import format_count, format_duration

MB = 1e6


class Cost(NamedTuple):
    """`memory_mb`: the largest of the process, libraries and data included, or of the tensors on a GPU; None if it is
    not known. `is_estimate`: of a job that is not done."""

    seconds: float
    memory_mb: float | None
    disk_mb: float
    is_estimate: bool

    def cells(self) -> list[str]:
        """Time, memory and disk for a table."""
        if self == UNKNOWN:
            return ["not known"] * 3
        about = "about " if self.is_estimate else ""
        memory = "" if self.memory_mb is None else f"{self.memory_mb:,.0f} MB"
        return [about + format_duration(self.seconds), memory, f"{about}{self.disk_mb:,.1f} MB"]


UNKNOWN = Cost(0, None, 0, is_estimate=True)


class Shape(NamedTuple):
    """`kind`: equal for jobs whose steps take the same; "" for studies, of which nothing is known before they run.
    `length`: in proportion to the steps, among those of one kind."""

    kind: str
    length: float


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Jobs of one kind differ in the seed, the optimizer's numbers or the length."""
    if "study" in config:
        return Shape("", 0)
    task = {key: value for key, value in config["task"].items() if key not in ("optimizer", "schedule")}
    trainer = {key: value for key, value in config["trainer"].items() if not key.startswith("max_")}
    kinds = [config["model"], config["data"], config.get("augment"), task, trainer, config["task"]["optimizer"]["name"]]
    text = json.dumps(kinds, sort_keys=True, default=str)
    length = config["trainer"].get("max_steps") or config["trainer"].get("max_epochs") or 1
    return Shape(hashlib.sha256(text.encode()).hexdigest(), float(length))


def describe_total(costs: Iterable[Cost], free_mb: float) -> str:
    left = [cost for cost in costs if cost.is_estimate]
    if not left:
        return "nothing is left to do"
    memory = max(cost.memory_mb or 0 for cost in left)
    if UNKNOWN in left:
        return f"left: {format_count(len(left), 'job')}; what a study takes is not known before it runs"
    return (f"left: {format_count(len(left), 'job')}, about {format_duration(sum(cost.seconds for cost in left))} one "
            f"after the other, {memory:,.0f} MB of memory, {sum(cost.disk_mb for cost in left):,.0f} MB of disk "
            f"({free_mb:,.0f} MB free)")


def free_mb(folder: Path) -> float:
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(place).free / MB
