"""What every task shares: running sums that are read without a sync in the step, the optimizer, clipping by norm."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dltrain import optim
from dltrain.tasks.freezing import Freezing


class Task(pl.LightningModule):
    """Turns a batch of `batch_type` into a loss using a model. A subclass says `training_step`, `evaluation_step`,
    `evaluation_end` and `check`, and adds to `sums` in each training step: the count last.

    Metrics are named train/, val/ and test/ and a name; the headline decides which checkpoint is `best`.
    """

    batch_type: type
    headline: str
    headline_mode = "max"
    unit = "images"  # what throughput counts
    freezing: Freezing | None = None  # of the backbone, in tasks whose models have one
    training_metrics: tuple[str, ...] = ("loss",)  # `sums` has the sum of value * count of each, then the count
    sums: Tensor
    gradients: Tensor

    def __init__(self, model: Any, seed: int, optimizer: optim.OptimizerKeys, schedule: optim.ScheduleKeys):
        super().__init__()
        self.model, self.seed = model, seed
        self.optimizer_keys, self.schedule_keys = optimizer, schedule
        self.total_steps, self.total_epochs = 1, 1  # of the whole run, set before fit
        self.register_buffer("sums", torch.zeros(len(self.training_metrics) + 1))  # since the last reading
        self.register_buffer("gradients", torch.zeros(3))  # the sum of norms, clipped steps, steps; likewise

    def fit_statistics(self, data: Any) -> None:
        """What is taken from the training split before the first step."""

    def check(self, batch: Any) -> None:
        """Raises where the batch, or what the model makes of it, is not what was promised. Before the first step."""
        raise NotImplementedError

    def count(self, batch: Any) -> int:
        """How many of `unit` a batch has."""
        return int(batch.size)

    def read_training_metrics(self) -> dict[str, float]:
        """The means since the last reading: a host sync."""
        *sums, count = self.sums.tolist()
        norm, clipped, steps = self.gradients.tolist()
        self.sums.zero_()
        self.gradients.zero_()
        found = {}
        if count:
            found = {f"train/{name}": total / count for name, total in zip(self.training_metrics, sums, strict=True)}
        if steps:
            found |= {"train/gradient_norm": norm / steps, "train/clipped_fraction": clipped / steps}
        return found

    def evaluation_step(self, batch: Any, batch_idx: int) -> None:
        raise NotImplementedError

    def evaluation_end(self, split: str) -> None:
        raise NotImplementedError

    def summed(self, values: Tensor) -> Tensor:
        """Over all processes."""
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    def log_evaluation(self, split: str, values: dict[str, Any]) -> None:
        """For the callback that reads the training metrics, which writes these too."""
        self.log_dict({f"{split}/{name}": value for name, value in values.items()}, logger=False)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.evaluation_end("val")

    def on_test_epoch_end(self) -> None:
        self.evaluation_end("test")

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: float | None = None,
                                    gradient_clip_algorithm: str | None = None) -> None:
        """g <- g * min(1, v / |g|), |g| over all gradients together (Pascanu et al. 2012, 1211.5063, algorithm 1)."""
        if gradient_clip_val is None:
            return
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)
        clipped = (norm > gradient_clip_val).float()
        self.gradients += torch.stack([norm.detach().float(), clipped, torch.ones_like(clipped)])

    def configure_optimizers(self) -> Any:
        built = optim.optimizer(self.model, **self.optimizer_keys)
        lr = optim.schedule(built, self.total_steps, self.schedule_keys)
        return {"optimizer": built, "lr_scheduler": {"scheduler": lr, "interval": "step"}}


BITS = 1 / math.log(2)  # bits in a nat
