"""Ends a training after a whole epoch, to be continued later to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytorch_lightning as pl

from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.callbacks.metrics import TrainingLoader

Prunes = Callable[[int, float], bool]  # asked with the number of epochs that are done, and the best headline so far


class Pause(pl.Callback):
    """Ends a training of `total_steps` after `until_epoch` epochs, or where `prunes` says so, once the epoch is
    validated and `last` is saved: it stands behind Checkpointing. The schedule is that of the whole run, and what is
    complete is not paused. `epoch`, `steps`: what a paused training has done, else 0."""

    def __init__(self, checkpointing: Checkpointing, total_steps: int, until_epoch: int | None, prunes: Prunes | None):
        self.checkpointing, self.total_steps = checkpointing, total_steps
        self.until_epoch, self.prunes = until_epoch, prunes
        self.epoch, self.steps, self.is_pruned = 0, 0, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.pause_if_due(trainer)  # killed after the save of the last epoch, or between its last step and its save

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.pause_if_due(trainer)

    def pause_if_due(self, trainer: pl.Trainer) -> None:
        loader = cast(TrainingLoader, trainer.train_dataloader)
        epoch, batch = divmod(loader.batches_done, len(loader))
        if trainer.should_stop or trainer.global_step >= self.total_steps or epoch == 0:
            return
        best = self.checkpointing.best
        is_reached = self.until_epoch is not None and epoch >= self.until_epoch
        self.is_pruned = (not is_reached and batch == 0 and self.prunes is not None and best is not None
                          and self.prunes(epoch, best))
        if is_reached or self.is_pruned:
            self.epoch, self.steps, trainer.should_stop = epoch, trainer.global_step, True
