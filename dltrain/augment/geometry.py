"""Transforms that move pixels. Each sample has its own draw, made on the CPU and moved along: no host sync.

B batch, C channels, H, W height and width; a position is measured in pixels, the centre of the first one at 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import ClassificationBatch


def to_device(draws: Tensor, images: Tensor) -> Tensor:
    if images.device.type == "cuda":
        draws = draws.pin_memory()
    return draws.to(images.device, non_blocking=True)


def uniform(low: float, high: float, count: int, draws: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=draws)


def in_unit(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], but is {value}")
    return value


class PadCrop:
    """Pads each side by `padding_px` (>= 0), with zeros or by reflection, and crops the old size at one of
    (2 padding + 1)^2 places, each equally likely (He et al. 2015, section 4.2: zeros, 4 px at 32x32)."""

    def __init__(self, padding_px: int, mode: str = "zero"):
        if padding_px < 0:
            raise ValueError(f"padding_px must be >= 0, but is {padding_px}")
        if mode not in ("zero", "reflect"):
            raise ValueError(f"mode must be zero or reflect, but is {mode}")
        self.padding_px, self.mode = padding_px, mode

    def check(self, channels: int, image_px: int) -> None:
        if self.mode == "reflect" and self.padding_px >= image_px:
            raise ValueError(f"padding_px must be below the image's {image_px} px to reflect, but is {self.padding_px}")

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        offsets = torch.randint(0, 2 * self.padding_px + 1, (batch.size, 2), generator=draws)  # (B, 2): y, x
        return batch._replace(images=crop(batch.images, self.padding_px, offsets, self.mode))


def crop(images: Tensor, padding_px: int, offsets: Tensor, mode: str = "zero") -> Tensor:
    """Sample i of (B, C, H, W), padded, from row offsets[i, 0] and column offsets[i, 1] on; the same shape. The offsets
    lie on the CPU: there each sample is one copy of a slice, elsewhere all samples are one gather."""
    h, w = images.shape[2:]
    padded = F.pad(images, (padding_px,) * 4, mode="constant" if mode == "zero" else "reflect")
    if images.device.type == "cpu":
        out = torch.empty_like(images)
        for target, source, (y, x) in zip(out, padded, offsets.tolist(), strict=True):
            target.copy_(source[:, y : y + h, x : x + w])
        return out
    return gathered(padded, to_device(offsets, images), h, w)


def gathered(padded: Tensor, offsets: Tensor, h: int, w: int) -> Tensor:
    """The same crops with no loop and no host sync."""
    b, c = padded.shape[:2]
    rows = offsets[:, 0, None] + torch.arange(h, device=padded.device)  # (B, H)
    columns = offsets[:, 1, None] + torch.arange(w, device=padded.device)  # (B, W)
    flat = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W): places in a flattened plane
    return padded.flatten(2).gather(2, flat.reshape(b, 1, h * w).expand(b, c, h * w)).reshape(b, c, h, w)


class HorizontalFlip:
    """Mirrors left and right with chance `p` in [0, 1]."""

    def __init__(self, p: float = 0.5):
        self.p = in_unit("p", p)

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        mirrored = torch.rand(batch.size, generator=draws) < self.p
        chosen = to_device(mirrored.nonzero().flatten(), batch.images)  # counted on the CPU: no host sync
        return batch._replace(images=batch.images.index_copy(0, chosen, batch.images[chosen].flip(3)))


class ResizedCrop:
    """A window of a random share of the area, `scale` in (0, 1], and aspect ratio `ratio` (width / height), resized to
    `px` (Szegedy et al. 2015, 1409.4842, section 6). A window that does not fit is made to."""

    def __init__(self, px: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)):
        if px < 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"px must be >= 1, scale in (0, 1], ratio > 0, but are {px}, {scale}, {ratio}")
        self.px, self.scale, self.ratio = px, scale, ratio

    def windows(self, count: int, h: int, w: int, draws: torch.Generator) -> Tensor:
        """(B, 4): top, left, height, width in whole pixels."""
        area = h * w * uniform(*self.scale, count, draws)
        ratio = uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), count, draws).exp()
        height = (area / ratio).sqrt().round().clamp(1, h)
        width = (area * ratio).sqrt().round().clamp(1, w)
        top = (torch.rand(count, generator=draws) * (h - height + 1)).floor()
        left = (torch.rand(count, generator=draws) * (w - width + 1)).floor()
        return torch.stack([top, left, height, width], dim=1)

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        h, w = batch.images.shape[2:]
        windows = to_device(self.windows(batch.size, h, w, draws), batch.images)
        return batch._replace(images=resized(batch.images, windows, self.px))


def resized(images: Tensor, windows: Tensor, px: int) -> Tensor:
    """Window (top, left, height, width) of each float image to (px, px), bilinear, no pixel from outside the window."""
    steps = (torch.arange(px, device=images.device) + 0.5) / px
    places = []
    for axis, dim in ((0, 2), (1, 3)):
        first, length = windows[:, axis, None], windows[:, axis + 2, None]
        position = first + torch.minimum((steps * length - 0.5).clamp(min=0), length - 1)  # (B, px)
        places.append((2 * position + 1) / images.shape[dim] - 1)  # from -1 to 1 between the outer edges
    rows, columns = places[0][:, :, None].expand(-1, -1, px), places[1][:, None, :].expand(-1, px, -1)
    grid = torch.stack([columns, rows], dim=3).to(images.dtype)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


class ScaleJitter:
    """The short side scaled to a random length in `short_px`, then a random (px, px) crop (Simonyan and Zisserman 2014,
    1409.1556, section 3.1; He et al. 2015, section 3.4: [256, 480] and 224). Positions between pixels are allowed."""

    def __init__(self, px: int, short_px: tuple[int, int]):
        if not 1 <= px <= short_px[0] <= short_px[1]:
            raise ValueError(f"px must be >= 1 and at most short_px, but are {px} and {short_px}")
        self.px, self.short_px = px, short_px

    def check(self, channels: int, image_px: int) -> None:
        if self.px > image_px:
            raise ValueError(f"px must be at most the image's {image_px}, but is {self.px}")

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        h, w = batch.images.shape[2:]
        scale = uniform(*self.short_px, batch.size, draws) / min(h, w)
        side = self.px / scale  # of the window, in the image's own pixels
        top = torch.rand(batch.size, generator=draws) * (h - side)
        left = torch.rand(batch.size, generator=draws) * (w - side)
        windows = to_device(torch.stack([top, left, side, side], dim=1), batch.images)
        return batch._replace(images=resized(batch.images, windows, self.px))


class Affine:
    """Rotation by up to `degrees` either way, shift by up to `translate` of the side, scale within `scale`, shear by up
    to `shear_degrees`, each uniform, about the centre; bilinear, zeros from outside."""

    def __init__(self, degrees: float = 0.0, translate: float = 0.0, scale: tuple[float, float] = (1.0, 1.0),
                 shear_degrees: float = 0.0):
        if not 0 <= degrees <= 180 or not 0 <= shear_degrees < 90:
            raise ValueError(f"degrees must be in [0, 180], shear_degrees in [0, 90), but are {degrees}, "
                             f"{shear_degrees}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be above 0, low before high, but is {scale}")
        self.degrees, self.translate = degrees, in_unit("translate", translate)
        self.scale, self.shear_degrees = scale, shear_degrees

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        b, (h, w) = batch.size, batch.images.shape[2:]
        angle = uniform(-self.degrees, self.degrees, b, draws)
        shift = torch.stack([uniform(-self.translate, self.translate, b, draws) * side for side in (w, h)], dim=1)
        scale = uniform(*self.scale, b, draws)
        shear = uniform(-self.shear_degrees, self.shear_degrees, b, draws)
        matrices = inverse_affine(angle, shift, scale, shear)
        return batch._replace(images=warped(batch.images, to_device(matrices, batch.images)))


def inverse_affine(angle: Tensor, shift: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """(B, 2, 3): from an output place to its input place, (x, y) from the centre in pixels. The forward map shears
    along x, rotates by `angle` degrees clockwise on the screen, scales, then shifts by (x, y)."""
    a, s = torch.deg2rad(angle), torch.deg2rad(shear)
    cos, sin, tan = a.cos(), a.sin(), s.tan()
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    shearing = torch.stack([torch.stack([one, -tan], 1), torch.stack([zero, one], 1)], 1)
    forward = scale[:, None, None] * rotation @ shearing
    inverse = torch.linalg.inv(forward)
    return torch.cat([inverse, -(inverse @ shift[:, :, None])], dim=2)


def warped(images: Tensor, matrices: Tensor) -> Tensor:
    """Each image sampled at the places that its (2, 3) matrix says."""
    b, c, h, w = images.shape
    side = matrices.new_tensor([w / 2, h / 2])
    theta = torch.cat([matrices[:, :, :2] * side[None, None, :] / side[None, :, None],
                       matrices[:, :, 2:] / side[None, :, None]], dim=2)
    places = F.affine_grid(theta, [b, c, h, w], align_corners=False)
    return F.grid_sample(images, places.to(images.dtype), align_corners=False)


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

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        h, w = batch.images.shape[2:]
        centres = torch.stack([torch.randint(0, side, (batch.size,), generator=draws) for side in (h, w)], dim=1)
        return batch._replace(images=with_hole(batch.images, to_device(centres, batch.images), self.px))


def with_hole(images: Tensor, centres: Tensor, px: int) -> Tensor:
    """Zeros in rows and columns [centre - px // 2, centre - px // 2 + px) of each image."""
    inside = []
    for axis, dim in ((0, 2), (1, 3)):
        first = centres[:, axis, None] - px // 2
        places = torch.arange(images.shape[dim], device=images.device)
        inside.append((places >= first) & (places < first + px))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0)
