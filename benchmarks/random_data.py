"""Data of random numbers: images in memory, and photos on the disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from dltrain import build
from dltrain.config.compose import compose
from dltrain.data.classification import InMemoryImages, Split
from dltrain.tasks.classification import Classification

CLASSES = 10
MLP = {"_target_": "dltrain.models.mlp.MLP", "num_inputs": 784, "num_classes": CLASSES}


def images_config(px: int, channels: int, batch: int, *words: str, model: dict[str, Any] | None = None) -> DictConfig:
    """Of a run on random images in memory. `model`: a node in place of resnet20's."""
    config = compose(["model=resnet20", "data=digits", "augment=none", "recipe=none", f"data.batch_size={batch}",
                      "trainer=cpu", "trainer.max_epochs=1", "task.optimizer.lr=0.01", *words]).job_config()
    config.data.image_px, config.data.channels = px, channels
    if model is not None:
        config.model = OmegaConf.create(model)
    return config


def build_images(config: DictConfig, count: int) -> tuple[InMemoryImages, Classification]:
    """`count` training images, and the task with the statistics of some of them."""
    rng = torch.Generator().manual_seed(0)
    shape = (count, config.data.channels, config.data.image_px, config.data.image_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, CLASSES, (count,), generator=rng)
    data: InMemoryImages = build.build(config.data, "data", seed=0)
    data.splits = {"train": Split(images, labels), "val": Split(images[:2], labels[:2]),
                   "test": Split(images[:2], labels[:2])}
    data.class_names = config.class_names = [str(label) for label in range(CLASSES)]
    task = build.build_task(config)
    assert isinstance(task, Classification)
    task.augment.fit(images[:500])
    return data, task


def write_photos(folder: Path, count: int, classes: int, distinct: int = 32, size: tuple[int, int] = (500, 375)
                 ) -> None:
    """JPEGs of random textures in folders of classes, as large as photos. The files differ, by some bytes after the end
    of the picture; only `distinct` of them differ in their pixels."""
    rng = np.random.default_rng(0)
    pictures = [picture(rng, *size) for _ in range(min(distinct, count))]
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(count):
        file = folder / f"class{number % classes}" / f"{number:06d}.jpg"
        file.write_bytes(pictures[number % len(pictures)] + number.to_bytes(8, "little"))


def picture(rng: np.random.Generator, width: int, height: int) -> bytes:
    """Noise of several scales, as in photographs."""
    total = np.zeros((height, width, 3))
    for scale in (1, 4, 16, 64):
        noise = rng.normal(size=(-(-height // scale), -(-width // scale), 3))
        total += noise.repeat(scale, 0).repeat(scale, 1)[:height, :width] * scale**0.5
    pixels = ((total - total.min()) / (total.max() - total.min()) * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return out.getvalue()
