"""How times are taken: two pieces of work in turn, medians and spreads, and the seconds between training steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch

COMPARED_STEPS = 20  # whose losses are compared
TOLERANCE = 1e-5  # of a loss, relative: float32 with another order of the sums


class Spread(TypedDict):
    """The median of some measurements, the smallest and the largest of them, and how many there are."""

    median: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(ours: Callable[[], float], reference: Callable[[], float], rounds: int) -> dict[str, Spread]:
    """Both in turn, `rounds` times after one that is not counted, and ours / reference pair by pair. Other work beside
    them slows both alike, so the ratio varies less than the two."""
    ours(), reference()
    pairs = [(ours(), reference()) for _ in range(rounds)]
    return compare_pairs(pairs)


def compare_pairs(pairs: Sequence[tuple[float, float]]) -> dict[str, Spread]:
    """`pairs`: of ours and the reference."""
    return {"ours": spread([a for a, _ in pairs]), "reference": spread([b for _, b in pairs]),
            "ratio": spread([a / b for a, b in pairs])}


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


class StepClock:
    """Notes the time at which each training step begins; call `tick` there. The steps that count are those from number
    `warm_up` on, without the last of each epoch: what follows it is the end of the epoch, whose seconds are counted
    apart. Where an epoch is one batch, every step is the last one, and its end counts in the step.

    On a device that works beside the host, the clock waits for it at the two ends of each stretch of steps that count,
    and nowhere else."""

    def __init__(self, batches_per_epoch: int, num_steps: int, warm_up: int, device: torch.device):
        self.batches_per_epoch, self.num_steps, self.warm_up = batches_per_epoch, num_steps, warm_up
        self.device = device
        self.starts: list[float] = []

    def tick(self) -> None:
        step, place = len(self.starts), len(self.starts) % self.batches_per_epoch
        if place in (0, self.batches_per_epoch - 1) or step in (self.warm_up, self.num_steps - 1):
            synchronize(self.device)
        self.starts.append(time.perf_counter())

    def step_seconds(self) -> float:
        """The mean. Raises ValueError where no step counts."""
        within, _ = self.intervals()
        if not within:
            raise ValueError(f"{len(self.starts)} steps with {self.warm_up} to warm up: none is left to measure")
        return statistics.fmean(within)

    def epoch_seconds(self) -> list[float]:
        """What each end of an epoch takes beside a step."""
        within, across = self.intervals()
        return [value - statistics.fmean(within) for value in across] if within else []

    def intervals(self) -> tuple[list[float], list[float]]:
        """The seconds from each step that counts to the next one: within an epoch, and from an epoch to the next."""
        within: list[float] = []
        across: list[float] = []
        for step in range(self.warm_up, len(self.starts) - 1):
            ends_epoch = (step + 1) % self.batches_per_epoch == 0 and self.batches_per_epoch > 1
            (across if ends_epoch else within).append(self.starts[step + 1] - self.starts[step])
        return within, across


class Split:
    """Sums the seconds between marks by the name of the later mark: `mark("forward")` ends the forward pass. Each batch
    begins with the mark that ends its "data"; the first `warm_up` batches do not count. It waits for the device at each
    mark, so that the work of each name is its own."""

    def __init__(self, device: torch.device, warm_up: int):
        self.device, self.warm_up, self.batches = device, warm_up, 0
        self.totals: dict[str, float] = {}
        self.last = time.perf_counter()

    def mark(self, name: str) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self.batches += name == "data"
        if self.batches > self.warm_up:
            self.totals[name] = self.totals.get(name, 0.0) + now - self.last
        self.last = now

    def seconds(self) -> dict[str, float]:
        """Of a batch, the mean."""
        return {name: total / (self.batches - self.warm_up) for name, total in self.totals.items()}
