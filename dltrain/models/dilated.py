"""Maps images (B, C, H, W) to the class logits of every pixel (B, K, H, W): dilation in the place of strides.

L.-C. Chen et al., 2014, arXiv 1412.7062 (DeepLab), and 2016, 1606.00915: the last pooling layers lose their stride and
the layers after them are dilated, so that the map has stride 8 and the published weights still fit. This map is read by
LargeFOV, a 3x3 convolution of rate 12 (2014, section 3.1; table 2 of 2016), or by ASPP, convolutions of several rates
side by side whose logits are added (2016, section 3.2). Bilinear interpolation enlarges the logits to the image.

Differs from the papers: any backbone serves; no conditional random field; `hidden` channels, not 1,024.

K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dltrain.contracts import Backbone
from dltrain.models.backbones import remove_head
from dltrain.models.dilation import dilate
from dltrain.models.fixed_order import enlarge


class Dilated(nn.Module):
    """`stride`: that of the map; `rates`: one for LargeFOV, several for ASPP. Raises ValueError for a stride that no
    stage of the backbone has."""

    def __init__(self, backbone: Backbone, num_classes: int, stride: int, rates: Sequence[int], hidden: int,
                 dropout: float):
        super().__init__()
        dilate(backbone, stride)
        self.backbone, channels = remove_head(backbone), backbone.out_channels
        self.branches = nn.ModuleList(nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=rate, dilation=rate), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(hidden, num_classes, 1))
            for rate in rates)

    def forward(self, images: Tensor) -> Tensor:
        map_ = self.backbone.features(images)
        logits = torch.stack([branch(map_) for branch in self.branches]).sum(0)
        return enlarge(logits, images.shape[2:])
