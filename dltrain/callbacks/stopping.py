"""What ends a run early or at its time: signals, the planned number of steps, and numbers that are not finite."""

from __future__ import annotations

import os
import signal
import types
from typing import Any

import pytorch_lightning as pl
import torch

from dltrain.errors import DivergedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is only noted in `received`: the run saves itself after its
    step. A second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for signum in SIGNALS:
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _: types.FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            os._exit(130)
        self.received = signum


class StopAtStep(pl.Callback):
    """Ends training, with a validation, after `total_steps` optimizer steps, in mid-epoch where they end there."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.global_step >= self.total_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step >= self.total_steps:
            trainer.should_stop = True


class StopAtNonFinite(pl.Callback):
    """Ends the run at the first loss that is nan or infinite, before the optimizer takes it in. Where reading the loss
    would make the host wait for the device, it is read every `every_n_steps` only."""

    def __init__(self, every_n_steps: int):
        self.every_n_steps = every_n_steps

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        if loss.device.type != "cpu" and trainer.global_step % self.every_n_steps:
            return
        if not torch.isfinite(loss.detach()):
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            raise DivergedError(
                f"loss is {float(loss):g} at step {trainer.global_step} with lr {lr:g}; the last checkpoint is finite; "
                "try a smaller task.optimizer.lr, trainer.gradient_clip_norm=1 or task.schedule.warmup_steps=500")
