"""The first step or reading in which two runs differ: the first batch, the weights and losses of the first steps, and
metrics.csv."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from dltrain import stored_files
from dltrain.drawing.tables import format_count
from dltrain.runs.sections import Pair, Section, and_more, read_record

SPEED = "_per_second"  # how a column of metrics.csv ends that depends on the machine


def steps_section(pair: Pair) -> Section:
    a, b = pair.read(read_record)
    lines = pair.not_recorded("first steps (first_steps.json)", a, b) or [
        *compare_batches(a, b), *compare_weights(a, b), *compare_losses(a["losses"], b["losses"])]
    readings = pair.read(lambda folder: readings_of(folder / "metrics.csv"))
    lines += pair.not_recorded("readings (metrics.csv)", *readings) or compare_readings(*readings)
    return Section("steps", [], lines)


def compare_batches(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    if not a["batch"] or not b["batch"]:
        return []
    return [f"the first batch, as it is read, is {'equal' if a['batch'] == b['batch'] else 'another'}"]


def compare_weights(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """After each step of which both have a digest."""
    lines = []
    for step in sorted({*a["weights"]} & {*b["weights"]}, key=int):
        place = f"after step {step}" if int(step) else "before the first step"
        lines.append(f"the weights {place} {'are equal' if a['weights'][step] == b['weights'][step] else 'differ'}")
    return lines


def compare_losses(a: Sequence[float], b: Sequence[float]) -> list[str]:
    count = min(len(a), len(b))
    equal = len([*takewhile(lambda values: repr(values[0]) == repr(values[1]), zip(a, b, strict=False))])
    if equal == count:
        return [f"the losses of the first {format_count(count, 'step')} are equal"] if count else []
    before = f"the first {equal} losses are equal; " if equal > 1 else (
        "the first loss is equal; " if equal else "")
    return [f"{before}losses part at step {equal + 1}: {a[equal]:.6g} against {b[equal]:.6g}"]


def readings_of(file: Path) -> dict[int, dict[str, str]]:
    """By step, the values of training and of validation together; empty where there is no file. Damaged rows are left
    out."""
    readings: dict[int, dict[str, str]] = {}
    for row in stored_files.read_rows(file).rows if os.path.lexists(file) else []:
        if row is not None:
            readings.setdefault(int(row["step"]), {}).update({name: text for name, text in row.items() if text})
    return readings


def compare_readings(a: Mapping[int, Mapping[str, str]], b: Mapping[int, Mapping[str, str]]) -> list[str]:
    """Of the steps, and the metrics, that both have; speed is left out."""
    steps = sorted(a.keys() & b.keys())
    if not steps:
        return [f"no readings at the same step: the first are at {min(a)} and {min(b)}"]
    for number, step in enumerate(steps):
        names = [name for name in a[step] if name in b[step] and name != "epoch" and not name.endswith(SPEED)]
        differ = [name for name in names if a[step][name] != b[step][name]]
        if differ:
            before = f"readings are equal to step {steps[number - 1]:,}; they" if number else "readings"
            return [f"{before} part at step {step:,}: {differ[0]} {a[step][differ[0]]} against "
                    f"{b[step][differ[0]]}{and_more(len(differ) - 1)}"]
    longer = f"; {'A' if max(a) > max(b) else 'B'} has more" if max(a) != max(b) else ""
    return [f"readings at {format_count(len(steps), 'step')}, to step {steps[-1]:,}, are equal{longer}"]
