"""An error in a run becomes one line on standard error, a traceback in error.txt, and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from traceback import FrameSummary
from typing import NamedTuple, TextIO, cast

from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from dltrain import own_code
from dltrain.data.loader import DEAD_WORKER, describe_dead_worker
from dltrain.disk import FOLDER_GONE, naming_full_disk, write_text
from dltrain.errors import BUG, FAULTS_IN_LINE, OWN_CODE, FaultyData, MachineError, UserError
from dltrain.installation import describe_mismatch
from dltrain.out_of_memory import shortage_of
from dltrain.ranks import is_first_process
from dltrain.run_dir import RunDir
from dltrain.run_lock import FolderInUse, locked, remove_if_empty
from dltrain.stored_files import RESTORE

# In the errors of gloo and NCCL about a process that does not answer or has ended.
LOST = ("gloo", "NCCL", "Application timeout", "Timed out", "Connection closed by peer", "Connection reset by peer",
        "connection was reset", "client socket", "wait timeout", "waiting for clients")
FAULTS_SHOWN = 10


class UnbreakableOutput:
    """Standard output. What it no longer takes is dropped, as after `| head`, on a full disk or in a closed terminal;
    the work goes on to its end."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self.drop()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self.drop()

    def drop(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def report(run_dir: RunDir, work: Callable[[], object]) -> int:
    """Calls `work`; an error becomes one line on standard error. Returns the exit code."""
    try:
        with naming_full_disk(), naming_stored_files(run_dir), redirect_stdout(
                cast(TextIO, UnbreakableOutput(sys.stdout))):
            work()
            sys.stdout.flush()
        return 0
    except FolderInUse as error:
        print(f"dltrain: error: {error}", file=sys.stderr)
        return error.exit_code
    except (Exception, SystemExit) as error:
        failure = failure_of(error, run_dir)
        print_failure(run_dir, failure.message, failure.frame, failure.is_bug)
        return failure.exit_code


class Failure(NamedTuple):
    """Why a run failed. `frame`: of the user's code, which the error comes from."""

    message: str
    exit_code: int
    frame: FrameSummary | None = None
    is_bug: bool = False

    @property
    def text(self) -> str:
        return self.message if self.frame is None else f"{self.message}\n{own_code.describe(self.frame)}"


def failure_of(error: BaseException, run_dir: RunDir) -> Failure:
    match error:
        case MachineError():  # whoever called it: no code is to blame
            return Failure(str(error), error.exit_code)
        case FaultyData():
            return Failure(f"{error}{list_faults(run_dir, error.faults)}", error.exit_code)
        case UserError():
            return Failure(str(error), error.exit_code, own_code.frame_of(error))
        case SystemExit():
            return Failure(f"the code ended the program with exit code {error.code}", BUG)
    if shortage := shortage_of(error):
        kept = run_dir.checkpoint("last").is_file() and not run_dir.is_finished
        advice = f"; dltrain resume run={run_dir} continues from its checkpoint where there is more" if kept else ""
        return Failure(shortage.message() + advice, MachineError.exit_code)
    if DEAD_WORKER in str(error):  # torch raises it wherever the main thread is
        return Failure(describe_dead_worker(error), MachineError.exit_code)
    if message := describe_mismatch(error):
        return Failure(message, MachineError.exit_code)
    frame = own_code.frame_of(error)
    return Failure(own_code.message_of(error), BUG if frame is None else OWN_CODE, frame, frame is None)


def has_lost_a_rank(error: BaseException) -> bool:
    """Whether a process could not reach another one, which may have failed before or may not answer."""
    match error:
        case RuntimeError():
            return any(words in str(error) for words in LOST)
    return False


@contextmanager
def naming_stored_files(run_dir: RunDir) -> Iterator[None]:
    """Raises UserError for a key that the stored config lacks, a composed one has all, and MachineError for a folder or
    a dangling link in the place of a file of the run."""
    try:
        yield
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise UserError(f"{run_dir}/config.yaml: it has no key '{error.full_key}'; {RESTORE}") from error
    except (IsADirectoryError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        if not str(error.filename).startswith((str(run_dir), os.path.abspath(run_dir.path))):
            raise
        if not os.path.lexists(error.filename) and not run_dir.has_config:
            raise MachineError(f"cannot use {error.filename}: {FOLDER_GONE}") from error
        raise MachineError(f"cannot use {error.filename} of the run: {error.strerror}; move it away") from error


def list_faults(run_dir: RunDir, faults: Sequence[str]) -> str:
    """Lines for the terminal: the faults that the message leaves out, up to FAULTS_SHOWN. If there are more, all are
    written into bad_data.txt."""
    lines = faults[FAULTS_IN_LINE:FAULTS_SHOWN]
    if len(faults) > FAULTS_SHOWN and run_dir.path.is_dir():
        write_text(run_dir.path / "bad_data.txt", "\n".join(faults) + "\n")
        lines = [*lines, f"all {len(faults)} are listed in {run_dir}/bad_data.txt"]
    return "".join(f"\n  {line}" for line in lines)


def print_failure(run_dir: RunDir, message: str, frame: FrameSummary | None = None, is_bug: bool = False) -> None:
    """Prints one line on standard error and, with a `frame` of the user's code, its file, line and source. Removes the
    run's folder if it has only a lock and a log and no code is to blame; else writes error.txt with the traceback."""
    print(f"dltrain: error: {message}", file=sys.stderr)
    if frame is not None:
        print(own_code.describe(frame), file=sys.stderr)
    to_blame = frame is not None or is_bug
    if not run_dir.path.is_dir() or (not to_blame and is_first_process() and remove_if_empty(run_dir.path)):
        return
    lines = traceback.format_exc()
    is_written = is_first_process() and write_error(run_dir, f"{message}\n\n{lines}")
    if to_blame:
        print(f"  the traceback is in {run_dir}/error.txt" if is_written else lines, file=sys.stderr, flush=True)


def write_error(run_dir: RunDir, text: str) -> bool:
    """Whether error.txt could be written: the disk may be full or read-only, or another process may have the folder."""
    try:
        with locked(run_dir.path):
            write_text(run_dir.path / "error.txt", text)
    except UserError:
        return False
    return True
