"""The loss before the first step: that of a model that knows nothing is ln C, C the number of classes."""

from __future__ import annotations

import math

import torch

from dltrain.preflight.findings import FAULT, OK, SKIPPED, WARNING, Finding
from dltrain.preflight.pair import Pair, without_dropout

CHECK = "loss at the start"
TIMES_FITTED = 4  # so many times the samples that are to be learned by heart
NEAR, FAR = (0.75, 1.6), (0.5, 2.5)  # the loss divided by ln C: outside of these a warning, and a fault


def check_start(pair: Pair) -> Finding:
    """The cross-entropy of the classes alone, in training mode, without label smoothing and auxiliary losses, whose
    factors differ."""
    batch = pair.to_device(pair.samples(TIMES_FITTED * pair.kind.samples_fitted))
    with pair.kept(batch.size), pair.without_augmentation(), without_dropout(pair.task.model), torch.no_grad():
        pair.task.train()
        pair.begin_step(batch, 0)
        with pair.precision.train_step_context():
            loss = pair.kind.head_loss(pair.task, batch)
    if loss is None:
        return Finding(CHECK, SKIPPED, "the task has no softmax over classes that is known here")
    value, classes = loss
    nearest = min(classes, key=lambda count: abs(value - math.log(count)))
    ratio = value / math.log(nearest) if nearest > 1 else 1.0
    figure = f"{value:.3f} nats; of a model that knows nothing: ln {nearest} = {math.log(nearest):.3f}"
    if not math.isfinite(value):
        return Finding(CHECK, FAULT, figure, "look for a division by zero, a logarithm or inputs that are not finite")
    if ratio < NEAR[0] and pair.is_pretrained:
        return Finding(CHECK, OK, f"{figure}; the weights are pretrained")
    status = FAULT if not FAR[0] <= ratio <= FAR[1] else WARNING if not NEAR[0] <= ratio <= NEAR[1] else OK
    advice = ("initialise the last layer with smaller weights, or look at the scale of its inputs" if ratio > 1 else
              "the model knows the answers before it is trained: look for the targets among its inputs")
    return Finding(CHECK, status, figure, "" if status == OK else advice)
