"""Logs the metrics of a run: metrics.csv, TensorBoard scalars, throughput.

The metrics of the training steps are summed on the device and read once every n steps: only then does the host wait for
the device.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from torch import Tensor

from dltrain.callbacks.input_watch import InputWatch
from dltrain.disk import write_text, writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIRST_COLUMNS = ("step", "epoch")
log = logging.getLogger("dltrain")


class TrainedTask(Protocol):
    """What the callbacks need of a task, beyond Lightning's own module."""

    unit: str  # what throughput counts, in the plural, such as "images"
    position: tuple[int, int, int, int]  # of the training step: seed, epoch, batch index, process rank

    def count(self, batch: object) -> int:
        """Number of units in a batch."""

    def read_training_metrics(self) -> dict[str, float]:
        """Means since the last call; makes the host wait for the device."""


class TrainingLoader(Protocol):
    """What the callbacks need of the loader of the training split."""

    batches_done: int  # batches yielded since the run started, over all epochs
    seconds_waiting: float  # that the training waited for them

    def __len__(self) -> int:
        """Batches per epoch."""


class TrainingData(Protocol):
    """What the callbacks need of the data."""

    def input_advice(self, share: float) -> str:
        """What to do where so large a share of the time goes by waiting for batches."""


class MetricsFile(Logger):
    """Writes metrics.csv: one row per call of `log_metrics`, one column per metric, blank where a row has no value.

    `keep_rows`: a resumed run keeps that many rows, those written before its checkpoint, and repeats the later ones.
    The file then looks as if the run had never stopped. Of several processes, only one `is_writer`."""

    def __init__(self, path: Path, keep_rows: int = 0, is_writer: bool = True):
        super().__init__()
        self.path, self.is_writer = path, is_writer
        self.rows: list[dict[str, object]] = []
        self.columns: list[str] = list(FIRST_COLUMNS)
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.rows = list(islice(reader, keep_rows))
                self.columns = list(reader.fieldnames or FIRST_COLUMNS)
            self.rewrite()

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Does nothing: they are in config.yaml."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, object] = {"step": step, "epoch": metrics.get("epoch", "")}
        row.update({key: f"{value:.6g}" for key, value in metrics.items() if key not in FIRST_COLUMNS})
        self.rows.append(row)
        if new_columns := [key for key in row if key not in self.columns]:
            self.columns += new_columns
            self.rewrite()
        elif self.is_writer:
            text, size = self.as_csv([row]), self.path.stat().st_size
            with writing(self.path, len(text)):
                try:
                    with open(self.path, "a", newline="", encoding="utf-8") as file:
                        file.write(text)
                except OSError:
                    os.truncate(self.path, size)  # no half a row
                    raise

    def rewrite(self) -> None:
        """Replaces the file whole or not at all."""
        if self.is_writer:
            write_text(self.path, self.as_csv([{column: column for column in self.columns}, *self.rows]))

    def as_csv(self, rows: Iterable[Mapping[str, object]]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns).writerows(rows)
        return text.getvalue()


class TensorBoard(TensorBoardLogger):
    """Writes TensorBoard's event file. If the disk refuses it, prints one warning and lets the run continue."""

    def __init__(self, *arguments: Any, **keys: Any):
        super().__init__(*arguments, **keys)
        self.latest_training: dict[str, float] = {}  # since the last validation

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        if self._experiment is None:
            from dltrain.callbacks.event_file import Events  # here: it imports tensorboard

            self._experiment = Events(self.log_dir, **self._kwargs)
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Over the steps; what a validation measures, and the training metrics before it, also over the epochs, below
        `epochs/`."""
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        super().log_metrics(values, step)
        self.latest_training |= {key: value for key, value in values.items() if key.startswith("train/")}
        if any(key.startswith("val/") for key in values) and "epoch" in metrics:
            of_epoch, self.latest_training = {**self.latest_training, **values}, {}
            super().log_metrics({f"epochs/{key}": value for key, value in of_epoch.items()}, int(metrics["epoch"]))

    def add_charts(self, headline: str) -> None:
        """The page Custom Scalars: the loss and the headline first, each with training and validation in one chart,
        over the steps and over the epochs. `headline`: such as val/accuracy."""
        name = headline.partition("/")[2]
        lines = {name: [f"^{split}/{re.escape(name)}$" for split in ("train", "val")] for name in ("loss", name)}
        of_epochs = {chart: [tag.replace("^", "^epochs/") for tag in tags] for chart, tags in lines.items()}
        lines |= {"learning rate": ["^lr$"], "gradient norm": ["^train/gradient_norm$"], "speed": [".+_per_second$"]}
        self.experiment.add_custom_scalars({
            page: {chart: ["Multiline", tags] for chart, tags in charts.items()}
            for page, charts in (("over the steps", lines), ("over the epochs", of_epochs))})

    def add_figure(self, tag: str, figure: Tensor | str, step: int) -> None:
        """A picture (3, H, W) uint8, or text."""
        if isinstance(figure, str):  # indented by four blanks: shown as it is, not as markdown
            self.experiment.add_text(tag, "    " + figure.replace("\n", "\n    "), step)
        else:
            self.experiment.add_image(tag, figure, step)

    def finalize(self, status: str) -> None:
        """Flushes the file, but keeps it open, because the test follows the training."""
        self.experiment.flush()

    def save(self) -> None:
        """Does nothing: Lightning would write hparams.yaml after each row, but config.yaml has it all."""


class MetricsLogging(pl.Callback):
    """Every `every_n_steps` optimizer steps, sends the mean training metrics since the last time, the learning rate and
    the throughput to all loggers; after each validation, its metrics. `latest` has the last value of each."""

    def __init__(self, every_n_steps: int):
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}
        self.last_step = -1
        self.input_watch = InputWatch()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Throughput becomes the `num_units` since this call per second since this call."""
        self.num_units, self.start_seconds = 0, time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last_step = trainer.global_step
        self.restart_clock()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.restart_clock()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
                           batch_idx: int) -> None:
        self.num_units += cast(TrainedTask, pl_module).count(batch)
        step = trainer.global_step
        if step != self.last_step and step % self.every_n_steps == 0:
            self.log_training(trainer, pl_module)
        self.last_step = step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the last steps of an epoch before its validation, so that a run stopped in between loses none."""
        if trainer.state.fn == "fit":
            self.log_training(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
            self.send_to_loggers(trainer, metrics)
            self.restart_clock()

    def log_training(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task, before = cast(TrainedTask, pl_module), time.perf_counter()
        metrics = task.read_training_metrics()
        if not metrics:
            return
        self.watch_input(trainer, time.perf_counter() - before)
        metrics["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self.num_units:
            metrics[f"{task.unit}_per_second"] = self.num_units * trainer.world_size / (
                time.perf_counter() - self.start_seconds)
        self.restart_clock()
        self.send_to_loggers(trainer, metrics)

    def watch_input(self, trainer: pl.Trainer, sync_seconds: float) -> None:
        """Says once that the run waits for its data, and what to do."""
        loader = cast(TrainingLoader, trainer.train_dataloader)
        share = self.input_watch.share(loader, time.perf_counter() - self.start_seconds, sync_seconds)
        if share is not None and trainer.is_global_zero:
            data = cast(TrainingData, trainer.datamodule)  # type: ignore[attr-defined]  # set by Lightning
            log.warning(f"dltrain: warning: {data.input_advice(share)}")

    def send_to_loggers(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        self.latest.update(metrics)
        for logger in trainer.loggers:
            logger.log_metrics({**metrics, "epoch": epoch_number(trainer)}, trainer.global_step)


def epoch_number(trainer: pl.Trainer) -> int:
    """1 during the first epoch and its validation, and so on, also in a run that resumes between the two; 0 without
    training data."""
    loader = cast(TrainingLoader | None, trainer.train_dataloader)
    return -(-loader.batches_done // len(loader)) if loader is not None else 0
