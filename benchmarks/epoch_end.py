"""What the end of an epoch costs beside a step: checkpoints, metrics and hooks of a run, of ResNet-20 on 8 x 8 px with
four batches an epoch, without validation and with one of a single batch of two images."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from omegaconf import DictConfig

from benchmarks.random_data import build_images, images_config
from benchmarks.timing import Row, cores, measure
from dltrain.benchmark.loops import watched
from dltrain.benchmark.timing import StepClock
from dltrain.data.classification import InMemoryImages
from dltrain.signals import Signals
from dltrain.tasks.classification import Classification
from dltrain.trainer import build_trainer

EPOCHS, BATCHES, BATCH = 12, 4, 32


def run() -> list[Row]:
    with cores(1):
        config = images_config(8, 1, BATCH, f"trainer.max_epochs={EPOCHS}")
        data, task = build_images(config, BATCH * BATCHES)
        return [measure("the end of an epoch, ResNet-20", "ms", {
            "dltrain": lambda: 1e3 * time_ends(config, data, task, validates=True),
            "without validation": lambda: 1e3 * time_ends(config, data, task, validates=False)}, "<= 20 ms")]


def time_ends(config: DictConfig, data: InMemoryImages, task: Classification, validates: bool) -> float:
    """The median of the epochs after the first two, in seconds."""
    clock = StepClock(BATCHES, EPOCHS * BATCHES, 2 * BATCHES, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder, watched(task, lambda batch: clock.tick()):
        trainer, _ = build_trainer(config, Path(folder), data, task, Signals(), None)
        trainer.limit_val_batches = 1 if validates else 0
        data.load_state_dict({"position": 0})
        trainer.fit(task, datamodule=data)
    return statistics.median(clock.epoch_seconds())
