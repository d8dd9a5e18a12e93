"""Writes the figures that a task draws, pictures and texts, to TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dltrain.callbacks.metrics import TensorBoard
from dltrain.drawing.tables import format_table

LEVELS = 2  # of layers in layers


class Draws(Protocol):
    """What the callback needs of a task; see tasks/task.py."""

    headline: str
    model: nn.Module

    def training_figures(self, batch: object) -> Mapping[str, Tensor | str]: ...
    def all_figures(self, batch: object, outputs: object) -> Mapping[str, Tensor | str]: ...
    def summary_figures(self) -> Mapping[str, Tensor | str]: ...


class Board(Protocol):
    def add_figure(self, tag: str, figure: Tensor | str, step: int) -> None: ...


class Figures(pl.Callback):
    """Writes to `board`: the config and the layers of the model as text, and the first training batch, when a run
    begins; the first batch of each validation and of the test, with
    the outputs; a summary of the split after the last validation and after the test. `first_step`: that from which the
    run resumes; the trainer does not know it where only the test is left."""

    def __init__(self, board: TensorBoard, first_step: int = 0, config: str = "", others: Sequence[Board] = ()):
        self.board, self.first_step, self.config = board, first_step, config
        self.boards = [board, *others]
        self.first: tuple[object, object] | None = None  # a batch of an evaluation and the outputs for it

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
                             ) -> None:
        if trainer.global_step == 0 and batch_idx == 0 and trainer.is_global_zero:
            self.board.add_charts(task_of(trainer).headline)
            self.add("run", {"config": self.config, "model": describe_layers(task_of(trainer).model)}, 0)
            with torch.no_grad():
                self.add("train", task_of(trainer).training_figures(batch), 0)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object,
                                batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0:
            self.first = batch, outputs

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
                          batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0:
            self.first = batch, outputs

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.add_first(trainer, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.add_first(trainer, "test")
        self.add_summary(trainer, "test")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.add_summary(trainer, "val")

    def add_first(self, trainer: pl.Trainer, split: str) -> None:
        if self.first is not None and trainer.is_global_zero:
            self.add(split, task_of(trainer).all_figures(*self.first), max(self.first_step, trainer.global_step))
        self.first = None

    def add_summary(self, trainer: pl.Trainer, split: str) -> None:
        if trainer.is_global_zero:
            self.add(split, task_of(trainer).summary_figures(), max(self.first_step, trainer.global_step))

    def add(self, split: str, figures: Mapping[str, Tensor | str], step: int) -> None:
        for name, figure in figures.items():
            for board in self.boards:
                board.add_figure(f"{split}/{name}", figure, step)


def describe_layers(model: nn.Module) -> str:
    """A row for each layer and for the layers in it: its kind, its parameters, and how many of them are trained."""
    rows = []
    for name, module in model.named_modules():
        if name.count(".") < LEVELS and (sizes := [(p.numel(), p.requires_grad) for p in module.parameters()]):
            rows.append([name or "all", type(module).__name__, f"{sum(size for size, _ in sizes):,}",
                         f"{sum(size for size, is_trained in sizes if is_trained):,}"])
    return format_table(["layer", "kind", "parameters", "trained"], rows, right=(2, 3))


def task_of(trainer: pl.Trainer) -> Draws:
    return cast(Draws, trainer.lightning_module)
