"""Images per second of ResNet-20 on images of 32 px, batch 128, on one core and on two: a run, a bare loop, both
compiled, and loops in the manner of akamaster/pytorch_resnet_cifar10 and kuangliu/pytorch-cifar."""

from __future__ import annotations

import torch

from benchmarks import peers
from benchmarks.random_data import build_images, images_config
from benchmarks.timing import Row, core_counts, cores, measure, time_run
from dltrain.benchmark.loops import train_bare, watched
from dltrain.benchmark.timing import StepClock

STEPS, WARM_UP, BATCH = 24, 9, 128
AHEAD = 8  # batches that the workers of a peer have read ahead: they must cost in the steps that count
CPU = torch.device("cpu")


def run() -> list[Row]:
    rows = []
    for count in core_counts():
        with cores(count):
            rows += [row(count, compiled=False), row(count, compiled=True)]
    return rows


def row(count: int, compiled: bool) -> Row:
    config = images_config(32, 3, BATCH, "augment=cifar", f"trainer.compile={str(compiled).lower()}")
    data, task = build_images(config, BATCH * (STEPS + 1 + AHEAD))

    def bare() -> float:
        clock = StepClock(STEPS + 1 + AHEAD, STEPS, WARM_UP, CPU)
        with watched(task, lambda batch: clock.tick()):
            train_bare(config, data, task, CPU, STEPS)
        return clock.step_seconds()

    sides = {"dltrain": lambda: BATCH / time_run(config, data, task, STEPS, WARM_UP),
             "bare loop": lambda: BATCH / bare()}
    if not compiled:
        split = data.splits["train"]
        sides["akamaster's manner"] = lambda: BATCH / peers.time_akamaster(task.model, *split, STEPS, WARM_UP)
        sides["kuangliu's manner"] = lambda: BATCH / peers.time_kuangliu(task.model, *split, STEPS, WARM_UP)
    return measure(f"ResNet-20, 32 px, batch 128, {count} {'core' if count == 1 else 'cores'}"
                   f"{', compiled' if compiled else ''}", "images/s", sides, ">= 0.99 of the bare loop")
