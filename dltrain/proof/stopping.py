"""Ends a training after some steps, whatever its planned length is: schedules depend on that."""

from __future__ import annotations

from typing import NoReturn, cast

import pytorch_lightning as pl

from dltrain.checkpoints import DurableIO


class EnoughSteps(Exception):
    """Ends a training."""


class StopAfter(pl.Callback):
    """Raises EnoughSteps after a step."""

    def __init__(self, last_step: int):
        self.last_step = last_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step >= self.last_step and not trainer.fit_loop.epoch_loop._should_accumulate():
            end(trainer)


def end(trainer: pl.Trainer) -> NoReturn:
    """Raises EnoughSteps once what is being saved is on the disk."""
    cast(DurableIO, trainer.strategy.checkpoint_io).wait()
    raise EnoughSteps
