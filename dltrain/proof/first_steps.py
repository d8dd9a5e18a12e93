"""Compares what a run recorded of its first steps with the same steps given again: where the two part, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dltrain import step_record
from dltrain.drawing.tables import format_count
from dltrain.errors import BUG, DataError, MachineError, UserError
from dltrain.run_dir import RunDir
from dltrain.stored_files import read_json

NOT_COMPARED = {"host", "system", "git_commit"}  # of environment.json: they are no reason by themselves
SHOWN = 5  # of each kind of reason


class Verdict(NamedTuple):
    """`equal`: what agrees, in words. `parted`: what differs first, "" if nothing does. `reasons`: what differs around
    the run, by its kind. `exit_code`: 0 if nothing parted, else that of the first kind."""

    equal: list[str]
    parted: str
    reasons: dict[str, list[str]]

    @property
    def exit_code(self) -> int:
        if not self.parted:
            return 0
        codes = {"config": UserError.exit_code, "data": DataError.exit_code, "environment": MachineError.exit_code,
                 "code": UserError.exit_code}
        return next((codes[kind] for kind in codes if self.reasons[kind]), BUG)

    def lines(self) -> list[str]:
        reasons = [f"{kind}: {'; '.join(differ[:SHOWN])}{f' and {len(differ) - SHOWN} more' * (len(differ) > SHOWN)}"
                   for kind, differ in self.reasons.items() if differ]
        if self.parted:
            reasons = reasons or ["nothing that the run knows of: no config, code, data, version or thread differs"]
        agree = [f"equal to the last bit: {', '.join(self.equal)}"] if self.equal else []
        first = [f"part at {self.parted}"] if self.parted else []
        return [*first, *agree, *(f"differs now, {reason}" for reason in reasons)]


def read_record(folder: Path) -> dict[str, Any]:
    """first_steps.json; empty where there is none."""
    file = folder / step_record.FILE
    return step_record.read(file) if file.is_file() else {}


def compare_steps(then: Path, now: Path, last_step: int) -> tuple[list[str], str]:
    """What agrees of two run folders up to a step, in words, and what differs first, "" if nothing does."""
    a, b = read_record(then), read_record(now)
    equal: list[str] = []
    if a.get("batch") and b.get("batch"):
        if a["batch"] != b["batch"]:
            return equal, "the first batch, as it is read: other data, another order or another reader"
        equal.append("the first batch")
    parted = compare_weights(a, b, ["0"], equal) or compare_losses(a, b, equal)
    if parted:
        return equal, parted
    after = sorted({*a.get("weights", {})} & {*b.get("weights", {})} - {"0"}, key=int)
    if parted := compare_weights(a, b, after, equal):
        return equal, parted
    return equal, compare_readings(RunDir(then), RunDir(now), last_step, equal)


def compare_weights(a: Mapping[str, Any], b: Mapping[str, Any], steps: list[str], equal: list[str]) -> str:
    for step in steps:
        left, right = a.get("weights", {}).get(step), b.get("weights", {}).get(step)
        name = f"the weights after step {step}" if step != "0" else "the weights before the first step"
        if left is None or right is None:
            continue
        if left != right:
            return name
        equal.append(name)
    return ""


def compare_losses(a: Mapping[str, Any], b: Mapping[str, Any], equal: list[str]) -> str:
    losses = list(zip(a.get("losses", []), b.get("losses", []), strict=False))
    for step, (left, right) in enumerate(losses, start=1):
        if repr(left) != repr(right):  # nan is as it was
            if step > 1:
                equal.append(f"{step - 1} first loss{'es' * (step > 2)}")
            return f"step {step}: loss {left!r} then, {right!r} now ({abs(right - left) / abs(left or 1):.1g} of it)"
    if losses:
        equal.append(f"{len(losses)} loss{'es' * (len(losses) > 1)}")
    return ""


def compare_readings(then: RunDir, now: RunDir, last_step: int, equal: list[str]) -> str:
    """The rows of metrics.csv up to a step, but for throughput."""
    files = [run_dir.read_metrics() if (run_dir.path / "metrics.csv").is_file() else [] for run_dir in (then, now)]
    count = 0
    for left, right in zip(*files, strict=False):
        if int(left["step"]) > last_step:
            break
        names = [name for name in left if not name.endswith("_per_second")]
        if differ := [name for name in names if left[name] != (right.get(name) or "")]:
            return (f"the reading at step {left['step']}: {differ[0]} {left[differ[0]]} then, "
                    f"{right.get(differ[0])} now")
        count += 1
    if count:
        equal.append(f"{format_count(count, 'reading')} of metrics.csv")
    return ""


def changed_code(then: Path, now: Path) -> list[str]:
    a, b = read_record(then).get("code", {}), read_record(now).get("code", {})
    return [name for name, digest in a.items() if name in b and b[name] != digest]


def changed_environment(then: Path, now: Path) -> list[str]:
    """Versions, device and threads. Where a run was continued, environment.json is that of its last start."""
    a, b = (read_json(file) if (file := folder / "environment.json").is_file() else {} for folder in (then, now))
    return [f"{key} ({a[key]} then, {b[key]} now)" for key in a if key in b and a[key] != b[key]
            and key not in NOT_COMPARED]
