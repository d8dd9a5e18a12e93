"""Whether a few samples can be learned by heart, and whether every parameter gets a gradient meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from dltrain.batches import generator
from dltrain.preflight.findings import FAULT, OK, Finding, list_names
from dltrain.preflight.pair import Pair, rows, without_dropout

FIT, GRADIENTS = "overfits a batch", "gradients"
LEAST_STEPS, ENOUGH_STEPS, MOST_STEPS = 10, 40, 80
MOST_SECONDS = 6.0  # of processor time, after ENOUGH_STEPS: a busy machine must not turn slow steps into a fault
CLEAR = 0.7  # of the loss of the start, and of the best that a model could reach without looking at its inputs
CLEAR_ALONE = 0.5  # of the loss of the start, where the latter is not known
IN_A_ROW = 3  # steps


class Fit(NamedTuple):
    """`losses` of the steps; `blind`: the least loss of a model that ignores its inputs, if known; `goal`: what the
    loss was to reach; `reached_by`: the parameters that had a gradient other than zero in any step."""

    losses: list[float]
    blind: float | None
    goal: float
    reached_by: set[str]
    samples: int

    @property
    def is_learned(self) -> bool:
        last = self.losses[-IN_A_ROW:]
        return len(last) == IN_A_ROW and all(loss <= self.goal for loss in last)


def fit(pair: Pair, batch: Any) -> Fit:
    """Trains on the batch until its loss is below the goal IN_A_ROW times, at most MOST_STEPS; the weights are changed.
    The order of the samples changes from step to step, so that an answer that a model gives to the wrong sample of its
    batch cannot be learned by heart."""
    started, order = time.thread_time(), generator("check", "order", pair.config.seed)
    blind, result = pair.kind.blind_loss(batch), Fit([], None, math.nan, set(), batch.size)
    with pair.without_augmentation(), without_dropout(pair.task.model):
        pair.task.train()
        optimizer = pair.optimizer()
        parameters = dict(pair.task.model.named_parameters())
        for number in range(MOST_STEPS):
            shuffled = rows(batch, torch.randperm(batch.size, generator=order).tolist())
            result.losses.append(pair.step(optimizer, shuffled, number))
            result.reached_by.update(name for name, parameter in parameters.items() if name not in result.reached_by
                                     and parameter.grad is not None and bool(parameter.grad.count_nonzero()))
            if number == 0:
                goal = CLEAR * min(result.losses[0], blind) if blind else CLEAR_ALONE * result.losses[0]
                result = result._replace(blind=blind, goal=goal)
            done = number + 1
            is_late = done >= ENOUGH_STEPS and time.thread_time() - started > MOST_SECONDS
            if is_late or not math.isfinite(result.losses[-1]) or (done >= LEAST_STEPS and result.is_learned):
                break
    return result


def check_fit(pair: Pair, fitted: Fit) -> Finding:
    losses, rate = fitted.losses, pair.task.optimizer_keys["lr"]
    count = "1 sample" if fitted.samples == 1 else f"{fitted.samples} samples"
    blind = f", below {fitted.blind:.3f}, the least without looking at the inputs" if fitted.blind else ""
    figure = (f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps on {count}; must fall to "
              f"{fitted.goal:.3f}{blind}")
    if fitted.is_learned:
        return Finding(FIT, OK, figure)
    if not math.isfinite(losses[-1]):
        return Finding(FIT, FAULT, figure, f"the loss is not finite: try a smaller task.optimizer.lr than {rate:g}")
    if rate == 0:
        return Finding(FIT, FAULT, figure, "task.optimizer.lr is 0: set a rate above 0")
    if losses[-1] > 0.98 * losses[0]:
        return Finding(FIT, FAULT, figure, f"it does not fall: look at task.optimizer.lr={rate:g}, and whether the "
                                           "loss depends on the weights")
    return Finding(FIT, FAULT, figure, "look whether the model gives each sample its own answer, in the order of the "
                                       f"batch, and at task.optimizer.lr={rate:g}")


def check_gradients(pair: Pair, fitted: Fit) -> Finding:
    """Parameters that the config freezes are listed, those that nothing trains are a fault."""
    model: nn.Module = pair.task.model
    frozen_by_config = frozen_parameters(pair.task)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    stopped = [name for name, parameter in model.named_parameters()
               if not parameter.requires_grad and id(parameter) not in frozen_by_config]
    idle = [name for name in trained if name not in fitted.reached_by]
    figure = f"{len(trained) - len(idle):,} of {len([*model.parameters()]):,} parameter tensors get one"
    if frozen := [name for name, parameter in model.named_parameters() if id(parameter) in frozen_by_config]:
        figure += f"; frozen by task.freezing: {len(frozen)} ({list_names(layers_of(frozen))})"
    advice = []
    if stopped:
        advice.append(f"requires_grad is False in the model's own code: {list_names(layers_of(stopped))}; "
                      "task.freezing freezes by the config")
    if idle:
        advice.append(f"no gradient in {len(fitted.losses)} steps: {list_names(layers_of(idle))}; connect these layers "
                      "to the output, or take them out")
    return Finding(GRADIENTS, FAULT if advice else OK, figure, "; ".join(advice))


def frozen_parameters(task: Any) -> set[int]:
    """The ids of the parameters that do not train at the start because of task.freezing."""
    freezing = getattr(task, "freezing", None)
    stages = freezing.stages[: freezing.num_frozen] if freezing is not None else []
    return {id(parameter) for layers in stages for layer in layers for parameter in layer.parameters()
            if not parameter.requires_grad}


def layers_of(names: Iterable[str]) -> list[str]:
    """The layers of these parameters, each once."""
    return [*dict.fromkeys(name.rpartition(".")[0] or name for name in names)]
