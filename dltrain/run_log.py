"""The messages of a run: on the terminal and in log.txt."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dltrain.disk import append_text

log = logging.getLogger("dltrain")


@contextmanager
def logging_to(file: Path | None, to_terminal: bool = True) -> Iterator[None]:
    """dltrain's own messages go to the terminal and to `file`; those of libraries, and warnings, to `file`."""
    keeper = LogFile(file) if file else logging.NullHandler()
    root, lightning = logging.getLogger(), logging.getLogger("pytorch_lightning")
    before = (root.handlers[:], root.level, lightning.handlers[:], log.handlers[:])
    root.handlers, lightning.handlers, lightning.propagate = [keeper], [], True
    lightning.setLevel(logging.WARNING)
    log.handlers = [TerminalHandler()] if to_terminal else []
    root.setLevel(logging.INFO)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers, root.level, lightning.handlers, log.handlers = before


class LogFile(logging.Handler):
    """Opens the file for each message: nothing is left to write, and to fail, when the process ends. A message that
    cannot be written ends the run with a MachineError."""

    def __init__(self, file: Path):
        super().__init__()
        self.file = file
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        append_text(file, "")

    def emit(self, record: logging.LogRecord) -> None:
        append_text(self.file, f"{self.format(record)}\n")


class TerminalHandler(logging.Handler):
    """Prints to the standard output of that moment, so that a progress bar stays below the message."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)
