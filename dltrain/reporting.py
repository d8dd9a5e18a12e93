"""An error in a run becomes one line on standard error, a traceback in error.txt, and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from traceback import FrameSummary
from typing import NamedTuple, TextIO, cast

import torch

from dltrain import own_code
from dltrain.data.loader import DEAD_WORKER, describe_dead_worker
from dltrain.errors import MachineError, UserError
from dltrain.run_dir import RunDir, write_text

# In the errors of gloo and NCCL about a process that does not answer or has ended.
LOST = ("gloo", "NCCL", "Application timeout", "Timed out", "Connection closed by peer", "Connection reset by peer")


class UnbreakableOutput:
    """Standard output. What a reader that has closed it, as `| head` does, no longer takes is dropped; the work goes on
    to its end."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self.drop()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            self.drop()

    def drop(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


class Failure(NamedTuple):
    """Why a run failed. `frame`: of the user's code, which the error comes from."""

    message: str
    exit_code: int
    frame: FrameSummary | None = None
    is_bug: bool = False

    @property
    def text(self) -> str:
        return self.message if self.frame is None else f"{self.message}\n{own_code.describe(self.frame)}"


def failure_of(error: BaseException) -> Failure:
    frame = own_code.frame_of(error)
    match error:
        case torch.OutOfMemoryError():
            return Failure("out of memory on the device; use a smaller data.batch_size, with "
                           "trainer.accumulate_batches to keep the number of samples per step", MachineError.exit_code)
        case UserError():
            return Failure(str(error), error.exit_code, frame)
        case SystemExit():
            return Failure(f"the code ended the program with exit code {error.code}", 1)
        case RuntimeError() if DEAD_WORKER in str(error):  # torch raises it wherever the main thread is
            return Failure(describe_dead_worker(error), MachineError.exit_code)
    return Failure(own_code.message_of(error), 1 if frame is None else own_code.EXIT_CODE, frame, frame is None)


def has_lost_a_rank(error: BaseException) -> bool:
    """Whether a process could not reach another one, which may have failed before or may not answer."""
    match error:
        case torch.distributed.DistError():
            return True
        case RuntimeError():
            return any(words in str(error) for words in LOST)
    return False


def report(run_dir: RunDir, work: Callable[[], object]) -> int:
    """Calls `work`; an error becomes one line on standard error. Returns the exit code."""
    try:
        with redirect_stdout(cast(TextIO, UnbreakableOutput(sys.stdout))):
            work()
            sys.stdout.flush()
        return 0
    except (Exception, SystemExit) as error:
        failure = failure_of(error)
        print_failure(run_dir, failure.message, failure.frame, failure.is_bug)
        return failure.exit_code


def print_failure(run_dir: RunDir, message: str, frame: FrameSummary | None = None, is_bug: bool = False) -> None:
    """Prints one line on standard error and, with a `frame` of the user's code, its file, line and source. Removes the
    run's folder if it has only a lock and a log and no code is to blame; else writes error.txt with the traceback."""
    print(f"dltrain: error: {message}", file=sys.stderr)
    if frame is not None:
        print(own_code.describe(frame), file=sys.stderr)
    to_blame = frame is not None or is_bug
    if run_dir.path.is_dir() and (to_blame or not run_dir.remove_if_empty()):
        write_text(run_dir.path / "error.txt", f"{message}\n\n{traceback.format_exc()}")
        if to_blame:
            print(f"  the traceback is in {run_dir.path / 'error.txt'}", file=sys.stderr, flush=True)
