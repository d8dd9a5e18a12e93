"""Geometric transforms that read images between pixels, by bilinear interpolation: random resized crop, scale jitter,
and the affine map (rotation, shift, scale, shear).

What happens to masks and boxes stands in geometry.py. Shapes: B batch, C channels, H, W height and width of an image;
a window is (top, left, height, width) in pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.augment.geometry import GeometricTransform, affine_matrices, check_unit_interval, sample_uniform, to_device


def sample_windows(sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float],
                   rng: torch.Generator) -> Tensor:
    """(B, 4) windows in whole pixels, at uniformly random positions inside images of `sizes` (B, 2). The fraction of
    the area is uniform in `scale`, the aspect ratio (width / height) log-uniform in `ratio`. A side that is longer than
    the image's is shortened to it."""
    h, w = sizes.unbind(1)
    area = h * w * sample_uniform(*scale, len(sizes), rng)
    aspect = sample_uniform(math.log(ratio[0]), math.log(ratio[1]), len(sizes), rng).exp()
    height = torch.minimum((area / aspect).sqrt().round().clamp_min(1), h)
    width = torch.minimum((area * aspect).sqrt().round().clamp_min(1), w)
    top = (torch.rand(len(sizes), generator=rng) * (h - height + 1)).floor()
    left = (torch.rand(len(sizes), generator=rng) * (w - width + 1)).floor()
    return torch.stack([top, left, height, width], dim=1)


class WindowTransform(GeometricTransform):
    """Base class: resizes a window of each image to (px, px). The parameters of a subclass are the windows (B, 4)."""

    px: int

    def transform_images(self, images: Tensor, parameters: Tensor, nearest: bool = False) -> Tensor:
        return resize_windows(images, to_device(parameters, images), self.px, nearest)

    def make_matrices(self, sizes: Tensor, parameters: Tensor) -> Tensor:
        top, left, h, w = parameters.unbind(1)
        return affine_matrices(self.px / w, 0.0, -left * self.px / w, 0.0, self.px / h, -top * self.px / h)


class ResizedCrop(WindowTransform):
    """Resizes a random window to (px, px). The fraction of the image's area is uniform in `scale`, in (0, 1]; the
    aspect ratio (width / height) is log-uniform in `ratio` (Szegedy et al. 2014, arXiv 1409.4842, section 6)."""

    def __init__(self, px: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)):
        if px < 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError("px must be >= 1, scale [low, high] in (0, 1] and ratio [low, high] > 0, with low <= "
                             f"high, but they are {px}, {scale} and {ratio}")
        self.px, self.scale, self.ratio = px, scale, ratio

    def sample_parameters(self, sizes: Tensor, rng: torch.Generator) -> Tensor:
        return sample_windows(sizes, self.scale, self.ratio, rng)


class ScaleJitter(WindowTransform):
    """Scales the short side to a random length in `short_px`, then crops (px, px) at a random position, also between
    pixels (Simonyan and Zisserman 2014, 1409.1556, section 3.1; He et al. 2015, section 3.4: [256, 480] and 224)."""

    def __init__(self, px: int, short_px: tuple[int, int]):
        if not 1 <= px <= short_px[0] <= short_px[1]:
            raise ValueError(f"px must be >= 1 and at most short_px, but they are {px} and {short_px}")
        self.px, self.short_px = px, short_px

    def check(self, channels: int, image_px: int) -> None:
        if self.px > image_px:
            raise ValueError(f"px must be at most the image's {image_px}, but is {self.px}; set a smaller px, or "
                             "choose a pipeline for small images such as augment=cifar")

    def sample_parameters(self, sizes: Tensor, rng: torch.Generator) -> Tensor:
        h, w = sizes.unbind(1)
        scale = sample_uniform(*self.short_px, len(sizes), rng) / torch.minimum(h, w)
        side = self.px / scale  # of the window, in pixels of the image before scaling
        top = torch.rand(len(sizes), generator=rng) * (h - side)
        left = torch.rand(len(sizes), generator=rng) * (w - side)
        return torch.stack([top, left, side, side], dim=1)


def resize_windows(images: Tensor, windows: Tensor, px: int, nearest: bool = False) -> Tensor:
    """Resizes the window (B, 4) of each float image to (px, px). No pixel outside the window is read."""
    steps = (torch.arange(px, device=images.device) + 0.5) / px
    positions = []
    for axis, dim in ((0, 2), (1, 3)):
        first, length = windows[:, axis, None], windows[:, axis + 2, None]
        index = first + torch.minimum((steps * length - 0.5).clamp(min=0), length - 1)  # (B, px), fractional
        positions.append((2 * index + 1) / images.shape[dim] - 1)  # grid_sample: -1 and 1 are the image's outer edges
    rows, columns = positions[0][:, :, None].expand(-1, -1, px), positions[1][:, None, :].expand(-1, px, -1)
    grid = torch.stack([columns, rows], dim=3).to(images.dtype)
    return F.grid_sample(images, grid, "nearest" if nearest else "bilinear", "border", align_corners=False)


class Affine(GeometricTransform):
    """Rotates by up to `degrees` in both directions, shifts by up to the fraction `translate` of each side, scales by a
    factor in `scale` and shears by up to `shear_degrees`. All are uniform; the fixed point is the image's centre."""

    def __init__(self, degrees: float = 0.0, translate: float = 0.0, scale: tuple[float, float] = (1.0, 1.0),
                 shear_degrees: float = 0.0):
        if not 0 <= degrees <= 180 or not 0 <= shear_degrees < 90:
            raise ValueError("degrees must be in [0, 180] and shear_degrees in [0, 90), but they are "
                             f"{degrees} and {shear_degrees}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be [low, high] with 0 < low <= high, but is {scale}")
        self.degrees, self.translate = degrees, check_unit_interval("translate", translate)
        self.scale, self.shear_degrees = scale, shear_degrees

    def sample_parameters(self, sizes: Tensor, rng: torch.Generator) -> Tensor:
        """(B, 2, 3) matrices as in `centred_matrices`."""
        count, shift = len(sizes), self.translate
        angle = sample_uniform(-self.degrees, self.degrees, count, rng)
        shifts = torch.stack([sample_uniform(-shift, shift, count, rng) * sizes[:, side] for side in (1, 0)], dim=1)
        scale = sample_uniform(*self.scale, count, rng)
        shear = sample_uniform(-self.shear_degrees, self.shear_degrees, count, rng)
        return centred_matrices(angle, shifts, scale, shear)

    def transform_images(self, images: Tensor, parameters: Tensor, nearest: bool = False) -> Tensor:
        return warp(images, parameters, nearest)

    def make_matrices(self, sizes: Tensor, parameters: Tensor) -> Tensor:
        centre = sizes.flip(1)[:, :, None] / 2  # (B, 2, 1): x, y
        linear = parameters[:, :, :2]
        return torch.cat([linear, parameters[:, :, 2:] + centre - linear @ centre], dim=2)


def centred_matrices(angle: Tensor, shift: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """(B, 2, 3): map (x, y, 1), in pixels from the image's centre, to the new (x, y): shear by `shear` degrees along x,
    rotate clockwise (on the screen) by `angle` degrees, scale, then add `shift` (B, 2)."""
    a, s = torch.deg2rad(angle), torch.deg2rad(shear)
    cos, sin, tan = a.cos() * scale, a.sin() * scale, s.tan()
    return affine_matrices(cos, -cos * tan - sin, shift[:, 0], sin, cos - sin * tan, shift[:, 1])


def warp(images: Tensor, matrices: Tensor, nearest: bool = False) -> Tensor:
    """Moves the pixels of each image by its matrix (B, 2, 3) on the CPU, as in `centred_matrices`; zeros outside."""
    b, c, h, w = images.shape
    inverse = torch.linalg.inv(matrices[:, :, :2])
    side = matrices.new_tensor([w / 2, h / 2])
    theta = torch.cat([inverse * side[None, None, :] / side[None, :, None],
                       -(inverse @ matrices[:, :, 2:]) / side[None, :, None]], dim=2)
    grid = F.affine_grid(to_device(theta, images), [b, c, h, w], align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), "nearest" if nearest else "bilinear", align_corners=False)
