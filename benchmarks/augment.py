"""Images per second of batched crop, flip and normalisation, as the ratio to torchvision v2 applied sample by sample,
on one core."""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from benchmarks.timing import compare, seconds
from dltrain.augment.geometry import HorizontalFlip, PadCrop
from dltrain.augment.pipeline import Augment
from dltrain.batches import ClassificationBatch

COUNT, BATCH = 1024, 128


def run() -> dict[str, dict[str, float]]:
    return {"32x32": measure(32)}


def measure(px: int) -> dict[str, float]:
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (COUNT, 3, px, px), dtype=torch.uint8)
    labels, rng = torch.zeros(COUNT).long(), torch.Generator().manual_seed(0)
    pipeline = Augment("standard", 3, px, on_normalized=[PadCrop(4), HorizontalFlip(0.5)])
    pipeline.normalize.fit(images)
    mean, std = pipeline.normalize.mean.flatten().tolist(), pipeline.normalize.std.flatten().tolist()
    transform = v2.Compose([v2.RandomCrop(px, padding=4), v2.RandomHorizontalFlip(0.5),
                            v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    def batched() -> None:
        for of_batch in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            pipeline(ClassificationBatch(*of_batch), rng)

    def by_sample() -> None:
        torch.stack([transform(image) for image in images])

    return compare(lambda: COUNT / seconds(batched), lambda: COUNT / seconds(by_sample))
