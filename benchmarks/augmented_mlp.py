"""Images per second of an MLP on images of MNIST's size with augment=digits: a run, a bare loop with the same loader
and augmentation, and the manner of lightning-hydra-template, which has no augmentation."""

from __future__ import annotations

import torch

from benchmarks import peers
from benchmarks.random_data import CLASSES, MLP, build_images, images_config
from benchmarks.timing import Row, cores, measure, time_run
from dltrain.benchmark.loops import train_bare, watched
from dltrain.benchmark.timing import StepClock

STEPS, WARM_UP, BATCH = 400, 20, 128


def run() -> list[Row]:
    config = images_config(28, 1, BATCH, "augment=digits", model=MLP)
    data, task = build_images(config, BATCH * (STEPS + 1))

    def bare() -> float:
        clock = StepClock(STEPS + 1, STEPS, WARM_UP, torch.device("cpu"))
        with watched(task, lambda batch: clock.tick()):
            train_bare(config, data, task, torch.device("cpu"), STEPS)
        return clock.step_seconds()

    with cores(1):
        loader = peers.template_loader(*data.splits["train"])
        return [measure("an MLP on 28 x 28, augment=digits, batch 128, one core", "images/s", {
            "dltrain": lambda: BATCH / time_run(config, data, task, STEPS, WARM_UP),
            "bare loop": lambda: BATCH / bare(),
            "the template's manner": lambda: BATCH / peers.time_template(task.model, loader, CLASSES, STEPS // 4,
                                                                         WARM_UP)}, ">= 60,000")]
