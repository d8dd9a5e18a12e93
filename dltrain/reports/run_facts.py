"""What a run is, how it ended, its data, its machine and its warnings, as lines for its page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from dltrain import run_lock, run_parent, run_pause, stored_files
from dltrain.drawing.tables import format_count, format_duration
from dltrain.errors import UserError
from dltrain.reports.run_texts import lines_of, starts
from dltrain.run_dir import RunDir

MESSAGE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) ([\w.]+): (.*)")  # of log.txt
WARNING = "dltrain: warning: "
MOST_WARNINGS, MOST_LINES = 50, 40  # on a page; of a traceback
NAMES = {"pytorch_lightning": "PyTorch Lightning", "git_commit": "commit of dltrain", "cpu_threads": "threads",
         "slurm_job": "Slurm job", "system": "system", "host": "host", "device": "device"}

Pairs = list[tuple[str, str]]


class State(NamedTuple):
    """`kind`: good, bad or open. `line`: how the run ended, or how far it is."""

    word: str
    kind: str
    line: str


class Headline(NamedTuple):
    """`name`: with its split, such as val/accuracy; "" where it is not known. `best_epoch`: 0 where that is not."""

    name: str
    best_epoch: int


def state_of(run_dir: RunDir, config: Mapping[str, Any], result: Mapping[str, Any], rows: Sequence[Mapping[str, str]]
             ) -> State:
    """`rows`: the readings of metrics.csv."""
    if result:
        return State("done", "good", describe_end(config["trainer"], result, rows))
    place = describe_place(config["trainer"], rows)
    if owner := run_lock.owner_of(run_dir.path):
        return State("running", "open", f"{owner}; {place}")
    if lines_of(run_dir.path / "error.txt"):
        return State("failed", "bad", place)
    if paused := run_pause.read(run_dir.path):
        return State("pruned" if paused.pruned else "paused", "open", str(paused))
    can_continue = run_dir.checkpoint("last").is_file()
    return State("stopped", "open", f"{place}; {'it can be continued' if can_continue else 'it has no checkpoint yet'}")


def describe_end(trainer: Mapping[str, Any], result: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> str:
    steps, epochs = int(result["steps"]), last_epoch(rows)
    length = ", ".join([format_count(steps, "step"), *([format_count(epochs, "epoch")] if epochs else [])])
    if trainer.get("smoke_steps") is not None:
        return f"a smoke run: {length}"
    planned, most_steps = trainer.get("max_epochs"), trainer.get("max_steps")
    if planned and epochs and epochs < planned and not (most_steps and steps >= most_steps):
        return f"ended early by a callback: {length} of {planned:,}"
    return f"trained to its full length: {length}"


def describe_place(trainer: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return "no reading yet"
    planned = trainer.get("max_epochs")
    return (f"last reading at step {int(rows[-1]['step']):,}, epoch {last_epoch(rows):,}"
            f"{f' of {planned:,}' if planned else ''}")


def last_epoch(rows: Sequence[Mapping[str, str]]) -> int:
    return max((int(row["epoch"]) for row in rows if row["epoch"]), default=0)


def headline_of(folder: Path, result: Mapping[str, Any], charts: Sequence[str]) -> Headline:
    """`charts`: their titles in TensorBoard, which has the headline second, also of a run that has not ended."""
    if result:
        return Headline(str(result["headline"]), int(result["best_epoch"]))
    if paused := run_pause.read(folder):
        return Headline(paused.headline, 0)
    return Headline(f"val/{charts[1]}" if charts[1:] and charts[0] == "loss" else "", 0)


def head_lines(run_dir: RunDir, config: Mapping[str, Any], result: Mapping[str, Any], state: State) -> Pairs:
    """Names and values of the head of the page."""
    began, choices, environment = starts(run_dir.path), config["choices"], read_environment(run_dir.path)
    times = [date for start in began if (date := date_of(start.time))]
    again = f"; {len(began) - 1} more start{'s' * (len(began) > 2)}, the last on {times[-1]}" if times[1:] else ""
    parent = run_parent.read(run_dir.path)
    pairs = [
        ("how it ended" if result else "how far it is", state.line),
        ("parent", parent.describe(run_dir.path) if parent else ""),
        ("began", f"{times[0]}{again}" if times else ""),
        ("duration", format_duration(result["seconds"]) if "seconds" in result else ""),
        ("device", str(environment.get("device") or "")),
        ("seed", str(config.get("seed", ""))),
        ("recipe", "" if choices.get("recipe") in (None, "none") else str(choices["recipe"])),
        ("parameters", f"{result['parameters']:,}" if type(result.get("parameters")) is int else ""),
        ("folder", str(run_dir)),
        ("command", began[-1].command if began else ""),
    ]
    return [(name, value) for name, value in pairs if value]


def date_of(time: str) -> str:
    try:
        return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ""


def read_environment(folder: Path) -> dict[str, Any]:
    try:
        return stored_files.read_json(folder / "environment.json")
    except UserError:
        return {}


def environment_lines(folder: Path) -> Pairs:
    lines = [(NAMES.get(name, name), str(value)) for name, value in read_environment(folder).items()
             if value is not None]
    others = sum(match is not None and match[2] == "py.warnings"
                 for match in map(MESSAGE.match, lines_of(folder / "log.txt")))
    return [*lines, *([("warnings of libraries", f"{others}, in log.txt")] if others else [])]


def data_lines(run_dir: RunDir, config: Mapping[str, Any]) -> Pairs:
    """The number of samples of each split with their digest, and what was unusual."""
    lines = [("data set", str(config["choices"].get("data", "")))]
    if root := config["data"].get("root"):
        lines.append(("folder", str(root)))
    for split, stored in run_dir.read_splits().items():
        if split != "sizes":
            digest = f", digest {stored['digest']}" if stored["digest"] else ""
            lines.append((split, f"{format_count(stored['samples'], 'sample')}{digest}"))
    reasons = Counter(line.partition(": ")[0] for line in lines_of(run_dir.path / "left_out.txt"))
    lines += [("left out", f"{count:,} x {reason}") for reason, count in reasons.items()]
    if damaged := lines_of(run_dir.path / "damaged_exif.txt"):
        lines.append(("damaged EXIF data", f"{format_count(len(damaged), 'photo')}, taken as upright"))
    if faults := lines_of(run_dir.path / "bad_data.txt"):
        lines.append(("faults", f"{len(faults):,}, listed in bad_data.txt"))
    return lines


def warnings_of(folder: Path) -> list[str]:
    """dltrain's own, each once."""
    matches = [match for line in lines_of(folder / "log.txt") if (match := MESSAGE.match(line))]
    own = [*dict.fromkeys(match[3].removeprefix(WARNING) for match in matches if match[3].startswith(WARNING))]
    more = [f"and {len(own) - MOST_WARNINGS} more in log.txt"] if len(own) > MOST_WARNINGS else []
    return [*own[:MOST_WARNINGS], *more]


def error_text(folder: Path) -> str:
    lines = lines_of(folder / "error.txt")
    more = len(lines) - 1 - MOST_LINES
    left_out = [f"... ({format_count(more, 'line')} in error.txt)"] if more > 0 else []
    return "\n".join([lines[0], *left_out, *lines[1:][-MOST_LINES:]]) if lines else ""
