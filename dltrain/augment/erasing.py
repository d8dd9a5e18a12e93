"""Transforms that erase a region of each image. Labels, masks and boxes stay as they are: the object is still there."""

from __future__ import annotations

import torch
from torch import Tensor

from dltrain.augment.geometry import check_unit_interval, image_sizes, one_by_one, to_device
from dltrain.augment.pipeline import BatchT, Transform, map_images
from dltrain.augment.resampling import sample_windows


class Cutout(Transform):
    """Sets a square of side `px` around a uniformly random centre to zero, the mean of normalised pixels. Near the
    border part of the square lies outside the image (DeVries and Taylor 2017, arXiv 1708.04552)."""

    def __init__(self, px: int):
        if px < 1:
            raise ValueError(f"px must be >= 1, but is {px}")
        self.px = px

    def check(self, channels: int, image_px: int) -> None:
        if self.px > image_px:
            raise ValueError(f"px must be at most the image's {image_px}, but is {self.px}")

    def __call__(self, batch: BatchT, rng: torch.Generator) -> BatchT:
        centres = (torch.rand(batch.size, 2, generator=rng) * image_sizes(batch.images)).floor()
        windows = torch.cat([centres - self.px // 2, torch.full_like(centres, self.px)], dim=1)
        return batch._replace(images=map_images(erase_windows, batch.images, windows))


class RandomErasing(Transform):
    """With probability `p`, sets a random window to zero. The fraction of the image's area is uniform in `scale`, in
    (0, 1]; the aspect ratio (width / height) is log-uniform in `ratio` (Zhong et al. 2017, 1708.04896, algorithm 1:
    p 0.5, scale 0.02 to 0.4, ratio 0.3 to 3.33). Differs from the paper: a window that does not fit is shortened, where
    the paper samples another one; the fill value is zero, where the paper uses noise."""

    def __init__(self, p: float = 0.5, scale: tuple[float, float] = (0.02, 0.4),
                 ratio: tuple[float, float] = (0.3, 10 / 3)):
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError("scale must be [low, high] in (0, 1] and ratio [low, high] > 0, with low <= high, but "
                             f"they are {scale} and {ratio}")
        self.p, self.scale, self.ratio = check_unit_interval("p", p), scale, ratio

    def __call__(self, batch: BatchT, rng: torch.Generator) -> BatchT:
        windows = sample_windows(image_sizes(batch.images), self.scale, self.ratio, rng)
        windows[torch.rand(batch.size, generator=rng) >= self.p, 2:] = 0  # height and width 0: erases nothing
        return batch._replace(images=map_images(erase_windows, batch.images, windows))


def erase_windows(images: Tensor, windows: Tensor) -> Tensor:
    """Sets the window (top, left, height, width) of each image to zero, where it lies inside the image. `windows`
    (B, 4), whole numbers, are on the CPU."""
    if one_by_one(images):
        erased = images.clone()
        for image, (top, left, height, width) in zip(erased, windows.int().tolist(), strict=True):
            image[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = 0
        return erased
    windows = to_device(windows, images)
    inside = []
    for axis, dim in ((0, 2), (1, 3)):
        first, length = windows[:, axis, None], windows[:, axis + 2, None]
        positions = torch.arange(images.shape[dim], device=images.device)
        inside.append((positions >= first) & (positions < first + length))
    return images.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0)
