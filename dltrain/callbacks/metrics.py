"""What a run writes down while it goes: metrics.csv, TensorBoard scalars, throughput. One reading every n steps, which
is the only time the host waits for the device."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger

FIRST = ("step", "epoch")


class MetricsFile(Logger):
    """metrics.csv: a row a reading, a column a metric; blank where a reading does not have it.

    A resumed run keeps the rows that its checkpoint counted, so the file reads as if nothing had happened."""

    def __init__(self, path: Path, keep_rows: int = 0):
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.columns: list[str] = list(FIRST)
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.rows = list(reader)[:keep_rows]
                self.columns = list(reader.fieldnames or FIRST)
            self.rewrite()

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, "epoch": metrics.get("epoch", "")}
        row.update({key: f"{value:.6g}" for key, value in metrics.items() if key not in FIRST})
        self.rows.append(row)
        if new := [key for key in row if key not in self.columns]:
            self.columns += new
            self.rewrite()
            return
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if len(self.rows) == 1:
                writer.writeheader()
            writer.writerow(row)

    def rewrite(self) -> None:
        with open(self.path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


class Board(TensorBoardLogger):
    """TensorBoard's events. A disk that refuses them costs one warning, not the run."""

    failed = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        try:
            super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)
        except OSError as error:
            self.give_up(error)

    def give_up(self, error: OSError) -> None:
        if not self.failed:
            print(f"dltrain: warning: TensorBoard's events cannot be written ({error}); training goes on")
        self.failed = True

    def finalize(self, status: str) -> None:
        """Flushes; the file stays open, because a test follows the training."""
        try:
            self.experiment.flush()
        except OSError as error:
            self.give_up(error)

    def save(self) -> None:
        """No hparams.yaml: config.yaml has them, and Lightning calls this after every reading."""


class Readings(pl.Callback):
    """Every n optimizer steps: the training metrics since the last reading, learning rate, throughput, to all loggers.
    `latest` keeps the last values for the progress display."""

    def __init__(self, every_n_steps: int):
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}
        self.count, self.since = 0, time.perf_counter()
        self.step = -1

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start_clock()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        self.start_clock()

    def start_clock(self) -> None:
        self.count, self.since = 0, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
                           ) -> None:
        self.count += pl_module.count(batch) * trainer.world_size
        if trainer.global_step != self.step and trainer.global_step % self.every_n_steps == 0:
            self.read(trainer, pl_module)
        self.step = trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """An epoch's rest is read before its validation, so that a run stopped in between loses no reading."""
        if trainer.state.fn == "fit":
            self.read(trainer, pl_module)

    def read(self, trainer: pl.Trainer, pl_module: Any) -> None:
        values = pl_module.read_training_metrics()
        if not values:
            return
        values["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self.count:
            values[f"{pl_module.unit}_per_second"] = self.count / (time.perf_counter() - self.since)
        self.start_clock()
        self.write(trainer, values)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.write(trainer, {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")})
            self.start_clock()

    def write(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        self.latest.update(values)
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": epochs_begun(trainer)}, trainer.global_step)


def epochs_begun(trainer: pl.Trainer) -> int:
    """1 in the first epoch and in its validation, and so on, also where a resume stands between the two."""
    loader = trainer.train_dataloader
    return -(-loader.position // len(loader)) if loader is not None else 0
