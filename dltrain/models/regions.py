"""What detectors that classify regions share: the fully connected head, and RoI max pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import RoIPool

from dltrain.models.fixed_order import MaxOfRegions, needs_fixed_order

REGION_PX = 7  # side of the map that the head reads of each region

# maps by level, the boxes (Ni, 4) of each image in its pixels, the images' sizes; to (sum of Ni, C, 7, 7)
RegionPool = Callable[[dict[str, Tensor], list[Tensor], list[tuple[int, int]]], Tensor]


class OneMapRoIPool(nn.Module):
    """RoI max pooling (R. Girshick, 2015, Fast R-CNN, arXiv 1504.08083, section 2.1) from the single map of a
    backbone, called as torchvision calls MultiScaleRoIAlign."""

    def __init__(self, output_size: int, stride: int):
        super().__init__()
        self.pool = RoIPool(output_size, 1 / stride)

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        regions: Tensor
        if needs_fixed_order(maps["0"]):
            numbered = torch.cat([F.pad(of_image, (1, 0), value=image) for image, of_image in enumerate(boxes)])
            regions = MaxOfRegions.apply(maps["0"], numbered, self.pool.spatial_scale, self.pool.output_size)
        else:
            regions = self.pool(maps["0"], boxes)
        return regions


def region_head(in_channels: int, hidden: int, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """Two fully connected layers on a region's map, and the layers for the class logits, background first, and the
    boxes of each class."""
    return TwoMLPHead(in_channels * REGION_PX**2, hidden), FastRCNNPredictor(hidden, num_classes + 1)
