"""Stochastic weight averaging (P. Izmailov et al., 2018, arXiv 1803.05407): the mean of the weights that the last steps
pass through, each counted once. It is what a run then evaluates, saves as `best` and predicts with.

The paper averages once per epoch, with a constant or cyclic learning rate (section 3.1): here that is
`trainer.average_every_n_steps`, and the schedule is the task's. The running statistics of batch normalisation are not
averaged but measured anew with the mean weights, before each validation, as in section 3.2; here over at most
MOST_BATCHES batches of the training split in order, augmented.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_swa_multi_avg_fn

from dltrain.batches import seed_of
from dltrain.callbacks.averaging import WeightAverage, copy_all

MOST_BATCHES = 100


class TrainableTask(Protocol):
    """What is needed of a task, see tasks/task.py."""

    position: tuple[int, int, int, int]
    step_sums: list[tuple[Tensor | float, ...]]

    def training_step(self, batch: Any, batch_idx: int) -> object: ...

    def copy_to(self, device: torch.device, batch: Any) -> Any: ...


class TrainingSplit(Protocol):
    batch_size: int

    def num_samples(self, split: str) -> int: ...

    def read(self, split: str, batches: list[Tensor]) -> Iterator[Any]: ...


class StochasticAverage(WeightAverage):
    """The first weights of the mean are those after `first_step` steps, or after the next multiple of
    `every_n_steps`; before them the trained weights are evaluated. `seed`: of the augmentation with which batch
    normalisation is measured."""

    def __init__(self, first_step: int, every_n_steps: int, seed: int):
        super().__init__(0.0, every_n_steps)
        self.first_step, self.seed = max(1, -(-first_step // every_n_steps)) * every_n_steps, seed
        self.count = 0  # of the sets of weights in the mean

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]

    def has_begun(self, step: int) -> bool:
        return step >= self.first_step

    @torch.no_grad()
    def update(self, step: int) -> None:
        if not self.has_begun(step):  # a run that was made longer has a mean from before
            self.count = 0
            return
        average = get_swa_multi_avg_fn()
        for other, tensor in zip(self.others, self.tensors, strict=True):
            if self.count and tensor.is_floating_point():
                average([other], [tensor], self.count)
            else:
                copy_all([other], [tensor])
        self.count += 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        had_average = self.has_average
        super().on_validation_start(trainer, pl_module)
        if self.has_average and not had_average:
            data: Any = vars(trainer)["datamodule"]
            measure_batch_norm(pl_module, data, self.seed)


def measure_batch_norm(task: pl.LightningModule, data: TrainingSplit, seed: int) -> None:
    """Sets the running statistics of batch normalisation to their means over batches of the training split. Layers
    that are frozen in evaluation mode keep theirs."""
    modes = {module: module.training for module in task.modules()}
    task.train()
    layers = [module for module in task.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
              and any(parameter.requires_grad for parameter in module.parameters())]
    own = cast(TrainableTask, task)
    if layers:
        count, size = data.num_samples("train"), data.batch_size
        starts = range(0, count - count % size or count, size)[:MOST_BATCHES]
        batches = [torch.arange(start, min(start + size, count)) for start in starts]
        with torch.no_grad(), torch.random.fork_rng(), kept_sums(own), cumulative(layers):
            for index, batch in enumerate(data.read("train", batches)):
                torch.manual_seed(seed_of("average", seed, index))
                own.position = (seed, 0, index, 0)
                own.training_step(own.copy_to(task.device, batch), index)
    for module, mode in modes.items():
        module.training = mode


@contextmanager
def kept_sums(task: TrainableTask) -> Iterator[None]:
    """The measurement leaves no trace in the metrics of training."""
    values, position = [*task.step_sums], task.position
    try:
        yield
    finally:
        task.step_sums[:] = values
        task.position = position


@contextmanager
def cumulative(layers: list[_BatchNorm]) -> Iterator[None]:
    """Inside it the running statistics begin anew and are plain means over batches."""
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
