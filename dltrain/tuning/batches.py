"""Which batch sizes fit into the memory, and how fast each of them trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from dltrain.benchmark.measure import Bench
from dltrain.benchmark.peaks import peak_mb
from dltrain.machine import free_memory
from dltrain.out_of_memory import shortage_of

STEPS = 6  # that are measured, of each size
SHARE = 0.8  # of the free memory of a CPU that a batch may take
FASTER = 1.05  # a size that is not so many times as fast as a smaller one is no reason to take it
MB = 1e6


class Size(NamedTuple):
    """`seconds` of a step; `memory_mb`: the largest, see benchmark/peaks.py; None for both where it did not fit."""

    batch: int
    seconds: float | None
    memory_mb: float | None
    units_per_step: float

    @property
    def rate(self) -> float:
        """What throughput counts, per second."""
        return self.units_per_step / self.seconds if self.seconds else 0.0


def measure_sizes(first: int, most: int, prepare: Callable[[int], Bench], say: Callable[[str], None]) -> Iterator[Size]:
    """Sizes from `first` on, each twice the one before, up to `most` or to one that does not fit. On a CPU a size that
    would take more than SHARE of the free memory, by what the smaller ones have taken, is not tried."""
    batch, before = first, list[Size]()
    while batch <= most:
        say(f"batches of {batch}")
        bench = prepare(batch)
        if bench.device.type == "cpu" and not is_safe(before, free_memory()):
            yield Size(batch, None, None, 0)
            return
        size = measure_size(batch, bench)
        yield size
        if size.seconds is None:
            return
        before.append(size)
        batch *= 2


def measure_size(batch: int, bench: Bench) -> Size:
    seconds = 0.0

    def some_steps() -> None:
        nonlocal seconds
        seconds = bench.measure([], STEPS, False).seconds

    try:
        memory = peak_mb(bench.device, some_steps)
    except Exception as error:
        if shortage_of(error) is None:
            raise
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        return Size(batch, None, None, 0)
    return Size(batch, seconds, memory, sum(bench.units) / len(bench.units))


def is_safe(before: list[Size], free_bytes: int | None) -> bool:
    """Whether twice the last size fits: each doubling adds twice what the last one has added."""
    if len(before) < 2 or free_bytes is None:
        return True
    last, one_before = before[-1].memory_mb or 0, before[-2].memory_mb or 0
    return 2 * max(0.0, last - one_before) < SHARE * free_bytes / MB


def fastest(sizes: list[Size]) -> Size:
    """The smallest size than which no larger one is clearly faster."""
    chosen = sizes[0]
    for size in sizes[1:]:
        if size.rate > FASTER * chosen.rate:
            chosen = size
    return chosen
