"""Shows the progress of a run: a progress bar in a terminal below a line for each epoch, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from dltrain.callbacks.metrics import MetricsLogging, epoch_number
from dltrain.drawing.tables import format_duration

LINE_EVERY_SECONDS = 15  # outside a terminal, within an epoch
EPOCH_LINE_EVERY_SECONDS = 2  # at the ends of epochs, but not more often
LEAST_BAR = 8  # columns
log = logging.getLogger("dltrain")


class TimeLeftColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(format_time_left(task.fields["seconds_left"]), style="cyan")


def format_time_left(seconds: float | None) -> str:
    return f"{format_duration(seconds)} left" if seconds else ""


class ProgressDisplay(pl.Callback):
    """Shows epoch, bar, loss, headline metric, throughput and remaining time in one line. The values are the latest
    that `metrics` logged."""

    def __init__(self, metrics: MetricsLogging, total_steps: int, total_epochs: int, headline: str, unit: str):
        self.metrics, self.total_steps, self.total_epochs = metrics, total_steps, total_epochs
        self.headline, self.unit = headline, unit
        self.console = Console(file=sys.stdout, highlight=False)
        self.bar: Progress | None = None
        self.printed_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started_at, self.first_step = time.monotonic(), trainer.global_step
        self.printed_at = self.started_at
        if trainer.is_global_zero and self.console.is_terminal:
            epoch, values = (TextColumn(text, table_column=Column(no_wrap=True))
                             for text in ("{task.description}", "{task.fields[values]}"))
            self.bar = Progress(epoch, BarColumn(bar_width=None), values,
                                TimeLeftColumn(table_column=Column(no_wrap=True)), console=self.console,
                                refresh_per_second=4, expand=True, transient=True)
            self.bar.add_task(self.format_epoch(trainer), total=self.total_steps, completed=self.first_step, values="",
                              seconds_left=None)
            self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if self.bar is not None:
            epoch, seconds = self.format_epoch(trainer), self.estimate_seconds_left(trainer)
            taken = len(epoch) + LEAST_BAR + len(format_time_left(seconds)) + 3  # and a blank between two columns
            self.bar.update(self.bar.task_ids[0], completed=trainer.global_step, description=epoch,
                            values=self.format_metrics(self.console.width - taken), seconds_left=seconds)
        elif trainer.is_global_zero and time.monotonic() - self.printed_at > LINE_EVERY_SECONDS:
            self.print_line(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_last = trainer.global_step >= self.total_steps
        is_due = is_last or time.monotonic() - self.printed_at > EPOCH_LINE_EVERY_SECONDS
        if trainer.is_global_zero and is_due:
            self.print_line(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def print_line(self, trainer: pl.Trainer) -> None:
        epoch = self.format_epoch(trainer)
        if self.bar is not None:  # which has the time left
            log.info(f"{epoch}  {self.format_metrics(self.console.width - len(epoch) - 2)}")
        else:
            time_left = format_time_left(self.estimate_seconds_left(trainer))
            log.info(f"{epoch}  step {trainer.global_step}/{self.total_steps}  "
                     f"{self.format_metrics()}{f'  {time_left}' if time_left else ''}")
        self.printed_at = time.monotonic()

    def format_epoch(self, trainer: pl.Trainer) -> str:
        return f"epoch {epoch_number(trainer)}/{self.total_epochs}"

    def format_metrics(self, width: int = 1000) -> str:
        """In at most so many columns: the headline of validation is the last that is left out."""
        latest = self.metrics.latest
        name = self.headline.partition("/")[2]
        labels = {"train/loss": "loss", f"train/{name}": name, self.headline: f"val {name}"}
        texts = {key: f"{label.replace('_', ' ')} {latest[key]:.3f}" for key, label in labels.items() if key in latest}
        if (rate := f"{self.unit}_per_second") in latest:
            texts[rate] = f"{latest[rate]:,.0f} {self.unit}/s"
        for key in (rate, f"train/{name}", "train/loss", self.headline):
            if len("  ".join(texts.values())) > width:
                texts.pop(key, None)
        return "  ".join(texts.values())

    def estimate_seconds_left(self, trainer: pl.Trainer) -> float | None:
        """From the mean time of this process's steps; None in its first 3 steps."""
        num_steps = trainer.global_step - self.first_step
        if num_steps < 3:
            return None
        return (time.monotonic() - self.started_at) / num_steps * (self.total_steps - trainer.global_step)
