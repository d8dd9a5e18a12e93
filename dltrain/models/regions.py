"""What detectors that classify regions share: the fully connected head, and pooling regions from maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, RoIPool

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
        regions: Tensor = self.pool(maps["0"], boxes)
        return regions


def region_pool(kind: str, levels: Sequence[str], stride: int) -> RegionPool:
    """`align`: RoIAlign (K. He et al., 2017, arXiv 1703.06870) on the maps of all `levels`; `pool`: RoI max pooling on
    one map of this stride. Raises ValueError for pooling from several levels."""
    if kind == "align":
        align: RegionPool = MultiScaleRoIAlign(list(levels), REGION_PX, 2)
        return align
    if len(levels) > 1:
        raise ValueError("roi_pool must be align where pyramid=true: roi_pool=pool reads one map")
    return OneMapRoIPool(REGION_PX, stride)


def region_head(in_channels: int, hidden: int, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """Two fully connected layers on a region's map, and the layers for the class logits, background first, and the
    boxes of each class."""
    return TwoMLPHead(in_channels * REGION_PX**2, hidden), FastRCNNPredictor(hidden, num_classes + 1)
