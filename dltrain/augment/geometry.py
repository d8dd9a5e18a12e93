"""Transforms that move pixels. Each sample has its own draw, made on the CPU and moved along: no host sync."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import ClassificationBatch


def to_device(draws: Tensor, images: Tensor) -> Tensor:
    if images.device.type == "cuda":
        draws = draws.pin_memory()
    return draws.to(images.device, non_blocking=True)


class PadCrop:
    """Zero-pads each side by `padding_px` (>= 0) and crops the old size at one of (2 padding + 1)^2 places, each
    equally likely (He et al. 2015, section 4.2: 4 px at 32x32)."""

    def __init__(self, padding_px: int):
        if padding_px < 0:
            raise ValueError(f"padding_px must be >= 0, but is {padding_px}")
        self.padding_px = padding_px

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        offsets = torch.randint(0, 2 * self.padding_px + 1, (batch.size, 2), generator=draws)  # (B, 2): y, x
        return batch._replace(images=crop(batch.images, self.padding_px, to_device(offsets, batch.images)))


def crop(images: Tensor, padding_px: int, offsets: Tensor) -> Tensor:
    """Sample i of (B, C, H, W), zero-padded, from row offsets[i, 0] and column offsets[i, 1] on; the same shape."""
    b, c, h, w = images.shape
    padded = F.pad(images, (padding_px,) * 4)
    rows = offsets[:, 0, None] + torch.arange(h, device=images.device)  # (B, H)
    columns = offsets[:, 1, None] + torch.arange(w, device=images.device)  # (B, W)
    flat = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W): places in a flattened plane
    return padded.flatten(2).gather(2, flat.reshape(b, 1, h * w).expand(b, c, h * w)).reshape(b, c, h, w)


class HorizontalFlip:
    """Mirrors left and right with chance `p` in [0, 1]."""

    def __init__(self, p: float = 0.5):
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], but is {p}")
        self.p = p

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        mirrored = to_device(torch.rand(batch.size, generator=draws) < self.p, batch.images)
        return batch._replace(images=torch.where(mirrored[:, None, None, None], batch.images.flip(3), batch.images))
