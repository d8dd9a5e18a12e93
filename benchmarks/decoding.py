"""Photos a second on one core: JPEGs of 500 x 375 and of 2000 x 1500 px decoded to 256 px, and with the training
augmentation of ImageNet; beside torchvision's transforms, sample by sample."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.random_data import write_photos
from benchmarks.timing import Row, cores, measure, seconds
from dltrain import build
from dltrain.config.compose import compose

BATCH = 32
SIZES = {(500, 375): 320, (2000, 1500): 64}  # pixels -> how many photos


def run() -> list[Row]:
    rows = []
    with cores(1), tempfile.TemporaryDirectory() as folder:
        for size, count in SIZES.items():
            root = Path(folder, f"{size[0]}px")
            write_photos(root, count, 2, size=size)
            rows += photo_rows(root, size)
    return rows


def photo_rows(root: Path, size: tuple[int, int]) -> list[Row]:
    config = compose(["model=resnet18", "data=image_folder", f"data.root={root}", "data.num_workers=0", "recipe=none",
                      f"data.batch_size={BATCH}", "data.image_px=256"]).job_config()
    data = build.build_data(config)
    augment = build.build(config.augment, "augment", channels=3, image_px=256)
    augment.fit(data.training_pixels(BATCH))
    indices = list(torch.arange(data.num_samples("train")).split(BATCH))
    files = sorted(root.rglob("*.jpg"))[: data.num_samples("train")]
    decode = v2.Compose([v2.Resize(256), v2.CenterCrop(256), v2.PILToTensor()])
    train = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor(),
                        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.25,) * 3)])
    rng = torch.Generator().manual_seed(0)

    def ours() -> None:
        for _ in data.read("train", indices):
            pass

    def ours_augmented() -> None:
        for batch in data.read("train", indices):
            augment(batch, rng)

    def theirs(transform: Callable[[Image.Image], torch.Tensor]) -> None:
        for start in range(0, len(files), BATCH):
            torch.stack([transform(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]])

    name = f"JPEGs of {size[0]} x {size[1]} px, one core"
    return [measure(f"{name}, to 256 px", "images/s", {
                "dltrain": lambda: len(files) / seconds(ours),
                "torchvision": lambda: len(files) / seconds(lambda: theirs(decode))}, ">= 1.0"),
            measure(f"{name}, with training augmentation", "images/s", {
                "dltrain": lambda: len(files) / seconds(ours_augmented),
                "torchvision": lambda: len(files) / seconds(lambda: theirs(train))}, ">= 1.3")]
