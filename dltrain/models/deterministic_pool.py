"""Maps (B, C, H, W) averaged to (B, C, side, side), with a gradient that repeats to the bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AverageTo(nn.Module):
    """What nn.AdaptiveAvgPool2d gives, as products with two matrices: its own gradient adds in no fixed order on a GPU,
    and torch refuses it there where runs are deterministic. A map of that size stays as it is."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] == (self.side, self.side):
            return x
        rows, columns = (averages(size, self.side).to(x) for size in x.shape[2:])
        return rows @ x @ columns.T


def averages(size: int, side: int) -> Tensor:
    """(side, size): row i has the mean from floor(i * size / side) to ceil((i + 1) * size / side)."""
    found = torch.zeros(side, size)
    for i in range(side):
        start, end = i * size // side, -(-(i + 1) * size // side)
        found[i, start:end] = 1 / (end - start)
    return found
