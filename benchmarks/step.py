"""Images per second of a whole dltrain run, as the ratio to a bare loop with the same model, augmentation, optimizer
and random images."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from benchmarks.timing import compare, steps_per_second, time_run
from dltrain import build
from dltrain.config.compose import compose
from dltrain.data.classification import InMemoryImages, Split
from dltrain.tasks.classification import Classification

BATCH, CLASSES, WARM_UP_STEPS = 128, 10, 3


def run() -> dict[str, dict[str, float]]:
    return {"resnet20 32x32": measure(32, 3, 12), "resnet20 8x8 grey": measure(8, 1, 60)}


def measure(px: int, channels: int, steps: int) -> dict[str, float]:
    config = compose(["model=resnet20", "data=digits", "augment=cifar", "recipe=none", f"data.batch_size={BATCH}",
                      "trainer.max_epochs=1", f"trainer.log_every_n_steps={steps}", "task.optimizer.lr=0.01"]
                     ).job_config()
    config.data.image_px, config.data.channels = px, channels
    images = torch.randint(0, 256, (BATCH * steps, channels, px, px), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (BATCH * steps,))

    def ours() -> float:
        return BATCH * time_run(config, *build_both(config, images, labels), WARM_UP_STEPS)

    def reference() -> float:
        return BATCH * time_bare_loop(*build_both(config, images, labels))

    return compare(ours, reference)


def build_both(config: DictConfig, images: torch.Tensor, labels: torch.Tensor) -> tuple[InMemoryImages, Classification]:
    data: InMemoryImages = build.build(config.data, "data", seed=0)
    data.splits = {"train": Split(images, labels), "val": Split(images[:2], labels[:2]),
                   "test": Split(images[:2], labels[:2])}
    data.class_names = [str(label) for label in range(CLASSES)]
    task = build.build_task(config)
    assert isinstance(task, Classification)
    task.augment.fit(images[:500])
    return data, task


def time_bare_loop(data: InMemoryImages, task: Classification) -> float:
    net: Any = task.model.train()
    rng = torch.Generator().manual_seed(0)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    starts = []
    for batch in data.train_dataloader():
        starts.append(time.perf_counter())
        inputs, targets = task.augment(batch, rng)
        loss = F.cross_entropy(net(inputs), targets)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return steps_per_second(starts, WARM_UP_STEPS)
