"""Looks into one training step: its loss, its batch, its layers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from dltrain.disk import write_text
from dltrain.errors import MachineError
from dltrain.proof.layers import Layer, LayerWatch, Statistics, Sums, draw_layers, write_layers
from dltrain.proof.stopping import end
from dltrain.ranks import is_first_process

STEP_FILE, FIGURES = "step.json", "figures"
ValueT = TypeVar("ValueT")


class Watched(Protocol):
    """What is needed of a task; see tasks/task.py."""

    model: nn.Module

    def training_figures(self, batch: object) -> Mapping[str, Tensor | str]: ...


class StepRecord(NamedTuple):
    """A step that was looked into. `losses`: of its batches, those of the first of `processes` first."""

    step: int
    processes: int
    losses: list[float]
    lr: float
    layers: list[Layer]


class Replay(NamedTuple):
    """A step that was given again. `agreement`: what of the run's record, up to the step, is equal here; `parted`: what
    is not, "" if all is. `source`: where it began. `files`: what was written."""

    record: StepRecord
    agreement: list[str]
    parted: str
    source: str
    files: list[Path]

    def headline(self) -> str:
        losses = ", ".join(repr(loss) for loss in self.record.losses)
        of_each = f" (of {self.record.processes} processes, in order)" if self.record.processes > 1 else ""
        return f"step {self.record.step}, {self.source}: loss {losses}{of_each}, lr {self.record.lr:g}"

    def write(self, source: Path, folder: Path) -> Replay:
        """Writes layers.csv and layers.png, and copies the figures of the batches from `source`. Raises MachineError
        where it cannot."""
        files = [folder / "layers.csv", folder / "layers.png"]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_layers(self.record.layers, files[0])
            draw_layers(self.record.layers, self.headline(), files[1])
            for figure in sorted((source / FIGURES).iterdir()):
                files.append(Path(shutil.copyfile(figure, folder / figure.name)))
        except OSError as error:
            raise MachineError(f"cannot write {folder}: {error.strerror}; output=FOLDER names another place") from None
        return self._replace(files=files)


def read_step(folder: Path) -> StepRecord | None:
    """What StepWatch.write wrote; None if the step did not come."""
    if not (folder / STEP_FILE).is_file():
        return None
    record = StepRecord(*json.loads((folder / STEP_FILE).read_text(encoding="utf-8")))
    return record._replace(layers=[Layer(name, kind, *(cells and Statistics(*cells) for cells in both))
                                   for name, kind, *both in record.layers])


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
        self.rank, self.processes = 0, 1

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
        self.losses = [loss for losses in of_all_processes(self.losses) for loss in losses]
        self.watch.outputs = add_up(of_all_processes(to_cpu(self.watch.outputs)))
        layers, self.watch = self.watch.table(self.gradients), None
        if self.step is None and is_finite(self.losses, layers):
            return
        self.layers, self.done = layers, trainer.global_step
        with torch.no_grad():
            self.figures = cast(Watched, pl_module).training_figures(batch)
        self.rank, self.processes = trainer.global_rank, trainer.world_size
        end(trainer)

    def write(self, folder: Path) -> None:
        """The figures of this process's batch and, by the first process, what of the step is the same in all."""
        (folder / FIGURES).mkdir(exist_ok=True)
        place = f"_rank_{self.rank}" if self.processes > 1 else ""
        for name, figure in self.figures.items():
            file = folder / FIGURES / f"{name}{place}.{'png' if torch.is_tensor(figure) else 'txt'}"
            if torch.is_tensor(figure):
                to_pil_image(figure).save(file)
            else:
                write_text(file, f"{figure}\n")
        if is_first_process():
            write_text(folder / STEP_FILE, json.dumps(
                StepRecord(self.done, self.processes, self.losses, self.lr, self.layers)))


def of_all_processes(value: ValueT) -> list[ValueT]:
    """The value that each process has, the first process first."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def to_cpu(outputs: Mapping[str, Sums]) -> dict[str, Sums]:
    return {name: Sums(*(value.cpu() for value in sums)) for name, sums in outputs.items()}


def add_up(outputs: Sequence[Mapping[str, Sums]]) -> dict[str, Sums]:
    """Of each layer, the values of all processes together. A process may leave out a layer, as blocks that drop."""
    total: dict[str, Sums] = {}
    for name, sums in (pair for one in outputs for pair in one.items()):
        total[name] = total[name] + sums if name in total else sums
    return total


def is_finite(losses: list[float], layers: list[Layer]) -> bool:
    return all(map(math.isfinite, losses)) and not any(layer.gradient and layer.gradient.non_finite for layer in layers)
