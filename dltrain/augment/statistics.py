"""Sums over the pixels of the training split, from which normalisation and colour noise take their statistics. Images
are added some at a time, so that no more than these are in memory.

All are sums of whole numbers below 2^53, so they are exact, and the same in any order."""

from __future__ import annotations

from collections.abc import Iterator, Set

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = 1 << 16  # so that a step of the statistics stays in the cache
EXACT_SUM = 256  # so many products of two bytes have a sum below 2^24, which a float32 holds exactly


class PixelSums:
    """Of the images (N, C, H, W) uint8 that were added. `kinds`: which of these are summed.

    histograms (C, 256) int64: how often each channel has each value. products (C, C) double: of the values of two
    channels of a pixel. image (1, C, H, W) double: the values at each position."""

    def __init__(self, kinds: Set[str]):
        self.kinds, self.num_images = kinds, 0
        self.histograms = torch.zeros(1, 256, dtype=torch.long)
        self.products = torch.zeros(1, 1, dtype=torch.double)
        self.image = torch.zeros(1, 1, 1, 1, dtype=torch.double)

    def add(self, pixels: Tensor) -> None:
        self.num_images += len(pixels)
        for colours in colours_of(pixels) if {"histograms", "products"} & self.kinds else ():
            self.histograms = self.histograms + torch.stack([torch.bincount(channel, minlength=256)
                                                             for channel in colours])
            if "products" in self.kinds:
                self.products = self.products + products_of(colours)
        for some in pixels.split(32) if "image" in self.kinds else ():
            self.image = self.image + some.float().sum(0, keepdim=True)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,), double, in [0, 1], of each channel."""
        values, counts = torch.arange(256).double() / 255, self.histograms.double()
        share = counts / counts.sum(1, keepdim=True)
        mean = share @ values
        return mean, ((share @ values.square()) - mean.square()).clamp_min(0).sqrt()

    def covariance(self) -> Tensor:
        """(C, C), double, of the channels of a pixel in [0, 1]."""
        counts = self.histograms.double()
        num_pixels = counts[0].sum()
        mean = counts @ torch.arange(256).double() / num_pixels
        return (self.products / num_pixels - torch.outer(mean, mean)) / 255**2

    def mean_image(self) -> Tensor:
        """(1, C, H, W), double, in [0, 1]."""
        return self.image / (255 * self.num_images)


def colours_of(pixels: Tensor) -> Iterator[Tensor]:
    """All pixels (C, M) of (N, C, H, W) images, some images at a time."""
    for chunk in pixels.split(max(1, PIXELS_AT_ONCE // pixels[0, 0].numel())):
        yield chunk.transpose(0, 1).flatten(1)


def products_of(colours: Tensor) -> Tensor:
    """(C, C) double: the sums of the products of each two channels of pixels (C, M) uint8."""
    channels, count = colours.shape
    blocks = F.pad(colours, (0, -count % EXACT_SUM)).float().view(channels, -1, EXACT_SUM).transpose(0, 1)
    return torch.bmm(blocks, blocks.transpose(1, 2)).double().sum(0)
