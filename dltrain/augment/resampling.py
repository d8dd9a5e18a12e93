"""Transforms that read the image between its pixels, bilinear: random windows, scale jitter, rotation and the like.

See geometry.py for what becomes of masks and boxes. B batch, h, w height and width of a window.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.augment.geometry import Geometric, affine, in_unit, to_device, uniform


def random_windows(sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float],
                   draws: torch.Generator) -> Tensor:
    """(B, 4): top, left, height, width in whole pixels of a window with a uniform share of the area and a log-uniform
    ratio (width / height), anywhere inside. One that does not fit is made to."""
    h, w = sizes.unbind(1)
    area = h * w * uniform(*scale, len(sizes), draws)
    shape = uniform(math.log(ratio[0]), math.log(ratio[1]), len(sizes), draws).exp()
    height = torch.minimum((area / shape).sqrt().round().clamp_min(1), h)
    width = torch.minimum((area * shape).sqrt().round().clamp_min(1), w)
    top = (torch.rand(len(sizes), generator=draws) * (h - height + 1)).floor()
    left = (torch.rand(len(sizes), generator=draws) * (w - width + 1)).floor()
    return torch.stack([top, left, height, width], dim=1)


class Window(Geometric):
    """Base of those that resize a window of each image to (px, px). A subclass draws (B, 4): top, left, h, w."""

    px: int

    def move(self, images: Tensor, drawn: Tensor, nearest: bool = False) -> Tensor:
        return resized(images, to_device(drawn, images), self.px, nearest)

    def matrices(self, sizes: Tensor, drawn: Tensor) -> Tensor:
        top, left, h, w = drawn.unbind(1)
        return affine(self.px / w, 0.0, -left * self.px / w, 0.0, self.px / h, -top * self.px / h)


class ResizedCrop(Window):
    """A window of a random share of the area, `scale` in (0, 1], and aspect ratio `ratio` (width / height), resized to
    `px` (Szegedy et al. 2015, 1409.4842, section 6). A window that does not fit is made to."""

    def __init__(self, px: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)):
        if px < 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"px must be >= 1, scale in (0, 1], ratio > 0, but are {px}, {scale}, {ratio}")
        self.px, self.scale, self.ratio = px, scale, ratio

    def draw(self, sizes: Tensor, draws: torch.Generator) -> Tensor:
        return random_windows(sizes, self.scale, self.ratio, draws)


class ScaleJitter(Window):
    """The short side scaled to a random length in `short_px`, then a random (px, px) crop (Simonyan and Zisserman 2014,
    1409.1556, section 3.1; He et al. 2015, section 3.4: [256, 480] and 224). Positions between pixels are allowed."""

    def __init__(self, px: int, short_px: tuple[int, int]):
        if not 1 <= px <= short_px[0] <= short_px[1]:
            raise ValueError(f"px must be >= 1 and at most short_px, but are {px} and {short_px}")
        self.px, self.short_px = px, short_px

    def check(self, channels: int, image_px: int) -> None:
        if self.px > image_px:
            raise ValueError(f"px must be at most the image's {image_px}, but is {self.px}; smaller images "
                             "need a smaller px or another pipeline, as augment=cifar")

    def draw(self, sizes: Tensor, draws: torch.Generator) -> Tensor:
        h, w = sizes.unbind(1)
        scale = uniform(*self.short_px, len(sizes), draws) / torch.minimum(h, w)
        side = self.px / scale  # of the window, in the image's own pixels
        top = torch.rand(len(sizes), generator=draws) * (h - side)
        left = torch.rand(len(sizes), generator=draws) * (w - side)
        return torch.stack([top, left, side, side], dim=1)


def resized(images: Tensor, windows: Tensor, px: int, nearest: bool = False) -> Tensor:
    """Window (top, left, h, w) of each float image to (px, px), no pixel from outside the window."""
    steps = (torch.arange(px, device=images.device) + 0.5) / px
    places = []
    for axis, dim in ((0, 2), (1, 3)):
        first, length = windows[:, axis, None], windows[:, axis + 2, None]
        position = first + torch.minimum((steps * length - 0.5).clamp(min=0), length - 1)  # (B, px), of pixel centres
        places.append((2 * position + 1) / images.shape[dim] - 1)  # from -1 to 1 between the outer edges
    rows, columns = places[0][:, :, None].expand(-1, -1, px), places[1][:, None, :].expand(-1, px, -1)
    grid = torch.stack([columns, rows], dim=3).to(images.dtype)
    return F.grid_sample(images, grid, "nearest" if nearest else "bilinear", "border", align_corners=False)


class Affine(Geometric):
    """Rotation by up to `degrees` either way, shift by up to `translate` of the side, scale within `scale`, shear by up
    to `shear_degrees`, each uniform, about the centre; zeros from outside."""

    def __init__(self, degrees: float = 0.0, translate: float = 0.0, scale: tuple[float, float] = (1.0, 1.0),
                 shear_degrees: float = 0.0):
        if not 0 <= degrees <= 180 or not 0 <= shear_degrees < 90:
            raise ValueError(f"degrees must be in [0, 180], shear_degrees in [0, 90), but are {degrees}, "
                             f"{shear_degrees}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be above 0, low before high, but is {scale}")
        self.degrees, self.translate = degrees, in_unit("translate", translate)
        self.scale, self.shear_degrees = scale, shear_degrees

    def draw(self, sizes: Tensor, draws: torch.Generator) -> Tensor:
        """(B, 2, 3): from a place to its new place, both (x, y) from the centre in pixels."""
        count, shift = len(sizes), self.translate
        angle = uniform(-self.degrees, self.degrees, count, draws)
        shifts = torch.stack([uniform(-shift, shift, count, draws) * sizes[:, side] for side in (1, 0)], dim=1)
        scale = uniform(*self.scale, count, draws)
        shear = uniform(-self.shear_degrees, self.shear_degrees, count, draws)
        return about_centre(angle, shifts, scale, shear)

    def move(self, images: Tensor, drawn: Tensor, nearest: bool = False) -> Tensor:
        return warped(images, drawn, nearest)

    def matrices(self, sizes: Tensor, drawn: Tensor) -> Tensor:
        centre = sizes.flip(1)[:, :, None] / 2  # (B, 2, 1): x, y
        linear = drawn[:, :, :2]
        return torch.cat([linear, drawn[:, :, 2:] + centre - linear @ centre], dim=2)


def about_centre(angle: Tensor, shift: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """(B, 2, 3): a shear along x, a turn by `angle` degrees clockwise on the screen, a scale, then `shift` (x, y)."""
    a, s = torch.deg2rad(angle), torch.deg2rad(shear)
    cos, sin, tan = a.cos() * scale, a.sin() * scale, s.tan()
    return affine(cos, -cos * tan - sin, shift[:, 0], sin, cos - sin * tan, shift[:, 1])


def warped(images: Tensor, matrices: Tensor, nearest: bool = False) -> Tensor:
    """Each image's pixels moved as its (2, 3) matrix about the centre says; the matrices lie on the CPU."""
    b, c, h, w = images.shape
    inverse = torch.linalg.inv(matrices[:, :, :2])
    side = matrices.new_tensor([w / 2, h / 2])
    theta = torch.cat([inverse * side[None, None, :] / side[None, :, None],
                       -(inverse @ matrices[:, :, 2:]) / side[None, :, None]], dim=2)
    places = F.affine_grid(to_device(theta, images), [b, c, h, w], align_corners=False)
    return F.grid_sample(images, places.to(images.dtype), "nearest" if nearest else "bilinear", align_corners=False)
