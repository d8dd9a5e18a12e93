"""The stage between data and model: a batch of uint8 pixels becomes a batch of normalised floats, on the device.

In training: transforms of pixels, normalisation, transforms of normalised values, each sample with its own draw. In
evaluation: normalisation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dltrain.batches import ClassificationBatch

Transform = Callable[[ClassificationBatch, torch.Generator], ClassificationBatch]
STATISTICS_IMAGES = 50_000  # more images do not move the statistics


class Normalize(nn.Module):
    """Pixels / 255, less a mean and divided by a deviation of the training part.

    `mean_pixel`: one mean per channel for all places, deviation 1. `per_pixel`: one mean per channel and place (the
    mean image of He et al. 2015), deviation 1. `standard`: mean and standard deviation per channel.
    The statistics are buffers, so they are saved with the weights and travel with the run.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, channels: int, image_px: int):
        super().__init__()
        if kind not in ("mean_pixel", "per_pixel", "standard"):
            raise ValueError(f"augment.normalize must be mean_pixel, per_pixel or standard, but is {kind}")
        self.kind = kind
        side = image_px if kind == "per_pixel" else 1
        self.register_buffer("mean", torch.zeros(1, channels, side, side))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def fit(self, pixels: Tensor) -> None:
        """Takes the statistics from (N, C, H, W) uint8, in double precision, a thousand images at a time."""
        places = (0,) if self.kind == "per_pixel" else (0, 2, 3)
        count = sum(chunk[:, 0].numel() if len(places) == 3 else len(chunk) for chunk in pixels.split(1000))
        mean = sum(chunk.double().sum(places, keepdim=True) for chunk in pixels.split(1000)) / (255 * count)
        self.mean.copy_(mean)
        if self.kind == "standard":
            square = sum(chunk.double().square().sum(places, keepdim=True) for chunk in pixels.split(1000))
            self.std.copy_((square / (255**2 * count) - mean.square()).sqrt().clamp_min(1e-8))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean) / self.std

    def invert(self, images: Tensor) -> Tensor:
        """Back to uint8 pixels, for people to look at."""
        return ((images * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)


class Augment(nn.Module):
    """See the module. `channels` and `image_px` are the data's; the transforms are called in the order given."""

    def __init__(self, normalize: str, channels: int, image_px: int, on_pixels: Sequence[Transform] = (),
                 on_normalized: Sequence[Transform] = ()):
        super().__init__()
        self.normalize = Normalize(normalize, channels, image_px)
        self.on_pixels, self.on_normalized = list(on_pixels), list(on_normalized)

    def forward(self, batch: ClassificationBatch, draws: torch.Generator | None = None) -> ClassificationBatch:
        """`draws` is the batch's own generator on the CPU; without one nothing random happens."""
        if draws is not None:
            for transform in self.on_pixels:
                batch = transform(batch, draws)
        batch = batch._replace(images=self.normalize(batch.images))
        if draws is not None:
            for transform in self.on_normalized:
                batch = transform(batch, draws)
        return batch
