"""A job of a sweep in a process of a launcher, on this machine or another one that has the folder of the sweep too.

The process gets what the command has: its current folder, the packages and config folders that it trusts, its guards.
The two meet in the folder of the sweep. The command writes the number of a signal into `.stop`, and holds the lock of
the folder as long as it lives: by either the jobs see that they are to save and stop.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO, cast

from dltrain import slurm, trust
from dltrain.config.words import take_config_folders
from dltrain.disk import write_text
from dltrain.errors import BUG, InterruptedRun, MachineError, UserError
from dltrain.late_imports import collect_after_imports, import_plots_late
from dltrain.own_modules import guard_imports, put_last
from dltrain.run_lock import owner_of
from dltrain.signals import SIGNALS, Signals, end_children, recorders

STOP = ".stop"  # in the folder of a sweep: the number of the signal that stops it
POLL_SECONDS = 0.5
LOOKS = 3  # so often the command must be gone: a disk of another machine may be away for a moment
LONGEST_WAIT_SECONDS = 60.0  # for a job of a command before this one, which was killed, to save and stop
has_lost_command = threading.Event()


class RemoteJob:
    """Called in a process of a launcher with the words of a job and the name of its folder. `packed`: the sweep's
    config, its loader and the SweepJob, pickled; `threads`: of a job whose config leaves them open."""

    def __init__(self, folder: Path, packed: bytes, threads: int):
        self.cwd, self.folder, self.packed, self.threads = os.getcwd(), os.path.abspath(folder), packed, threads
        self.words, self.process, self.slurm_job = trust.command_words(), this_process(), slurm.job_id()

    def __call__(self, words: list[str], name: str) -> Any:
        """What the job returns, or the exit code of what kept it from starting; 128 + n if signal n stopped it."""
        is_elsewhere = self.process != this_process()
        try:
            if not is_elsewhere:
                return self.start(words, name)
            with naming_lines(name):
                return self.start_elsewhere(words, name)
        except UserError as error:
            print(f"dltrain: error: {name}: {error}", file=sys.stderr, flush=True)
            return error.exit_code
        except Exception:
            print(f"{name}: {traceback.format_exc()}", file=sys.stderr, flush=True)
            return BUG

    def checkpoint(self, words: list[str], name: str) -> object:
        """What submitit calls before it has Slurm start the job again: it is to do the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, words, name)

    def start_elsewhere(self, words: list[str], name: str) -> Any:
        self.enter()
        try:
            with Signals() as signals:
                signals.record()
                if (signum := self.stopped_by()) is not None:
                    return 128 + signum
                wait_until_free(Path(self.folder) / name)
                return self.start(words, name)
        except InterruptedRun as stop:
            signum = stop.exit_code - 128
            print(f"dltrain: {stop}", file=sys.stderr, flush=True)
            if self.stopped_by() is None and (signum == signal.SIGUSR1 or stop.requeue):
                put_back_into_queue()
            return stop.exit_code

    def start(self, words: list[str], name: str) -> Any:
        from hydra._internal.callbacks import Callbacks
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.utils import run_job
        from hydra.types import HydraContext

        sweep, loader, job = pickle.loads(self.packed)
        loader.folder_of, job.threads = lambda _: name, self.threads
        config = loader.load_sweep_config(sweep, words)
        HydraConfig.instance().set_config(config)
        context = HydraContext(config_loader=loader, callbacks=Callbacks(sweep))
        return run_job(job, config, "hydra.sweep.dir", "hydra.sweep.subdir", context, configure_logging=False
                       ).return_value

    def enter(self) -> None:
        """Prepares this process for the jobs of the command. Raises MachineError where its folders are not there."""
        for folder in (self.cwd, self.folder):
            if not Path(folder).is_dir():
                raise MachineError(f"{folder} is not there on {platform.node()}: the machines of a launcher share the "
                                   "folder of the sweep and the one where the command was started")
        os.chdir(self.cwd)
        prepare(self.process)
        put_last(take_config_folders(trust.take(self.words))[1])
        follow_once(self.folder, *self.process, slurm.job_id() != self.slurm_job)

    def stopped_by(self) -> int | None:
        return signal.SIGTERM if has_lost_command.is_set() else stop_signal(Path(self.folder))


def this_process() -> tuple[str, int]:
    return platform.node(), os.getpid()


@cache
def prepare(command: tuple[str, int]) -> None:
    """Once in a process of this command. Signals between two of its jobs do nothing: the command has the next one not
    start."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    guard_imports()
    import_plots_late()
    collect_after_imports()


@cache
def follow_once(folder: str, host: str, pid: int, outlives: bool) -> None:
    threading.Thread(target=follow, args=(Path(folder), f"process {pid} on {host}", outlives), daemon=True).start()


def follow(folder: Path, command: str, outlives: bool) -> None:
    """Stops the job of this process, after its step, when the command says so. Unless the process is a Slurm job of its
    own, which `outlives` the command, also when that has ended, and then the process too."""
    looks = 0
    while True:
        time.sleep(POLL_SECONDS)
        looks = 0 if outlives or owner_of(folder) == command else looks + 1
        if looks >= LOOKS:
            has_lost_command.set()
        signum = signal.SIGTERM if has_lost_command.is_set() else stop_signal(folder)
        for recorder in [*recorders] if signum is not None else ():
            if recorder.received is None:
                recorder.received = signum
        if has_lost_command.is_set() and not recorders:
            end_children()
            os._exit(128 + signal.SIGTERM)


def wait_until_free(folder: Path) -> None:
    until = time.monotonic() + LONGEST_WAIT_SECONDS
    while folder.is_dir() and owner_of(folder) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


def stop_signal(folder: Path) -> int | None:
    """The signal that stops the sweep, if any."""
    with suppress(OSError, ValueError):
        return int((folder / STOP).read_text())
    return None


@contextmanager
def relaying(signals: Signals, folder: Path) -> Iterator[None]:
    """In the command: hands a signal that it gets to the jobs, wherever they are."""
    (folder / STOP).unlink(missing_ok=True)
    has_ended = threading.Event()

    def relay() -> None:
        while not has_ended.wait(POLL_SECONDS / 5):
            if signals.received is not None:
                write_text(folder / STOP, str(signals.received))
                return

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
        (folder / STOP).unlink(missing_ok=True)


def put_back_into_queue() -> None:
    """Of a job that has saved: hands the signal to submitit, which has Slurm start the job again. Ends the process if
    it does."""
    handler = signal.getsignal(signal.SIGUSR1)
    if "SUBMITIT_EXECUTOR" in os.environ and callable(handler):
        handler(signal.SIGUSR1, None)


class NamedLines(TextIOBase):
    """A stream whose lines begin with the name of the job: several jobs write to the same terminal."""

    def __init__(self, stream: TextIO, name: str):
        self.stream, self.name, self.unfinished = stream, name, ""

    def write(self, text: str) -> int:
        *lines, self.unfinished = f"{self.unfinished}{text}".split("\n")
        named = [line if line.startswith(f"{self.name}: ") else f"{self.name}: {line}" for line in lines if line]
        self.stream.write("".join(f"{line}\n" for line in named))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()


@contextmanager
def naming_lines(name: str) -> Iterator[None]:
    with (redirect_stdout(cast(TextIO, NamedLines(sys.stdout, name))),
          redirect_stderr(cast(TextIO, NamedLines(sys.stderr, name)))):
        yield
