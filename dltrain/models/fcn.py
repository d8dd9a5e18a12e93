"""Images (B, C, H, W) to the class logits of every pixel (B, K, H, W): fully convolutional nets with skips.

J. Long, E. Shelhamer, T. Darrell, 2014, arXiv 1411.4038, sections 3.1 to 3.3 and figure 3: the classifier's fully
connected layers are convolutions; their coarse scores, at stride 32, are enlarged twice and added to those of a finer
stage, down to stride 16 (FCN-16s) or 8 (FCN-8s), and then enlarged to the image.

Differs from the paper: any encoder serves, also one that begins at random; the scores of a finer stage are read from
its last map before the next pooling; padding keeps the maps aligned where the paper crops; the layers in the middle
have `hidden` units, not 4,096.

K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.models.backbones import behead, maps, shapes


class FCN(nn.Module):
    """`stride`: of the finest map that is read. `kernel`: side of the first of the two layers on the coarsest map.
    `upsampling`: bilinear, or learned from there (section 3.3). Raises ValueError for a stride that the encoder has
    not, naming those that it has."""

    def __init__(self, encoder: Any, num_classes: int, in_channels: int, stride: int, hidden: int, kernel: int,
                 dropout: float, upsampling: str):
        super().__init__()
        found = shapes(encoder, in_channels)
        last = {stage.stride: place for place, stage in enumerate(found)}
        coarsest = found[-1].stride
        if stride not in last:
            raise ValueError(f"stride must be one of {', '.join(map(str, last))}, the strides of "
                             f"{type(encoder).__name__}, but is {stride}")
        self.encoder, self.stride = behead(encoder), stride
        self.head = nn.Sequential(
            nn.Conv2d(found[-1].channels, hidden, kernel, padding=kernel // 2), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(hidden, num_classes, 1))
        self.places = [last[s] for s in sorted(last, reverse=True) if stride <= s < coarsest]
        self.skips = nn.ModuleList(nn.Conv2d(found[place].channels, num_classes, 1) for place in self.places)
        factors = [before // after for before, after in
                   zip([coarsest, *(found[p].stride for p in self.places)],
                       [*(found[p].stride for p in self.places), 1], strict=True)]
        self.enlarge = nn.ModuleList(Enlarged(num_classes, factor, upsampling == "learned") for factor in factors)
        for parameter in self.skips.parameters():  # at first they add nothing (section 4.2)
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        found = maps(self.encoder, images)
        scores = self.head(found[-1])
        for enlarge, skip, place in zip(self.enlarge, self.skips, self.places, strict=False):
            finer = skip(found[place])
            scores = finer + enlarge(scores, finer.shape[2:])
        enlarged: Tensor = self.enlarge[-1](scores, images.shape[2:])
        return enlarged


class Enlarged(nn.Module):
    """Maps `factor` times as large, bilinear; `learned`: a transposed convolution that begins as that."""

    def __init__(self, channels: int, factor: int, learned: bool):
        super().__init__()
        self.factor = factor
        self.kernel = nn.Parameter(bilinear_kernel(channels, factor)) if learned and factor > 1 else None

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """To (B, C, *size); the sides of `size` are at most `factor` times those of x, and less by what was rounded."""
        if self.kernel is None:
            return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
        s = self.factor
        wide = F.pad(x, (1, 1, 1, 1), mode="replicate")  # so that the border is that of the bilinear kind
        out = F.conv_transpose2d(wide, self.kernel, stride=s, padding=s // 2)
        cut = out[:, :, s : s + size[0], s : s + size[1]]
        missing = [size[0] - cut.shape[2], size[1] - cut.shape[3]]
        return F.pad(cut, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else cut


def bilinear_kernel(channels: int, factor: int) -> Tensor:
    """(C, C, k, k), k = 2 factor - factor % 2: each channel for itself."""
    size = 2 * factor - factor % 2
    centre = factor - 0.5 if size % 2 == 0 else factor - 1.0
    line = 1 - (torch.arange(size) - centre).abs() / factor
    kernel = torch.zeros(channels, channels, size, size)
    kernel[range(channels), range(channels)] = line[:, None] * line
    return kernel
