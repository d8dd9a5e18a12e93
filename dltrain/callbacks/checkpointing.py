"""`last.ckpt` and `best.ckpt`, two different things, and the resume to the same bits.

`last` is unmonitored: written after every epoch, every few minutes and when a signal asks the run to stop. `best` is
the weights with the best headline metric so far.

Lightning's own loop counters differ with the hook that a save happens in, and on a restart it skips the validation of
an epoch whose last step was saved, or a whole epoch. So every save here stores the counters in one canonical form: the
run stands between two batches, `epoch` epochs and `batch` batches done, and `validation_due` says whether the epoch
that just ended has still to be validated.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from dltrain import checkpoints
from dltrain.callbacks.metrics import MetricsFile, epochs_begun
from dltrain.callbacks.stopping import Signals
from dltrain.errors import DivergedError, InterruptedRun, UserError, nearest


class Saving(pl.Callback):
    def __init__(self, folder: Path, headline: str, mode: str, config: dict[str, Any], signals: Signals,
                 every_minutes: float, every_steps: int | None, agree_every_n_steps: int):
        self.folder, self.headline, self.config, self.signals = folder / "checkpoints", headline, config, signals
        self.sign = 1 if mode == "max" else -1
        self.every_seconds, self.every_steps = 60 * every_minutes, every_steps
        self.agree_every_n_steps = agree_every_n_steps  # when several processes ask one another about a signal
        self.best: float | None = None
        self.best_epoch = 0
        self.validation_due = False
        self.saved_at = self.started = time.monotonic()
        self.seconds_before = 0.0

    def seconds(self) -> float:
        """Of work on this run, those before a resume included."""
        return self.seconds_before + time.monotonic() - self.started

    # what a checkpoint holds of this callback

    @property
    def state_key(self) -> str:
        return "Saving"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "validation_due": self.validation_due,
                "seconds": self.seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.validation_due = state["validation_due"]
        self.seconds_before = state["seconds"]

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
                           ) -> None:
        rows = [len(logger.rows) for logger in trainer.loggers if isinstance(logger, MetricsFile)]
        checkpoint["dltrain"] = {"config": self.config, "metrics_rows": sum(rows)}
        if "loops" in checkpoint:
            loader: Any = trainer.train_dataloader
            set_position(checkpoint["loops"]["fit_loop"], loader.position, len(loader), trainer.global_step)

    # when to save

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.validation_due:  # the run was stopped between an epoch's last step and the end of its validation
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
            self.save_last(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        progress = trainer.fit_loop.epoch_loop
        if progress._should_accumulate():
            return  # gradients of half a step are not saved: the next whole step is
        self.validation_due = progress._num_ready_batches_reached() or trainer.should_stop
        if self.stop_asked(trainer):
            self.save_and_stop(trainer)
        steps_due = self.every_steps and trainer.global_step % self.every_steps == 0
        if steps_due or time.monotonic() - self.saved_at > self.every_seconds:
            self.save_last(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.state.fn == "fit" and self.signals.received is not None and trainer.world_size == 1:
            self.save_and_stop(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if self.signals.received is not None and trainer.world_size == 1:
            signum = self.signals.received
            raise InterruptedRun(signum, f"{signal.Signals(signum).name}: trained, but not tested yet; dltrain resume "
                                         f"run={self.folder.parent} goes on")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self.validation_due = False
        if self.headline not in trainer.callback_metrics:
            logged = sorted(trainer.callback_metrics)
            raise UserError(f"no metric '{self.headline}'{nearest(self.headline, logged)} (logged: {', '.join(logged)})"
                            )
        value = float(trainer.callback_metrics[self.headline])
        if self.best is None or self.sign * value >= self.sign * self.best:  # of equals the later
            refuse_non_finite(trainer, self.folder)
            self.best, self.best_epoch = value, epochs_begun(trainer)
            trainer.save_checkpoint(self.folder / checkpoints.BEST, weights_only=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save_last(trainer)
        if self.stop_asked(trainer):
            self.save_and_stop(trainer, saved=True)

    def stop_asked(self, trainer: pl.Trainer) -> bool:
        asked = self.signals.received is not None
        if trainer.world_size == 1:
            return asked
        if trainer.global_step % self.agree_every_n_steps and not self.validation_due:
            return False
        return trainer.strategy.reduce_boolean_decision(asked, all=False)

    def save_last(self, trainer: pl.Trainer) -> None:
        refuse_non_finite(trainer, self.folder)
        trainer.save_checkpoint(self.folder / checkpoints.LAST)
        self.saved_at = time.monotonic()

    def save_and_stop(self, trainer: pl.Trainer, saved: bool = False) -> None:
        if not saved:
            self.save_last(trainer)
        signum = self.signals.received or signal.SIGTERM
        raise InterruptedRun(signum, f"{signal.Signals(signum).name}: saved {self.folder / checkpoints.LAST} at step "
                                     f"{trainer.global_step}; dltrain resume run={self.folder.parent} goes on")


def refuse_non_finite(trainer: pl.Trainer, folder: Path) -> None:
    """Before every save: a checkpoint of finite weights is never followed by one that is not."""
    finite = [p.isfinite().all() for p in trainer.lightning_module.parameters()]
    if not bool(torch.stack(finite).all()):
        raise DivergedError(f"weights are not finite at step {trainer.global_step}; {folder} keeps the last finite "
                            "checkpoint; try a smaller task.optimizer.lr")


def set_position(fit_loop: dict[str, Any], position: int, batches_per_epoch: int, global_step: int) -> None:
    """Rewrites Lightning's loop counters, in place, to "between two batches, `position` batches done"."""
    epoch, batch = divmod(position, batches_per_epoch)
    begun = epoch + 1 if batch else epoch  # between epochs the next one has not been begun
    counts = {"epoch_progress": ((begun, epoch), (begun, epoch)),
              "epoch_loop.batch_progress": ((position, position), (batch, batch)),
              "epoch_loop.val_loop.batch_progress": ((0, 0), (0, 0))}
    for name, (total, current) in counts.items():
        for scope, (started, completed) in (("total", total), ("current", current)):
            fit_loop[name][scope].update(ready=started, started=started, processed=completed, completed=completed)
        if "is_last_batch" in fit_loop[name]:
            fit_loop[name]["is_last_batch"] = False
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = global_step
