"""The state of a run, and how far it is, by what is in its folder."""

from __future__ import annotations

import csv
import os
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dltrain import run_lock, run_pause, stored_files
from dltrain.errors import UserError
from dltrain.runs.record import State

# The last line of the traceback, also of the process of a run of several; without it, the messages of a divergence.
DIVERGED = re.compile(r"^(dltrain\.errors\.DivergedError: |(rank \d+: )?(loss is (nan|-?inf) at step \d|"
                      r"weights are not finite at step \d|\S.* has nan at step \d))", re.MULTILINE)
LENGTH = re.compile(r"[\d,]+ steps? in ([\d,]+) epochs?|more steps, to epoch ([\d,]+)")  # in log.txt
MOST_REASON = 200  # characters of error.txt


def state_of(folder: Path, files: Collection[str], result: Mapping[str, Any], values: Mapping[str, str]) -> State:
    """`files`: the names in the folder; `values`: of its config, as text by dotted key. A run that has ended with an
    error and was started again since then is not failed. Raises UserError for a damaged file."""
    if result:
        return State("done")
    if ".lock" in files and run_lock.owner_of(folder):
        return State("running", *progress_of(folder, values))
    if "error.txt" in files and is_of_last_start(folder):
        text = stored_files.read_text(folder / "error.txt")
        reason = textwrap.shorten((text.splitlines() or ["error.txt is empty"])[0], MOST_REASON, placeholder=" ...")
        return State("diverged" if DIVERGED.search(text) else "failed", *progress_of(folder, values), reason)
    if "paused.json" in files and (paused := run_pause.read(folder)):
        return State("pruned" if paused.pruned else "paused", paused.epoch, paused.epochs)
    return State("stopped", *progress_of(folder, values))


def is_of_last_start(folder: Path) -> bool:
    """Whether error.txt is not older than the last line of command.txt, which each start writes with its time."""
    file = folder / "command.txt"
    with suppress(OSError, ValueError, IndexError, UserError, OverflowError):
        last = stored_files.read_text(file).splitlines()[-1]
        return os.stat(folder / "error.txt").st_mtime >= datetime.fromisoformat(last.split()[0]).timestamp()
    return True


def progress_of(folder: Path, values: Mapping[str, str]) -> tuple[int | None, int | None]:
    """The epoch of the last reading, None before the first, and the number of epochs, None where neither the config nor
    the log has it."""
    epoch = max((int(row[1]) for row in read_rows(folder)[1] if row[1].isdecimal()), default=None)
    return epoch, None if epoch is None else epochs_of(folder, values)


def epochs_of(folder: Path, values: Mapping[str, str]) -> int | None:
    epochs = values.get("trainer.max_epochs", "null")
    others = {values.get(f"trainer.{key}", "null") for key in ("max_steps", "smoke_steps")}
    if epochs.isdecimal() and others == {"null"}:
        return int(epochs)
    with suppress(UserError):
        stated = [*LENGTH.finditer(stored_files.read_text(folder / "log.txt"))]
        return int((stated[-1][1] or stated[-1][2]).replace(",", "")) if stated else None
    return None


def best_reading(folder: Path, metric: str, mode: str) -> float | None:
    """The best value of a metric of validation so far; None if there is none."""
    columns, rows = read_rows(folder)
    if metric not in columns:
        return None
    values, place = [], columns.index(metric)
    for row in rows:
        with suppress(ValueError):
            values.append(float(row[place]))
    return (max if mode == "max" else min)(values, default=None)


def read_rows(folder: Path) -> tuple[list[str], list[list[str]]]:
    """The columns of metrics.csv, and its rows of as many cells; a row that is being written is left out."""
    with suppress(UserError):
        lines = stored_files.read_text(folder / "metrics.csv").splitlines()
        columns = next(csv.reader(lines[:1]), [])
        if columns[:2] == ["step", "epoch"]:
            return columns, [*whole_rows(lines[1:], len(columns))]
    return [], []


def whole_rows(lines: list[str], num_columns: int) -> Iterator[list[str]]:
    for line in lines:
        row = line.split(",")  # numbers and blanks alone
        if len(row) == num_columns:
            yield row
