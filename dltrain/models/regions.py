"""What detectors that classify regions share: the fully connected head, its losses, and RoI max pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import RoIPool

from dltrain.contracts import ClassLossOf
from dltrain.models.fixed_order import MaxOfRegions, needs_fixed_order

REGION_PX = 7  # side of the map that the head reads of each region

# maps by level, the boxes (Ni, 4) of each image in its pixels, the images' sizes; to (sum of Ni, C, 7, 7)
RegionPool = Callable[[dict[str, Tensor], list[Tensor], list[tuple[int, int]]], Tensor]


class RegionHeads(RoIHeads):
    """torchvision's, with a loss of the classes that may be another than their cross-entropy."""

    background = 0
    class_loss: ClassLossOf | None = None

    def forward(self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]],
                targets: list[dict[str, Tensor]] | None = None) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """In training mode the losses alone, else the boxes alone. `targets`: labels in [1, K]."""
        if targets is None or not self.training:
            boxes, losses = super().forward(features, proposals, image_shapes, targets)
            return boxes, losses
        proposals, _, labels, regression_targets = self.select_training_samples(proposals, targets)
        regions = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, codes = self.box_predictor(regions)
        loss_classifier, loss_box_reg = fastrcnn_loss(logits, codes, labels, regression_targets)
        if self.class_loss is not None:
            loss_classifier = self.class_loss(logits, torch.cat(labels))
        return [], {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg}


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
