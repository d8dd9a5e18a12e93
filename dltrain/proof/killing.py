"""Starts a command that trains in a run folder, kills it at a moment chosen from a seed, and says how it ended.

How far a run is, is read from outside, in its folder: command.txt has a line once the data are loaded, metrics.csv a
row per reading and per validation, checkpoints/ a temporary file while something is saved. Torch is not imported.
"""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

SIGNALS = ("KILL", "TERM", "HUP", "INT")
PLACES = ("step", "save", "validation", "test")  # where a run is killed; "start" is there too: before its first reading
POLL_SECONDS = 0.005
LONGEST_POLL_SECONDS = 0.5
PATIENCE_SECONDS = 120.0  # for the end of a process that was sent a signal
LEFT_ALONE_SECONDS = 10.0  # for the end of the other processes of a run after its first

ValueT = TypeVar("ValueT")


class Reading(NamedTuple):
    """A row of metrics.csv, and when an uninterrupted run had written it, in seconds since its start."""

    step: int
    is_validation: bool
    seconds: float


class Course(NamedTuple):
    """The course of an uninterrupted run: its readings, and the seconds until its first step and until its end."""

    readings: list[Reading]
    start: float
    ended: float


class Kill(NamedTuple):
    """A signal, sent `wait` seconds after the run has started and has written `rows` rows of metrics.csv; at "start",
    `wait` seconds after the process was started, or as soon as the run has; in a "save", as soon as a checkpoint
    is being written. `rank`: of a run of several processes, the one to which alone it is sent."""

    place: str
    rows: int
    wait: float
    signum: int
    to_group: bool
    rank: int | None = None


class Ending(NamedTuple):
    """How a process ended. `code`: as a shell says it, 128 + n after signal n; None where it did not end by itself.
    `sent_at`: the last step that metrics.csv had when the signal was sent, None where the process ended before.
    `seconds`: from the signal to the end. `left`: processes of it that outlived it."""

    code: int | None
    sent_at: int | None
    seconds: float
    left: int
    output: str

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output

    @property
    def continued_from(self) -> str:
        """The step from which this process continued the run; "" if it was ended before it did."""
        steps = re.findall(r"resuming .* from step (\d+) of", self.output)
        if steps:
            return f"step {steps[-1]}"
        if re.search("is finished.*, nothing to do", self.output):
            return "its end"
        return "the start" if " parameters; " in self.output else ""


class Progress:
    """What the folder of a run shows."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.starts_before = count_lines(folder / "command.txt")

    def has_started(self) -> bool:
        return count_lines(self.folder / "command.txt") > self.starts_before

    def num_rows(self) -> int:
        return max(0, count_lines(self.folder / "metrics.csv") - 1)

    def last_step(self) -> int:
        readings = read_steps(self.folder / "metrics.csv")
        return readings[-1][0] if readings else 0

    def is_saving(self) -> bool:
        try:
            return any(name.endswith(".tmp") for name in os.listdir(self.folder / "checkpoints"))
        except FileNotFoundError:
            return False


def count_lines(file: Path) -> int:
    try:
        return file.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def read_steps(file: Path) -> list[tuple[int, bool]]:
    """The step of each whole row of metrics.csv, and whether the row is of a validation."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [(int(row["step"]), any(value for key, value in row.items() if key.startswith("val/"))) for row in rows]


@contextmanager
def started(command: Sequence[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a command, first of a group of its own, of which nothing is left afterwards. A signal that is
    ignored here, as SIGINT in the background of a script, is not ignored there."""
    ignored = [signum for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
               if signal.getsignal(signum) == signal.SIG_IGN]
    for signum in ignored:
        signal.signal(signum, signal.SIG_DFL)
    with open(output, "wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                                   start_new_session=True)
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    try:
        yield process
    finally:
        send(process, signal.SIGKILL, to_group=True)
        process.wait()


def send(process: subprocess.Popen[bytes], signum: int, to_group: bool, rank: int | None = None) -> None:
    try:
        if rank is not None:
            os.kill(pid_of_rank(process.pid, rank), signum)
        elif to_group:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
    except ProcessLookupError:
        pass


def pid_of_rank(command: int, rank: int) -> int:
    """The process that a command has started as one of several, see processes.py. Raises ProcessLookupError."""
    for file in Path(f"/proc/{command}/task").glob("*/children"):
        for child in file.read_text().split():
            if f"LOCAL_RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    raise ProcessLookupError(f"rank {rank} of {command}")


def members(group: int) -> list[int]:
    """The processes of a group that have not ended. Without /proc, none are seen."""
    found_ids = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(process_group) == group and state not in "ZX":
            found_ids.append(int(entry.parent.name))
    return found_ids


def polls(seconds: float) -> Iterator[float]:
    """Sleeps a little, again and again, for so long. Yields the seconds since the start, less those in which this
    process was stopped itself, as a laptop that sleeps."""
    elapsed, before = 0.0, time.monotonic()
    while elapsed < seconds:
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        elapsed, before = elapsed + min(now - before, LONGEST_POLL_SECONDS), now
        yield elapsed


def wait_for_end(process: subprocess.Popen[bytes], output: Path, sent_at: int | None, patience: float) -> Ending:
    seconds = 0.0
    for elapsed in polls(patience):
        seconds = elapsed
        if process.poll() is not None:
            break
    code = process.poll()
    for _ in polls(LEFT_ALONE_SECONDS):
        if code is None or not members(process.pid):
            break
    left = len(members(process.pid)) if code is not None else 0
    return Ending(None if code is None else code if code >= 0 else 128 - code, sent_at, seconds, left,
                  output.read_text(encoding="utf-8", errors="replace"))


def watch(command: Sequence[str], folder: Path, output: Path, patience: float) -> tuple[Ending, Course]:
    """Runs a command to its end. Its course is that of the run in `folder`."""
    progress, times, start, now = Progress(folder), list[float](), 0.0, 0.0
    with started(command, output) as process:
        for now in polls(patience):
            start = start or (now if progress.has_started() else 0.0)
            times += [now] * (progress.num_rows() - len(times))
            if process.poll() is not None:
                break
        ending = wait_for_end(process, output, None, POLL_SECONDS)
    readings = [Reading(*row, seconds) for row, seconds in zip(read_steps(folder / "metrics.csv"), times, strict=False)]
    return ending, Course(readings, start, now)


def finish(command: Sequence[str], output: Path, patience: float) -> Ending:
    """Runs a command to its end."""
    with started(command, output) as process:
        return wait_for_end(process, output, None, patience)


def start_and_kill(command: Sequence[str], folder: Path, output: Path, kill: Kill,
                   patience: float = PATIENCE_SECONDS) -> Ending:
    """Starts a command and sends it the signal at its moment, or not at all where it ends before."""
    progress = Progress(folder)
    with started(command, output) as process:
        if not wait_for_moment(process, progress, kill, patience):
            return wait_for_end(process, output, None, POLL_SECONDS)
        sent_at = progress.last_step()
        send(process, kill.signum, kill.to_group, kill.rank)
        return wait_for_end(process, output, sent_at, patience)


def wait_for_moment(process: subprocess.Popen[bytes], progress: Progress, kill: Kill, patience: float) -> bool:
    """False where the process ends before, or is not there in `patience` seconds."""
    if kill.place == "start":
        for _ in polls(kill.wait):
            if process.poll() is not None or progress.has_started():
                break
        return process.poll() is None
    for _ in polls(patience):
        if process.poll() is not None:
            return False
        if progress.has_started() and progress.num_rows() >= kill.rows:
            break
    else:
        return False
    if kill.place == "save":
        last = time.monotonic() + patience
        while process.poll() is None and time.monotonic() < last and not progress.is_saving():
            time.sleep(POLL_SECONDS / 20)
    time.sleep(kill.wait)
    return process.poll() is None


def plan(course: Course, count: int, rng: random.Random, places: Sequence[str] = PLACES,
         signals: Sequence[str] = SIGNALS, groups: Sequence[bool] = (False, True)) -> list[Kill]:
    """`count` kills in the order in which one run meets them: the places and the signals in turn, each in an order of
    its own, the moments at random. SIGKILL, which nothing can catch, is always among them."""
    of_places, of_signals = in_turn(places, count, rng), in_turn(signals, count, rng)
    if "KILL" in signals and "KILL" not in of_signals:
        of_signals[0] = "KILL"
    of_groups = in_turn(groups, count, rng)
    kills = []
    for place, name, to_group in zip(of_places, of_signals, of_groups, strict=True):
        rows, wait = moment(course, place, rng)
        kills.append(Kill(place, rows, wait, signal.Signals[f"SIG{name}"], to_group))
    return sorted(kills, key=lambda kill: (kill.place != "start", kill.rows, kill.wait))


def in_turn(values: Sequence[ValueT], count: int, rng: random.Random) -> list[ValueT]:
    """`count` of the values: each comes once before any comes again."""
    chosen: list[ValueT] = []
    while len(chosen) < count:
        chosen += rng.sample(values, len(values))
    return chosen[:count]


def moment(course: Course, place: str, rng: random.Random) -> tuple[int, float]:
    """The rows after which, and the seconds after that, a run is killed in a step, in a save, ..."""
    readings = course.readings
    if place == "start":
        return 0, rng.uniform(0, course.start)
    if place == "test":
        return len(readings), rng.uniform(0, course.ended - readings[-1].seconds)
    before = [index for index in range(1, len(readings)) if readings[index].is_validation == (place == "validation")]
    index = rng.choice(before or [*range(1, len(readings))])  # the row that comes next
    return index, 0.0 if place == "save" else rng.uniform(0, readings[index].seconds - readings[index - 1].seconds)
