"""Transforms that hide a part of each image. Labels, masks and boxes stay: what is hidden is still there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dltrain.augment.geometry import each, in_unit, sizes, to_device
from dltrain.augment.resampling import random_windows


class Cutout:
    """A square of `px` at a random centre is set to zero, which is the mean after normalisation; at the border a part
    of it may lie outside (DeVries and Taylor 2017, 1708.04552)."""

    def __init__(self, px: int):
        if px < 1:
            raise ValueError(f"px must be >= 1, but is {px}")
        self.px = px

    def check(self, channels: int, image_px: int) -> None:
        if self.px > image_px:
            raise ValueError(f"px must be at most the image's {image_px}, but is {self.px}")

    def __call__(self, batch: Any, draws: torch.Generator) -> Any:
        centres = (torch.rand(batch.size, 2, generator=draws) * sizes(batch.images)).floor()
        windows = torch.cat([centres - self.px // 2, torch.full_like(centres, self.px)], dim=1)
        return batch._replace(images=each(with_hole, batch.images, windows))


class RandomErasing:
    """With chance `p`, a window of a random share of the area, `scale` in (0, 1], and aspect ratio `ratio` (width /
    height) is set to zero (Zhong et al. 2017, 1708.04896, algorithm 1: p 0.5, scale 0.02 to 0.4, ratio 0.3 to 3.33; the
    paper draws anew where a window does not fit and fills with noise)."""

    def __init__(self, p: float = 0.5, scale: tuple[float, float] = (0.02, 0.4),
                 ratio: tuple[float, float] = (0.3, 10 / 3)):
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"scale must be in (0, 1], ratio > 0, low before high, but are {scale}, {ratio}")
        self.p, self.scale, self.ratio = in_unit("p", p), scale, ratio

    def __call__(self, batch: Any, draws: torch.Generator) -> Any:
        windows = random_windows(sizes(batch.images), self.scale, self.ratio, draws)
        windows[torch.rand(batch.size, generator=draws) >= self.p, 2:] = 0  # of no height and width
        return batch._replace(images=each(with_hole, batch.images, windows))


def with_hole(images: Tensor, windows: Tensor) -> Tensor:
    """Zeros in window (top, left, height, width) of each image, as far as it lies inside."""
    windows = to_device(windows, images)
    inside = []
    for axis, dim in ((0, 2), (1, 3)):
        first, length = windows[:, axis, None], windows[:, axis + 2, None]
        places = torch.arange(images.shape[dim], device=images.device)
        inside.append((places >= first) & (places < first + length))
    return images.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0)
