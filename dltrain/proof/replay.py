"""Looks into one training step: its loss, its batch, its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from dltrain.disk import write_text
from dltrain.errors import MachineError
from dltrain.proof.layers import Layer, LayerWatch, Sums, draw_layers, write_layers
from dltrain.proof.stopping import end


class Watched(Protocol):
    """What is needed of a task; see tasks/task.py."""

    model: nn.Module

    def training_figures(self, batch: object) -> Mapping[str, Tensor | str]: ...


class Replay(NamedTuple):
    """A step that was given again. `losses`: of its batches. `agreement`: what of the run's record, up to the step, is
    equal here; `parted`: what is not, "" if all is. `source`: where it began. `files`: what was written."""

    step: int
    losses: list[float]
    lr: float
    layers: list[Layer]
    agreement: list[str]
    parted: str
    source: str
    files: list[Path]

    def headline(self) -> str:
        losses = ", ".join(repr(loss) for loss in self.losses)
        return f"step {self.step}, {self.source}: loss {losses}, lr {self.lr:g}"

    def write(self, figures: Mapping[str, Tensor | str], folder: Path) -> list[Path]:
        """Writes layers.csv, layers.png and the figures of the batch. Raises MachineError where it cannot."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return self.write_files(figures, folder)
        except OSError as error:
            raise MachineError(f"cannot write {folder}: {error.strerror}; output=FOLDER names another place") from None

    def write_files(self, figures: Mapping[str, Tensor | str], folder: Path) -> list[Path]:
        files = [folder / "layers.csv", folder / "layers.png"]
        write_layers(self.layers, files[0])
        draw_layers(self.layers, self.headline(), files[1])
        for name, figure in figures.items():
            file = folder / f"{name}.{'png' if torch.is_tensor(figure) else 'txt'}"
            if torch.is_tensor(figure):
                to_pil_image(figure).save(file)
            else:
                write_text(file, f"{figure}\n")
            files.append(file)
        return files


class StepWatch(pl.Callback):
    """Looks into step `step` or, if None, into the first step whose loss or gradient is not finite; raises EnoughSteps
    after it. `done`: the number of the step that it looked into, 0 before."""

    def __init__(self, step: int | None):
        self.step = step
        self.watch: LayerWatch | None = None
        self.losses: list[float] = []
        self.gradients: dict[str, Sums] = {}
        self.layers: list[Layer] = []
        self.lr, self.done = math.nan, 0
        self.figures: Mapping[str, Tensor | str] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
                             ) -> None:
        if self.watch is None and self.step in (None, trainer.global_step + 1):
            self.watch = LayerWatch(cast(Watched, pl_module).model)
            self.watch.start()
            self.losses, self.lr = [], trainer.optimizers[0].param_groups[0]["lr"]

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule,
                                 optimizer: torch.optim.Optimizer) -> None:
        if self.watch is not None:
            self.gradients = self.watch.gradients()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
                           batch_idx: int) -> None:
        if self.watch is None:
            return
        loss = cast(Mapping[str, Tensor], outputs)["loss"]
        self.losses.append(float(loss) * trainer.accumulate_grad_batches)  # each is divided by their number
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        self.watch.stop()
        layers, self.watch = self.watch.table(self.gradients), None
        if self.step is None and is_finite(self.losses, layers):
            return
        self.layers, self.done = layers, trainer.global_step
        with torch.no_grad():
            self.figures = cast(Watched, pl_module).training_figures(batch)
        end(trainer)


def is_finite(losses: list[float], layers: list[Layer]) -> bool:
    return all(map(math.isfinite, losses)) and not any(layer.gradient and layer.gradient.non_finite for layer in layers)
