"""Exit codes, and the errors that end the program with one line on standard error, each with its own code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from dltrain import __version__

SUCCESS, BUG, COMMAND, DATA, STORED, DIVERGED, MACHINE, JOBS_FAILED, OWN_CODE, CHECK_FAILED, UNDECIDED_CLAIM = range(11)
SIGNALS = 128  # 128 + n: ended by signal n
EXIT_CODES = {  # of all verbs: `dltrain help codes` prints them, docs/commands.md has the same table
    SUCCESS: "success",
    BUG: "a bug in dltrain, with its traceback; verify: the steps differ for no known reason",
    COMMAND: "the command or a config is wrong",
    DATA: "the data are wrong or missing",
    STORED: "a checkpoint, weights or another stored file is wrong, or differs from what it must equal (prove resume, "
            "export)",
    DIVERGED: "the training diverged",
    MACHINE: "the machine: disk, memory or device; doctor: it has problems",
    JOBS_FAILED: "some jobs of a sweep failed",
    OWN_CODE: "an exception in your own code, with its file and line",
    CHECK_FAILED: "a check of dltrain check says fault, or a claim of an experiment is NOT SUPPORTED",
    UNDECIDED_CLAIM: "a claim of an experiment is UNDECIDED, and none is NOT SUPPORTED",
    SIGNALS: "ended by signal n, as 130 by Ctrl-C and 143 by SIGTERM; a run has saved a checkpoint",
}
FAULTS_IN_LINE = 3
OLDEST_READABLE = (0, 2)  # runs of earlier versions have other keys and other parameter names


class UserError(Exception):
    """An error that the user can fix. The message names the key or file and says how. UserError itself, not a
    subclass, means that the command or a config is wrong."""

    exit_code = COMMAND

    def __str__(self) -> str:
        """On one line: a name in it may have line breaks or symbols that steer a terminal."""
        return printable(super().__str__())


class DataError(UserError):
    exit_code = DATA


class FaultyData(DataError):
    """Faults of data files, each as `file:line: problem`. The message has the first FAULTS_IN_LINE, on one line."""

    def __init__(self, summary: str, faults: Sequence[str] = (), advice: str = ""):
        self.faults = [*faults]
        more = [f"and {len(faults) - FAULTS_IN_LINE} more"] if len(faults) > FAULTS_IN_LINE else []
        listed = "; ".join([*faults[:FAULTS_IN_LINE], *more])
        super().__init__("; ".join(filter(None, [": ".join(filter(None, [summary, listed])), advice])))


class CheckpointError(UserError):
    exit_code = STORED


class DivergedError(UserError):
    exit_code = DIVERGED


class MachineError(UserError):
    exit_code = MACHINE


class InterruptedRun(BaseException):
    """Signal `signum` stopped the run, and the run has saved a checkpoint. Not an Exception, because it must also end a
    sweep, which continues after the errors of its jobs. `requeue`: trainer.requeue of the run, see slurm.py."""

    def __init__(self, signum: int, message: str, requeue: bool = False):
        super().__init__(message)
        self.exit_code, self.requeue = SIGNALS + signum, requeue


def printable(text: str) -> str:
    """On one line, without characters that a terminal obeys: names and values in it may come from files of others."""
    return text if text.isprintable() else "".join(
        symbol if symbol.isprintable() else ascii(symbol)[1:-1] for symbol in text)


def refuse_other_version(version: str, place: str) -> None:
    """`version`: of the dltrain that wrote what is at `place`. Raises CheckpointError if it cannot be read any more, or
    not yet."""
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})", version)
    if numbers is None:
        raise CheckpointError(f"{place}: damaged (its version '{version[:40]}' must be one of dltrain's, as "
                              f"{__version__}); restore it from a copy, or train again")
    written = int(numbers[1]), int(numbers[2])
    if written < OLDEST_READABLE:
        raise CheckpointError(f"{place}: written by dltrain {version}, which dltrain {__version__} cannot read; train "
                              "it again, or use it with the commit that environment.json names")
    if written > tuple(map(int, __version__.split(".")[:2])):
        raise CheckpointError(f"{place}: written by dltrain {version}, which is newer than this one, {__version__}; "
                              "update dltrain")


def suggest(name: str, known: list[str], written: Mapping[str, str] | None = None) -> str:
    """Returns `; did you mean 'x'?` with the known name closest to `name`, or "" if none is close. `written`: how the
    known names are to be typed, if not as they are."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{(written or {}).get(close[0], close[0])}'?" if close else ""


def is_unicode(text: str) -> bool:
    """Whether UTF-8 has it: not the name of a file whose bytes are in another encoding."""
    return not any("\ud800" <= symbol <= "\udfff" for symbol in text)
