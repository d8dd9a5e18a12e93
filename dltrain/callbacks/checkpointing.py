"""Writes `last.ckpt`, from which a resumed run ends in the same bits, and `best.ckpt`.

`last` is written after every epoch, every few minutes and when a signal asks the run to stop, whatever the metrics are.
`best` has the weights with the best headline metric so far; it is for evaluation and prediction.

Lightning's own loop counters depend on the hook in which a checkpoint is saved, and after a restart Lightning skips the
validation of an epoch whose last step was saved, or a whole epoch. So `last` stores the counters in one
canonical form: the run is between two batches, after `epoch` whole epochs and `batch` batches of the next one, and
`validation_due` states whether the epoch that just ended has yet to be validated.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import pytorch_lightning as pl

from dltrain import checkpoints
from dltrain.callbacks.metrics import MetricsFile, TrainingLoader, epoch_number
from dltrain.callbacks.stopping import refuse_non_finite_weights
from dltrain.checkpoints import Checkpoint, DurableIO
from dltrain.errors import InterruptedRun, UserError, suggest
from dltrain.signals import Signals


class ValidatingLoop(Protocol):
    """What is needed of the loop of the steps of an epoch, see step_loop.py."""

    def validation_is_due(self) -> bool: ...

    def _should_accumulate(self) -> bool: ...


class Checkpointing(pl.Callback):
    """Saves checkpoints below `folder`, the run's. `headline`: the metric that decides which weights are best; the
    highest value is best if `mode` is "max", else the lowest. `config`: the run's whole config, stored in `last`
    together with the number of rows of `metrics_file`. `last` is due every `every_minutes`, and every
    `every_steps` optimizer steps unless None. Of several processes, the first one alone gets signals (processes.py) and
    saves: all have the same weights after a step."""

    def __init__(self, folder: Path, headline: str, mode: str, config: Mapping[str, object],
                 metrics_file: MetricsFile, signals: Signals, every_minutes: float, every_steps: int | None):
        self.folder, self.headline, self.config = folder / "checkpoints", headline, config
        self.metrics_file, self.signals = metrics_file, signals
        self.sign = 1 if mode == "max" else -1
        self.every_seconds, self.every_steps = 60 * every_minutes, every_steps
        self.best: float | None = None
        self.latest: float | None = None  # of the headline
        self.best_epoch = 0
        self.validation_due = False
        self.saved_at = self.started_at = time.monotonic()
        self.seconds_before = 0.0  # of this run in earlier processes

    def elapsed_seconds(self) -> float:
        """Time spent on this run, including before a resume."""
        return self.seconds_before + time.monotonic() - self.started_at

    # what a checkpoint stores

    @property
    def state_key(self) -> str:
        return "Checkpointing"  # also of a subclass

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "latest": self.latest,
                "validation_due": self.validation_due, "seconds": self.elapsed_seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch, self.latest = state["best"], state["best_epoch"], state.get("latest")
        self.validation_due = state["validation_due"]
        self.seconds_before = state["seconds"]

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Checkpoint) -> None:
        checkpoint["dltrain"] = {"config": self.config, "metrics_rows": len(self.metrics_file.rows)}
        loader = cast(TrainingLoader, trainer.train_dataloader)
        set_loop_counters(checkpoint["loops"]["fit_loop"], loader.batches_done, len(loader), trainer.global_step)

    # when to save

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.validation_due:  # the run was stopped between an epoch's last step and the end of its validation
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
            self.save_last(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        epoch_loop = cast(ValidatingLoop, trainer.fit_loop.epoch_loop)
        if epoch_loop._should_accumulate():
            return  # the gradients of half a step are never saved: the next save is after the whole step
        self.validation_due = epoch_loop.validation_is_due()
        if self.signals.received is not None:
            self.save_and_stop(trainer)
        steps_due = self.every_steps and trainer.global_step % self.every_steps == 0
        if steps_due or time.monotonic() - self.saved_at > self.every_seconds:
            self.save_last(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if trainer.state.fn == "fit" and self.signals.received is not None:
            self.save_and_stop(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if self.signals.received is not None:
            self.stop("training is complete, but the test is not")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self.validation_due = False
        if self.headline not in trainer.callback_metrics:
            logged = sorted(trainer.callback_metrics)
            raise UserError(f"no metric '{self.headline}'{suggest(self.headline, logged)} (logged: {', '.join(logged)})"
                            )
        self.latest = value = float(trainer.callback_metrics[self.headline])
        if self.best is None or self.sign * value >= self.sign * self.best:  # the later of two equal ones
            refuse_non_finite_weights(trainer, self.folder)
            self.best, self.best_epoch = value, epoch_number(trainer)
            trainer.save_checkpoint(self.folder / checkpoints.BEST, weights_only=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save_last(trainer)
        if self.signals.received is not None:
            self.stop(f"saved {self.folder / checkpoints.LAST} at step {trainer.global_step}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All processes read `best` next: it must be on the disk."""
        cast(DurableIO, trainer.strategy.checkpoint_io).wait()
        trainer.strategy.barrier("checkpoints are written")

    def save_last(self, trainer: pl.Trainer) -> None:
        refuse_non_finite_weights(trainer, self.folder)
        trainer.save_checkpoint(self.folder / checkpoints.LAST)
        self.saved_at = time.monotonic()

    def save_and_stop(self, trainer: pl.Trainer) -> NoReturn:
        self.save_last(trainer)
        self.stop(f"saved {self.folder / checkpoints.LAST} at step {trainer.global_step}")

    def stop(self, state: str) -> NoReturn:
        """Raises InterruptedRun. `state`: what is saved."""
        signum, keys = self.signals.received or signal.SIGTERM, cast(Mapping[str, Any], self.config.get("trainer", {}))
        raise InterruptedRun(signum, f"{signal.Signals(signum).name}: {state}; dltrain resume run={self.folder.parent} "
                                     "continues it", keys.get("requeue", False))


def set_loop_counters(fit_loop: dict[str, Any], batches_done: int, batches_per_epoch: int, global_step: int) -> None:
    """Sets Lightning's loop counters, in place, to the state between two batches after `batches_done` in all."""
    epoch, batch = divmod(batches_done, batches_per_epoch)
    num_started = epoch + 1 if batch else epoch  # between two epochs the next one has not started
    counts = {"epoch_progress": ((num_started, epoch), (num_started, epoch)),
              "epoch_loop.batch_progress": ((batches_done, batches_done), (batch, batch)),
              "epoch_loop.val_loop.batch_progress": ((0, 0), (0, 0))}
    for name, (total, current) in counts.items():
        for scope, (started, completed) in (("total", total), ("current", current)):
            fit_loop[name][scope].update(ready=started, started=started, processed=completed, completed=completed)
        if "is_last_batch" in fit_loop[name]:
            fit_loop[name]["is_last_batch"] = False
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = global_step
