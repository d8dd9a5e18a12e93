"""Transforms that move pixels, and with them masks and boxes: what they share, pad-and-crop, and the mirror.

Each sample has its own draw, made on the CPU and moved along: no host sync. B batch, C channels, H, W height and width;
a place is measured in pixels from the image's upper left corner, so that the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import IGNORED_PIXEL

LEAST_VISIBLE = 0.25  # a box that keeps less of its area inside the new image is dropped


def to_device(draws: Tensor, images: Any) -> Tensor:
    device = (images if isinstance(images, Tensor) else images[0]).device
    if device.type == "cuda":
        draws = draws.pin_memory()
    return draws.to(device, non_blocking=True)


def uniform(low: float, high: float, count: int, draws: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=draws)


def in_unit(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], but is {value}")
    return value


def each(function: Callable[..., Tensor], images: Any, *drawn: Tensor) -> Any:
    """function(images (B, C, H, W), *drawn), with a row of `drawn` for each sample; a list of images (C, Hi, Wi) of
    different sizes goes through it one by one."""
    if isinstance(images, Tensor):
        return function(images, *drawn)
    return [function(image[None], *(rows[i : i + 1] for rows in drawn))[0] for i, image in enumerate(images)]


def sizes(images: Any) -> Tensor:
    """(B, 2) float on the CPU: height and width of each image."""
    return torch.tensor([tuple(image.shape[-2:]) for image in images], dtype=torch.float32)


class Geometric:
    """Base of the transforms that move pixels. A subclass says `draw`, `move` and `matrices`; from these follow
    images, the masks of a SegmentationBatch (nearest pixel; IGNORED_PIXEL from outside) and the boxes of a
    DetectionBatch (the upright hull of the moved corners, cut at the border, dropped where less than LEAST_VISIBLE is
    left)."""

    def draw(self, sizes: Tensor, draws: torch.Generator) -> Tensor:
        """What happens to each sample: (B, ...) on the CPU."""
        raise NotImplementedError

    def move(self, images: Tensor, drawn: Tensor, nearest: bool = False) -> Tensor:
        """(B, C, H, W) to (B, C, H', W'), zero from outside; `nearest` takes values as they are and mixes none."""
        raise NotImplementedError

    def matrices(self, sizes: Tensor, drawn: Tensor) -> Tensor:
        """(B, 2, 3) on the CPU: from an old place (x, y, 1) to its new one."""
        raise NotImplementedError

    def __call__(self, batch: Any, draws: torch.Generator) -> Any:
        before = sizes(batch.images)
        drawn = self.draw(before, draws)
        moved = batch._replace(images=each(self.move, batch.images, drawn))
        if hasattr(batch, "masks"):
            shifted = (batch.masks[:, None] - IGNORED_PIXEL).float()  # zeros from outside become IGNORED_PIXEL
            moved = moved._replace(masks=self.move(shifted, drawn, nearest=True)[:, 0].round().long() + IGNORED_PIXEL)
        if hasattr(batch, "targets"):
            rows = zip(batch.targets, self.matrices(before, drawn), sizes(moved.images), strict=True)
            moved = moved._replace(targets=[moved_target(*row) for row in rows])
        return moved


def moved_target(target: dict[str, Tensor], matrix: Tensor, size: Tensor) -> dict[str, Tensor]:
    """`matrix` (2, 3) applied to boxes (N, 4); what stays visible in `size` (height, width), labels alike."""
    boxes = target["boxes"]
    x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
    corners = torch.stack([x, y, torch.ones_like(x)], dim=2) @ matrix.T.to(boxes)  # (N, 4, 2)
    hull = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    edges = size.flip(0).repeat(2).to(boxes)
    cut = torch.minimum(hull.clamp_min(0), edges)
    kept = area(cut) >= LEAST_VISIBLE * area(hull).clamp_min(1e-6)
    return {name: (cut if name == "boxes" else value)[kept] for name, value in target.items()}


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def affine(xx: Any, xy: Any, x: Any, yx: Any, yy: Any, y: Any) -> Tensor:
    """(B, 2, 3) of rows (xx, xy, x) and (yx, yy, y), each a number or (B,)."""
    like = next(part for part in (x, y, xx) if isinstance(part, Tensor))
    parts = [part if isinstance(part, Tensor) else torch.full_like(like, part) for part in (xx, xy, x, yx, yy, y)]
    return torch.stack(parts, dim=1).reshape(-1, 2, 3)


class PadCrop(Geometric):
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

    def draw(self, sizes: Tensor, draws: torch.Generator) -> Tensor:
        return torch.randint(0, 2 * self.padding_px + 1, (len(sizes), 2), generator=draws)  # (B, 2): y, x

    def move(self, images: Tensor, drawn: Tensor, nearest: bool = False) -> Tensor:
        return crop(images, self.padding_px, drawn, self.mode)

    def matrices(self, sizes: Tensor, drawn: Tensor) -> Tensor:
        y, x = (self.padding_px - drawn.float()).unbind(1)
        return affine(1.0, 0.0, x, 0.0, 1.0, y)


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


class HorizontalFlip(Geometric):
    """Mirrors left and right with chance `p` in [0, 1]."""

    def __init__(self, p: float = 0.5):
        self.p = in_unit("p", p)

    def draw(self, sizes: Tensor, draws: torch.Generator) -> Tensor:
        return torch.rand(len(sizes), generator=draws) < self.p

    def move(self, images: Tensor, drawn: Tensor, nearest: bool = False) -> Tensor:
        chosen = to_device(drawn.nonzero().flatten(), images)  # counted on the CPU: no host sync
        return images.index_copy(0, chosen, images[chosen].flip(3))

    def matrices(self, sizes: Tensor, drawn: Tensor) -> Tensor:
        sign = 1 - 2 * drawn.float()
        return affine(sign, 0.0, drawn * sizes[:, 1], 0.0, 1.0, 0.0)
