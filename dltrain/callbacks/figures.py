"""Puts the figures of a task on TensorBoard: pictures and texts, whatever its kind of problem draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor

from dltrain.callbacks.metrics import TensorBoard


class Draws(Protocol):
    """What is asked of a task; see tasks/task.py."""

    def training_figures(self, batch: Any) -> Mapping[str, Tensor | str]: ...
    def figures(self, batch: Any, outputs: Any) -> Mapping[str, Tensor | str]: ...
    def summary_figures(self) -> Mapping[str, Tensor | str]: ...


class Figures(pl.Callback):
    """The first training batch of a run; the first batch of each validation and of the test, with the outputs; a
    summary of the split after the last validation and after the test."""

    def __init__(self) -> None:
        self.first: tuple[Any, Any] | None = None  # a batch of an evaluation and the outputs for it

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0 and batch_idx == 0 and boards(trainer):
            with torch.no_grad():
                add(trainer, "train", pl_module.training_figures(batch), 0)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                                batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0:
            self.first = batch, outputs

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                          batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0:
            self.first = batch, outputs

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.draw_first(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.draw_first(trainer, pl_module, "test")
        self.draw_summary(trainer, pl_module, "test")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.draw_summary(trainer, pl_module, "val")

    def draw_first(self, trainer: pl.Trainer, task: Draws, split: str) -> None:
        if self.first is not None and boards(trainer):
            add(trainer, split, task.figures(*self.first), trainer.fit_loop.epoch_loop.global_step)
        self.first = None

    def draw_summary(self, trainer: pl.Trainer, task: Draws, split: str) -> None:
        if boards(trainer):
            add(trainer, split, task.summary_figures(), trainer.fit_loop.epoch_loop.global_step)


def boards(trainer: pl.Trainer) -> list[TensorBoard]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoard)]


def add(trainer: pl.Trainer, split: str, figures: Mapping[str, Tensor | str], step: int) -> None:
    for board in boards(trainer):
        for name, figure in figures.items():
            board.add_figure(f"{split}/{name}", figure, step)
