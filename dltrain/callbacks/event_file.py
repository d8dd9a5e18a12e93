"""TensorBoard's event file, written without a thread: a disk that refuses it costs a warning and nothing else."""

from __future__ import annotations

import os
import platform
import time
from itertools import count
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

VERSION = "brain.Event:2"  # of the format
FLUSH_SECONDS = 10
NUMBERS = count()  # of the files of this process


class EventFile:
    """In the place of torch's FileWriter, whose thread dies of a full disk with a traceback, after which each call
    raises. The records are as its: length, checksum, event, checksum."""

    def __init__(self, folder: Path):
        self.folder = folder
        place = f"{platform.node()}.{os.getpid()}.{next(NUMBERS)}"
        self.path = folder / f"events.out.tfevents.{int(time.time()):010d}.{place}"
        self.pending = bytearray()
        self.records = RecordWriter(self)
        self.flushed_at = time.monotonic()
        self.has_failed = False
        self.add_event(Event(file_version=VERSION))
        self.flush()

    def get_logdir(self) -> str:
        return str(self.folder)

    def add_event(self, event: Event, step: int | None = None, walltime: float | None = None) -> None:
        if self.has_failed:
            return
        event.wall_time = time.time() if walltime is None else walltime
        if step is not None:
            event.step = int(step)
        self.records.write(event.SerializeToString())
        if time.monotonic() - self.flushed_at > FLUSH_SECONDS:
            self.flush()

    def add_summary(self, summary: Summary, global_step: int | None = None, walltime: float | None = None) -> None:
        self.add_event(Event(summary=summary), global_step, walltime)

    def write(self, record: bytes) -> None:
        """Called by RecordWriter."""
        self.pending += record

    def flush(self) -> None:
        """After a failure nothing more is written: TensorBoard reads a file up to its first broken record."""
        content, self.pending, self.flushed_at = bytes(self.pending), bytearray(), time.monotonic()
        if not content or self.has_failed:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(content)
        except OSError as error:
            self.has_failed = True
            print(f"dltrain: warning: cannot write TensorBoard's {self.path}: {error.strerror or error}; the run "
                  "continues without it, metrics.csv has the readings", flush=True)

    def close(self) -> None:
        self.flush()


class Events(SummaryWriter):
    """Torch's SummaryWriter with an EventFile."""

    file_writer: EventFile | None  # type: ignore[assignment]
    all_writers: dict[str, EventFile] | None  # type: ignore[assignment]

    def _get_file_writer(self) -> EventFile:
        if self.file_writer is None:
            self.file_writer = file = EventFile(Path(self.log_dir))
            self.all_writers = {file.get_logdir(): file}
            if self.purge_step is not None:  # TensorBoard then drops what an earlier file has from this step on
                file.add_event(Event(step=self.purge_step, file_version=VERSION))
                file.add_event(Event(step=self.purge_step, session_log=SessionLog(status=SessionLog.START)))
                self.purge_step = None
        return self.file_writer
