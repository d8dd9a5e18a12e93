"""Images (B, C, H, W) to the class logits of every pixel (B, K, H, W): dilation in the place of strides.

L.-C. Chen et al., 2014, arXiv 1412.7062 (DeepLab), and 2016, 1606.00915: the last poolings do not stride, the layers
after them are dilated, so that the map has a stride of 8 and the published weights still fit. On it LargeFOV, a 3x3
convolution of rate 12 (2014, section 3.1 and table 2 of 2016), or ASPP, several rates side by side whose scores are
added (2016, section 3.2); then bilinear enlargement.

Differs from the papers: any encoder serves; no conditional random field; `hidden` units.

K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.models.backbones import behead, dilate


class Dilated(nn.Module):
    """`stride`: of the map; `rates`: one is LargeFOV, several are ASPP. Raises ValueError for a stride that the encoder
    has not."""

    def __init__(self, encoder: Any, num_classes: int, in_channels: int, stride: int, rates: Sequence[int], hidden: int,
                 dropout: float):
        super().__init__()
        dilate(encoder, stride, in_channels)
        self.encoder, channels = behead(encoder), encoder.out_channels
        self.branches = nn.ModuleList(nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=rate, dilation=rate), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(hidden, num_classes, 1))
            for rate in rates)

    def forward(self, images: Tensor) -> Tensor:
        map_ = self.encoder.features(images)
        scores = torch.stack([branch(map_) for branch in self.branches]).sum(0)
        return F.interpolate(scores, size=images.shape[2:], mode="bilinear", align_corners=False)
