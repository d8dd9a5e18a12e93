"""Average pooling to a fixed size whose gradient is the same to the bit in every run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AverageTo(nn.Module):
    """Maps (B, C, H, W) to (B, C, side, side), as nn.AdaptiveAvgPool2d, by products with two matrices: the gradient of
    torch's own layer is summed in no fixed order on a GPU, so torch refuses it in a deterministic run there. A map that
    has this size already is returned as it is."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] == (self.side, self.side):
            return x
        rows, columns = (averaging_matrix(size, self.side, x.device).to(x) for size in x.shape[2:])
        return rows @ x @ columns.T


def average_to(x: Tensor, side: int) -> Tensor:
    """AverageTo on a GPU, and torch's own layer elsewhere, which is faster."""
    return AverageTo(side)(x) if x.is_cuda else F.adaptive_avg_pool2d(x, side)


def averaging_matrix(size: int, side: int, device: torch.device | None = None) -> Tensor:
    """(side, size): row i averages the values from floor(i * size / side) to ceil((i + 1) * size / side)."""
    i, place = torch.arange(side, device=device)[:, None], torch.arange(size, device=device)
    start, end = i * size // side, -(-(i + 1) * size // side)
    return ((place >= start) & (place < end)) / (end - start)
