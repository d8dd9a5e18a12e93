"""Images per second of batched crop, flip and normalisation on one core: ours, by unfold and gather on bytes, and
torchvision v2 applied sample by sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.timing import Row, cores, measure, seconds
from dltrain.augment.geometry import HorizontalFlip, PadCrop
from dltrain.augment.pipeline import Augment
from dltrain.batches import ClassificationBatch

COUNT, BATCH, PX, PADDING = 4096, 128, 32, 4


def run() -> list[Row]:
    with cores(1):
        images = torch.randint(0, 256, (COUNT, 3, PX, PX), dtype=torch.uint8)
        labels, rng = torch.zeros(COUNT).long(), torch.Generator().manual_seed(0)
        pipeline = Augment("standard", 3, PX, on_normalized=[PadCrop(PADDING), HorizontalFlip(0.5)])
        pipeline.normalize.fit(images)
        mean, std = pipeline.normalize.mean, pipeline.normalize.std
        transform = v2.Compose([v2.RandomCrop(PX, padding=PADDING), v2.RandomHorizontalFlip(0.5),
                                v2.ToDtype(torch.float32, scale=True),
                                v2.Normalize(mean.flatten().tolist(), std.flatten().tolist())])

        def batched() -> None:
            for of_batch in zip(images.split(BATCH), labels.split(BATCH), strict=True):
                pipeline(ClassificationBatch(*of_batch), rng)

        def on_bytes() -> None:
            for batch in images.split(BATCH):
                by_unfold(batch, mean, std)

        def by_sample() -> None:
            torch.stack([transform(image) for image in images[: COUNT // 4]])

        return [measure("crop + flip + normalise, 32 px, one core", "images/s", {
            "dltrain": lambda: COUNT / seconds(batched),
            "unfold and gather on bytes": lambda: COUNT / seconds(on_bytes),
            "torchvision v2, sample by sample": lambda: COUNT / 4 / seconds(by_sample)}, ">= 80,000")]


def by_unfold(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pads with black, which is not the zero of normalised values."""
    count = len(images)
    windows = F.pad(images, (PADDING,) * 4).unfold(2, PX, 1).unfold(3, PX, 1)
    places = torch.randint(0, 2 * PADDING + 1, (2, count))
    crops = windows[torch.arange(count), :, places[0], places[1]]
    flipped = torch.where((torch.rand(count) < 0.5)[:, None, None, None], crops.flip(3), crops)
    return (flipped.float() / 255 - mean) / std
