"""What ends a run before its full length: a metric that no longer improves, or the time that it may take."""

from __future__ import annotations

import math
import time
from typing import Any, cast

import pytorch_lightning as pl

from dltrain.callbacks.metrics import TrainingLoader
from dltrain.errors import UserError, suggest


class StopWhen(pl.Callback):
    """Early stopping: ends a run whose metric has not improved by more than `min_delta` for `patience_epochs` epochs
    (L. Prechelt, "Early Stopping - But When?", 1998). It stands before Checkpointing. `mode`: max or min. The decision
    is kept in the checkpoints, so that a run that is killed after it does not go on."""

    def __init__(self, metric: str, mode: str, patience_epochs: int, min_delta: float):
        self.monitor, self.sign = metric, 1 if mode == "max" else -1
        self.patience_epochs, self.min_delta = patience_epochs, min_delta
        self.best: float | None = None
        self.best_epoch = 0.0
        self.reason = ""

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.reason = state_dict["reason"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or bool(self.reason)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            logged = sorted(trainer.callback_metrics)
            raise UserError(f"trainer.stop_when.metric: no metric '{self.monitor}'{suggest(self.monitor, logged)} "
                            f"(there are: {', '.join(logged)})")
        loader = cast(TrainingLoader, trainer.train_dataloader)
        value, epoch = float(trainer.callback_metrics[self.monitor]), loader.batches_done / len(loader)
        if not math.isnan(value) and (self.best is None or self.sign * (value - self.best) > self.min_delta):
            self.best, self.best_epoch = value, epoch
        elif epoch - self.best_epoch >= self.patience_epochs:
            more = f" by more than {self.min_delta:g}" if self.min_delta else ""
            since = f", since epoch {self.best_epoch:g} ({self.best:.4f})" if self.best is not None else ": it is nan"
            self.reason = f"{self.monitor} has not improved{more} for {self.patience_epochs} epochs{since}"
            trainer.should_stop = True


class TimeLimit(pl.Callback):
    """Ends a run that has trained for `max_minutes`, those of its earlier starts included, with a validation. Of
    several processes the first one decides, every `every_n_steps` steps and at the end of an epoch. It stands before
    Checkpointing."""

    def __init__(self, max_minutes: float, every_n_steps: int):
        self.max_seconds, self.every_n_steps = 60 * max_minutes, every_n_steps
        self.seconds_before, self.started_at = 0.0, time.monotonic()
        self.reason = ""

    def elapsed_seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started_at

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.elapsed_seconds(), "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before, self.reason = state_dict["seconds"], state_dict["reason"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started_at = time.monotonic()
        trainer.should_stop = trainer.should_stop or bool(self.reason)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        many = trainer.world_size > 1
        loop = trainer.fit_loop.epoch_loop
        is_due = not many or trainer.global_step % self.every_n_steps == 0 or loop.batch_progress.is_last_batch
        if loop._should_accumulate() or not is_due:
            return
        is_over = self.elapsed_seconds() > self.max_seconds
        if many:
            is_over = bool(trainer.strategy.broadcast(is_over))
        if is_over and not trainer.should_stop:
            self.reason = f"it has trained for trainer.max_minutes={self.max_seconds / 60:g}"
            trainer.should_stop = True
