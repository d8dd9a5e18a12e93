"""Notices a run that waits for its data."""

from __future__ import annotations

from typing import Protocol

MOST_SHARE = 1 / 3  # of the time between two readings that may go by waiting for batches
LEAST_SECONDS = 1.0  # of readings, before anything is concluded


class WaitingLoader(Protocol):
    batches_done: int  # batches yielded since the run started
    seconds_waiting: float  # that the training waited for them


class InputWatch:
    """Tells once, after some readings, the share of the time that training waits for its loader, if it is large. The
    first reading does not count: threads start and files are read for the first time."""

    def __init__(self) -> None:
        self.begun, self.decided = False, False
        self.seconds, self.waiting = 0.0, 0.0
        self.before = (0, 0.0)  # batches and seconds of waiting at the last reading

    def share(self, loader: WaitingLoader, seconds: float, sync_seconds: float) -> float | None:
        """The share, at the reading from which on it is known and too large; None at all others. `seconds`: between
        this reading and the one before; `sync_seconds`: how long of that the reading waited for the device. A device
        that is more than two steps behind is busy, whatever the host waits for."""
        batches, waiting = loader.batches_done - self.before[0], loader.seconds_waiting - self.before[1]
        self.before = (loader.batches_done, loader.seconds_waiting)
        if self.decided or not self.begun:
            self.begun = True
            return None
        self.seconds += seconds
        self.waiting += 0.0 if sync_seconds > 2 * seconds / max(batches, 1) else waiting
        if self.seconds < LEAST_SECONDS:
            return None
        self.decided = True
        return share if (share := self.waiting / self.seconds) > MOST_SHARE else None
