"""The learning rate range test: a few steps in which the rate rises from very small to very large.

L. Smith, 2015, arXiv 1506.01186, section 3.3: the loss is read while the rate rises; useful rates lie between where the
loss begins to fall and where it becomes ragged or rises. Here the rate rises geometrically, so that all orders of
magnitude get as many steps, and the loss is smoothed by an exponential mean without bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

import torch
from omegaconf import DictConfig
from torch import Tensor

from dltrain.benchmark.loops import train_bare
from dltrain.tasks.task import Task

SMOOTHING = 0.9  # share of the mean that is kept in a step
DIVERGED = 4.0  # times the least smoothed loss
EDGE = 0.05  # of the fall of the loss, by which it has begun
PATH = "dltrain.tuning.rates.rising"


class Test(NamedTuple):
    """`rates` and the loss of each step, as far as it was finite and had not risen to DIVERGED times its least."""

    rates: list[float]
    losses: list[float]

    def smoothed(self) -> list[float]:
        mean, values = 0.0, []
        for step, loss in enumerate(self.losses, start=1):
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            values.append(mean / (1 - SMOOTHING**step))
        return values


class Range(NamedTuple):
    """Rates: where the loss begins to fall, where it falls fastest, and where it is least: above that it rises."""

    falls: float
    steepest: float
    least: float


class Diverged(Exception):
    """The loss is too large to go on."""


def rising(step: int, total_steps: int, ratio: float) -> float:
    """The rate at a step as a fraction of the largest; `ratio`: of the largest to the least."""
    return float(ratio ** (min(1.0, step / max(1, total_steps - 1)) - 1))


def run_test(config: DictConfig, data: Any, task: Task, device: torch.device, num_steps: int, low: float, high: float,
             say: Callable[[str], None]) -> Test:
    """Trains `task` for so many steps, from the weights that it has; they are lost."""
    losses: list[float] = []
    training_step = task.training_step

    def watched(*arguments: Any) -> Any:
        loss = cast(Tensor, training_step(*arguments))
        losses.append(float(loss.detach()))
        smoothed = Test([], losses).smoothed()
        if not math.isfinite(losses[-1]) or smoothed[-1] > DIVERGED * min(smoothed):
            raise Diverged
        if len(losses) % 10 == 0:
            say(f"learning rate, step {len(losses)} of {num_steps}")
        return loss

    task.optimizer_keys = {**task.optimizer_keys, "lr": high}
    task.schedule_keys = cast(Any, {"name": PATH, "ratio": high / low})
    task.total_steps = num_steps
    task.training_step = watched  # type: ignore[method-assign]
    with suppress(Diverged):
        train_bare(config, data, task, device, num_steps, seeded=True)
    del task.training_step
    finite = [loss for loss in losses if math.isfinite(loss)]
    return Test([high * rising(step, num_steps, high / low) for step in range(len(finite))], finite)


def range_of(test: Test) -> Range | None:
    """None where the loss does not fall at any rate."""
    smoothed = test.smoothed()
    settled = int(1 / (1 - SMOOTHING))  # the mean is of few losses before
    if len(smoothed) < settled + 3:
        return None
    least = min(range(settled, len(smoothed)), key=smoothed.__getitem__)
    start = sum(smoothed[:settled]) / settled
    fall = start - smoothed[least]
    if fall <= 2 * deviation(test.losses[:settled]) / math.sqrt(settled):
        return None
    begins = next(step for step in range(least + 1) if smoothed[step] <= start - EDGE * fall)
    inner = range(max(1, begins), max(least, begins + 1))
    steepest = min(inner, key=lambda step: smoothed[step + 1] - smoothed[step - 1] if step + 1 < len(smoothed) else 0.0)
    return Range(test.rates[begins], test.rates[steepest], test.rates[least])


def deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def rounded(rate: float) -> float:
    """To the nearest of 1, 2, 3, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rate))
    return float(f"{min((1, 2, 3, 5, 10), key=lambda digit: abs(math.log(digit * power / rate))) * power:.6g}")
