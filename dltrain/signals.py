"""SIGINT, SIGTERM and SIGHUP, and in a Slurm job SIGUSR1. Only dltrain handles them.

While a command runs they are blocked in its main thread, hence in every thread and process that it starts later:
processes that load data or convert files never receive a signal that is sent to the whole process group, as Ctrl-C,
systemd, Slurm and `timeout` do. One thread waits for them. While a run trains, a signal is only recorded, so that the
run can save; otherwise it ends the process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
recorders: list[Signals] = []  # those that record signals now
is_caught = threading.Event()  # set while this process handles signals


class Signals:
    """Context manager. From `record` on, the first signal is stored in `received`, so that the run can save a
    checkpoint after the current step. A SIGINT after it ends the process at once.

    `is_own`: whether this process got one itself. Another process of the run may tell of the same Ctrl-C earlier."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_own = False
        self._stack = ExitStack()

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __reduce__(self) -> tuple[type[Signals], tuple[()]]:
        """In another process it records nothing yet."""
        return Signals, ()

    def record(self) -> None:
        self._stack.enter_context(caught())
        self.received = next((other.received for other in recorders if other.received is not None), None)
        self.is_own = any(other.is_own for other in recorders)
        recorders.append(self)
        self._stack.callback(recorders.remove, self)


def deliver(signum: int) -> None:
    """Hands a signal to all recorders, or ends the process."""
    is_second = signum == signal.SIGINT and any(recorder.is_own for recorder in recorders)
    if is_second or not recorders:
        end_process(signum, f"{signal.Signals(signum).name}: stopped{' at once' if is_second else ''}")
    for recorder in recorders:
        recorder.is_own = True
        if recorder.received is None:
            recorder.received = signum


@contextmanager
def caught(handle: Callable[[int], None] = deliver) -> Iterator[None]:
    """Inside it, each signal calls `handle`, in a thread of its own. Without effect inside another one, and in other
    threads than the main thread, where Python does not allow it. A SIGHUP that is ignored, as under nohup, stays so."""
    if is_caught.is_set() or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = {number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}
    if not {"SLURM_JOB_ID", "SUBMITIT_EXECUTOR"}.isdisjoint(os.environ):
        numbers.add(signal.SIGUSR1)
    # for the threads that were there before, which the signals still reach
    previous = {number: signal.signal(number, lambda signum, _: handle(signum)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    waiter = Waiter(numbers, handle)
    waiter.start()
    is_caught.set()
    try:
        yield
    finally:
        is_caught.clear()
        waiter.end()
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Waiter(threading.Thread):
    """Waits for signals that are blocked in all other threads."""

    def __init__(self, numbers: set[signal.Signals], handle: Callable[[int], None]):
        super().__init__(name="signals", daemon=True)
        self.numbers, self.handle = numbers, handle
        self.is_ended = threading.Event()

    def run(self) -> None:
        while True:
            signum = signal.sigwait(self.numbers)
            if self.is_ended.is_set():
                return
            self.handle(signum)

    def end(self) -> None:
        self.is_ended.set()
        if self.ident is not None:
            signal.pthread_kill(self.ident, signal.SIGTERM)  # to this thread alone
        self.join()


def end_process(signum: int, message: str) -> None:
    """Ends this process and all those below it, with one line on standard error and the exit code of the signal."""
    cursor = "\x1b[?25h\r\x1b[K" if sys.stderr.isatty() else ""  # a progress bar hides it
    with suppress(OSError):
        os.write(2, f"{cursor}dltrain: {message}\n".encode("utf-8", "backslashreplace"))
    end_children()
    os._exit(128 + signum)


def end_children(pid: int | str = "self") -> None:
    """Kills the processes that a process has started, and theirs. Where the system does not list them (macOS), those
    end by themselves that see their parent end, as the workers of a DataLoader do."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in file.read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"resource_tracker" not in command:  # Python's own, which removes shared memory and then ends
                    end_children(child)
                    os.kill(int(child), signal.SIGKILL)
        except OSError:  # it has just ended
            continue


def leave_to_dltrain(trainer: object) -> None:
    """Keeps a Lightning trainer from installing its own handler of SIGTERM, which interrupts the step that is under way
    and, with several processes, waits for the others inside of a save."""
    vars(trainer)["_signal_connector"].register_signal_handlers = lambda: None
