"""Whether the targets can be predicted from the inputs at all: a linear probe beside the same with permuted targets.

The probe is a ridge regression from simple features (features.py) on one half of some hundred training samples; its
gain is how much better it is on the other half than the mean target. With targets that are permuted among the samples
the inputs say nothing: NUM_SHUFFLES such gains show how large the gain is by luck alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dltrain.batches import generator
from dltrain.preflight.features import Association

NUM_SHUFFLES = 60
RIDGE = 0.1  # of the number of samples: the weight decay of features of deviation 1


class Gain(NamedTuple):
    """`gain`: the share of the variance of the targets that is explained on samples not fitted; `by_luck`: the mean of
    permuted targets; `deviations`: how many standard deviations of these the gain lies above their mean."""

    gain: float
    by_luck: float
    deviations: float
    samples: int


def measure_gain(association: Association, seed: int) -> Gain:
    inputs, targets = association.inputs.double(), association.targets.double()
    count, rng = len(inputs), generator("check", "probe", seed)
    order = torch.arange(count) if association.is_stream else torch.randperm(count, generator=rng)
    inputs, targets = inputs[order], targets[order]
    half = count // 2
    fitted, held_out = (standardised(inputs[:half], some) for some in (inputs[:half], inputs[half:]))
    matrix = fitted.T @ fitted
    matrix.diagonal().add_(RIDGE * len(fitted))
    factor = torch.linalg.cholesky(matrix)

    def gain(paired: Tensor) -> float:
        first, second = paired[:half].flatten(0, 1), paired[half:].flatten(0, 1)
        mean = first.mean(0)
        weights = torch.cholesky_solve(fitted.T @ (first - mean), factor)
        residual = (second - mean - held_out @ weights).square().sum()
        return float(1 - residual / (second - mean).square().sum().clamp_min(1e-12))

    shuffled = torch.tensor([gain(shuffle(targets, association.is_stream, rng)) for _ in range(NUM_SHUFFLES)])
    measured = gain(targets)
    return Gain(measured, float(shuffled.mean()), float((measured - shuffled.mean()) / shuffled.std().clamp_min(1e-9)),
                count)


def standardised(reference: Tensor, values: Tensor) -> Tensor:
    """(G, M, F) to (G M, F), with the mean and the deviation of `reference`; features that never differ are zero."""
    flat = reference.flatten(0, 1)
    deviation = flat.std(0, correction=0)
    return torch.where(deviation > 1e-8, (values.flatten(0, 1) - flat.mean(0)) / deviation.clamp_min(1e-8), 0.0)


def shuffle(targets: Tensor, is_stream: bool, rng: torch.Generator) -> Tensor:
    """The targets of other samples; of a stream those of a place far from each."""
    count = len(targets)
    if is_stream:
        least = max(1, count // 10)
        return targets.roll(int(torch.randint(least, count - least, (), generator=rng)), 0)
    return targets[torch.randperm(count, generator=rng)]
