"""What a person sees while a run goes: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from dltrain.callbacks.metrics import Readings, epochs_begun

PLAIN_EVERY_SECONDS = 15
log = logging.getLogger("dltrain")


class TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{duration(task.fields['left'])} left" if task.fields["left"] is not None else "", style="cyan")


class Display(pl.Callback):
    """One line: epoch, bar, loss, headline metric, throughput, time left. The values are the latest readings."""

    def __init__(self, readings: Readings, total_steps: int, total_epochs: int, headline: str, unit: str):
        self.readings, self.total_steps, self.total_epochs = readings, total_steps, total_epochs
        self.headline, self.unit = headline, unit
        self.console = Console(file=sys.stdout, highlight=False)
        self.bar: Progress | None = None
        self.said_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.first_step = time.monotonic(), trainer.global_step
        self.said_at = self.started
        if trainer.is_global_zero and self.console.is_terminal:
            self.bar = Progress(TextColumn("{task.description}"), BarColumn(bar_width=None),
                                TextColumn("{task.fields[values]}"), TimeLeft(), console=self.console,
                                refresh_per_second=4, expand=True, transient=True)
            self.bar.add_task("", total=self.total_steps, completed=self.first_step, values="", left=None)
            self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=trainer.global_step, description=self.epoch(trainer),
                            values=self.values(), left=self.left(trainer))
        elif trainer.is_global_zero and time.monotonic() - self.said_at > PLAIN_EVERY_SECONDS:
            self.say(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = trainer.global_step >= self.total_steps
        if self.bar is None and trainer.is_global_zero and (last or time.monotonic() - self.said_at > 2):
            self.say(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def say(self, trainer: pl.Trainer) -> None:
        left = self.left(trainer)
        tail = f"  {duration(left)} left" if left else ""
        log.info(f"{self.epoch(trainer)}  step {trainer.global_step}/{self.total_steps}  {self.values()}{tail}")
        self.said_at = time.monotonic()

    def epoch(self, trainer: pl.Trainer) -> str:
        return f"epoch {epochs_begun(trainer)}/{self.total_epochs}"

    def values(self) -> str:
        now = self.readings.latest
        name = self.headline.partition("/")[2]
        shown = [f"{words.replace('_', ' ')} {now[key]:.3f}" for key, words in (
            ("train/loss", "loss"), (f"train/{name}", name), (self.headline, f"val {name}")) if key in now]
        if (key := f"{self.unit}_per_second") in now:
            shown.append(f"{now[key]:,.0f} {self.unit}/s")
        return "  ".join(shown)

    def left(self, trainer: pl.Trainer) -> float | None:
        done = trainer.global_step - self.first_step
        if done < 3:
            return None
        return (time.monotonic() - self.started) / done * (self.total_steps - trainer.global_step)


def duration(seconds: float | None) -> str:
    """12 s, 3:05 min, 2:10 h, for people."""
    whole = round(seconds or 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
