"""Keeps checkpoints of single epochs beside last.ckpt and best.ckpt, as epoch-10.ckpt: whole ones, with which another
run can begin (`dltrain fork`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl

from dltrain.callbacks.metrics import TrainingLoader
from dltrain.callbacks.stopping import refuse_non_finite_weights
from dltrain.tensor_files import kept_file


class KeptCheckpoints(pl.Callback):
    """`best`: of so many epochs with the best `headline`, the highest being best if `mode` is "max"; `every_epochs`: of
    each so many epochs. None: of none. It stands before Checkpointing, so that what is kept is on the disk before the
    last.ckpt that names it."""

    def __init__(self, folder: Path, headline: str, mode: str, best: int | None, every_epochs: int | None):
        self.folder, self.headline, self.sign = folder / "checkpoints", headline, 1 if mode == "max" else -1
        self.num_best, self.every_epochs = best or 0, every_epochs
        self.values: dict[int, float] = {}  # of the best epochs, the headline
        self.validated_after = -1  # batches

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values} if self.num_best else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = {**state_dict.get("values", {})}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.validated_after = cast(TrainingLoader, trainer.train_dataloader).batches_done

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loader = cast(TrainingLoader, trainer.train_dataloader)
        epoch, batch = divmod(loader.batches_done, len(loader))
        if batch or not (self.num_best or self.every_epochs):
            return
        is_ranked = self.num_best and self.validated_after == loader.batches_done
        dropped = self.rank(epoch, float(trainer.callback_metrics[self.headline])) if is_ranked else []
        if epoch in self.values or self.is_regular(epoch):
            refuse_non_finite_weights(trainer, self.folder)
            trainer.save_checkpoint(self.folder / kept_file(epoch))
        for other in dropped:
            if other != epoch and not self.is_regular(other):
                trainer.strategy.remove_checkpoint(self.folder / kept_file(other))

    def rank(self, epoch: int, value: float) -> list[int]:
        """Returns the epochs that are no longer among the best, now that this one has come; of equal ones the earlier
        one goes. A value that is not a number is worse than any other."""
        self.values[epoch] = value
        ranked = sorted(self.values, key=self.order, reverse=True)
        dropped = ranked[self.num_best :]
        for other in dropped:
            del self.values[other]
        return dropped

    def order(self, epoch: int) -> tuple[bool, float, int]:
        value = self.sign * self.values[epoch]
        return (False, 0.0, epoch) if math.isnan(value) else (True, value, epoch)

    def is_regular(self, epoch: int) -> bool:
        return self.every_epochs is not None and epoch % self.every_epochs == 0
