"""Successive halving and Hyperband: many jobs are trained for a few epochs, and the best of them go on.

K. Jamieson, A. Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, 2016,
arXiv:1502.07943, figure 3. L. Li, K. Jamieson, G. DeSalvo, A. Rostamizadeh, A. Talwalkar, Hyperband: A Novel
Bandit-Based Approach to Hyperparameter Optimization, 2018, arXiv:1603.06560, algorithm 1.

A job of a rung is trained on the schedule of its full length and stopped after the epochs of the rung; in the next
rung it continues from there. So the survivor is the run that it would have been alone, to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

from dltrain.sweeps.jobs import Job


class Rung(NamedTuple):
    """`jobs` jobs are trained until epoch `epochs`."""

    jobs: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.jobs} to epoch {self.epochs}"


class Bracket(NamedTuple):
    """Jobs, of which ever fewer are trained ever longer."""

    planned: list[Job]
    rungs: list[Rung]

    def __str__(self) -> str:
        return ", ".join(map(str, self.rungs))


def successive_halving(num_jobs: int, max_epochs: int, min_epochs: int, factor: int) -> list[Rung]:
    """Rung i has floor(num_jobs / factor^i) jobs, at least one, to epoch min_epochs factor^i; the last one ends at
    `max_epochs`."""
    epochs = [min_epochs]
    while epochs[-1] * factor < max_epochs:
        epochs.append(epochs[-1] * factor)
    if epochs[-1] < max_epochs:
        epochs.append(max_epochs)
    return [Rung(max(1, num_jobs // factor**place), min(until, max_epochs)) for place, until in enumerate(epochs)]


def hyperband(max_epochs: int, min_epochs: int, factor: int) -> list[list[Rung]]:
    """The brackets s = s_max ... 0, with R = max_epochs / min_epochs in units of `min_epochs` and s_max = floor(log R /
    log factor): n = ceil((s_max + 1) factor^s / (s + 1)) jobs, of which floor(n / factor^i) are trained in rung i,
    until epoch max_epochs factor^(i - s), rounded."""
    s_max = 0
    while min_epochs * factor ** (s_max + 1) <= max_epochs:
        s_max += 1
    brackets = []
    for s in range(s_max, -1, -1):
        jobs = -(-(s_max + 1) * factor**s // (s + 1))
        brackets.append([Rung(jobs // factor**place, max(1, round(max_epochs / factor ** (s - place))))
                         for place in range(s + 1)])
    return brackets


def total_epochs(rungs: list[Rung]) -> int:
    """What is trained if a job continues from where it was stopped."""
    before = [0, *(rung.epochs for rung in rungs)]
    return sum(rung.jobs * (rung.epochs - start) for rung, start in zip(rungs, before, strict=False))
