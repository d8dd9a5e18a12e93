"""Threads that read files, and what each of them is reading, for messages about files that do not come to an end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

SampleT = TypeVar("SampleT")
ResultT = TypeVar("ResultT")
being_read: dict[int, tuple[Callable[[Any], object], object]] = {}  # by thread: how to name a sample, and the sample


def names_being_read() -> str:
    names = [str(name(sample)) for name, sample in [*being_read.values()]]
    return f"; being read: {list_some(names)}" if names else ""


def list_some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def reading(read: Callable[[SampleT], ResultT], name: Callable[[SampleT], object], sample: SampleT) -> ResultT:
    """read(sample). If that takes too long, the message has `name` of the sample."""
    thread = threading.get_ident()
    being_read[thread] = (name, sample)
    try:
        return read(sample)
    finally:
        del being_read[thread]


class ReadingThreads:
    """As ThreadPoolExecutor; but threads that hang in a file do not keep the process from ending."""

    def __init__(self, count: int, name: str):
        self.tasks: SimpleQueue[tuple[Future[Any], Callable[[Any], Any], Any] | None] = SimpleQueue()
        self.threads = [threading.Thread(target=self.work, name=name, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def submit(self, function: Callable[[SampleT], ResultT], argument: SampleT) -> Future[ResultT]:
        future: Future[ResultT] = Future()
        self.tasks.put((future, function, argument))
        return future

    def map(self, function: Callable[[SampleT], ResultT], arguments: Iterable[SampleT]) -> Iterator[ResultT]:
        """The results in the order of the arguments."""
        futures = [self.submit(function, argument) for argument in arguments]
        return (future.result() for future in futures)

    def work(self) -> None:
        while task := self.tasks.get():
            future, function, argument = task
            try:
                future.set_result(function(argument))
            except BaseException as error:
                future.set_exception(error)

    def close(self) -> None:
        """Drops what has not started."""
        try:
            while True:
                self.tasks.get_nowait()
        except Empty:
            for _ in self.threads:
                self.tasks.put(None)
