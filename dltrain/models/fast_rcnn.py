"""The two nets before Faster R-CNN, with proposals that are given: the trunk sees the image once, or each region alone.

R. Girshick et al., "Rich feature hierarchies" (R-CNN), 2013, arXiv 1311.2524. R. Girshick, "Fast R-CNN", 2015,
1504.08083. Both here share with Faster R-CNN the trunk, the head, the losses, the sampling and the suppression
(torchvision's RoIHeads), so that what differs is what the papers changed: R-CNN warps each region's pixels to a square
and takes it through the trunk; Fast R-CNN takes the image through the trunk and pools each region from its map.

Differs from the papers: proposals are a dense grid of boxes in the place of selective search; R-CNN is trained at once
by a softmax and a box regression, not by fine-tuning, SVMs and ridge regression one after the other; a region is warped
by RoIAlign on the image, at its own boundary (the paper adds 16 px of context).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import clip_boxes_to_image, remove_small_boxes, roi_align

from dltrain.models.regions import Trunk, region_head, region_pool

Target = dict[str, Tensor]
CROPS_AT_ONCE = 1024  # regions that R-CNN's trunk sees together


class FastRCNN(nn.Module):
    """`box_px`: sides of the square boxes of the grid, each also in the `ratios` height : width, with `step` of its
    side between neighbours. The other keys as FasterRCNN's."""

    losses = ("loss_classifier", "loss_box_reg")

    def __init__(self, backbone: Any, num_classes: int, box_px: Sequence[int], ratios: Sequence[float], step: float,
                 short_px: int, long_px: int, hidden: int, roi_pool: str = "align", stride: int = 4,
                 roi_batch: int = 128, roi_foreground: float = 0.25, score_threshold: float = 0.05, nms: float = 0.5):
        super().__init__()
        self.box_px, self.ratios, self.step = tuple(box_px), tuple(ratios), step
        self.transform = GeneralizedRCNNTransform(short_px, long_px, [0.0] * 3, [1.0] * 3)
        self.trunk, pool = self.parts(backbone, roi_pool, stride)
        head, predictor = region_head(backbone.out_channels, hidden, num_classes)
        self.heads = RoIHeads(pool, head, predictor, 0.5, 0.5, roi_batch, roi_foreground, None, score_threshold, nms,
                              100)

    def parts(self, backbone: Any, roi_pool: str, stride: int) -> tuple[nn.Module, Any]:
        """What turns images into maps, and what cuts the regions' pieces (N, C, 7, 7) out of them."""
        return Trunk(backbone), region_pool(roi_pool, backbone, stride)

    def regions(self, images: list[Tensor], targets: list[Target] | None) -> tuple[list[Target], dict[str, Tensor]]:
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        scaled, targets = self.transform(images, targets)
        maps = self.trunk(scaled.tensors)
        maps = {"0": maps} if isinstance(maps, Tensor) else maps
        proposals = [grid(h, w, self.box_px, self.ratios, self.step).to(scaled.tensors) for h, w in scaled.image_sizes]
        found, losses = self.heads(maps, proposals, scaled.image_sizes, targets)
        return self.transform.postprocess(found, scaled.image_sizes, sizes), losses

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        return self.regions(images, shifted)[1]

    def detect(self, images: list[Tensor]) -> list[Target]:
        """As FasterRCNN.detect."""
        return [{**one, "labels": one["labels"] - 1} for one in self.regions(images, None)[0]]


class RCNN(FastRCNN):
    """`stride`: of the backbone's map; a region is warped to 7 strides, so that its map is 7 x 7."""

    def parts(self, backbone: Any, roi_pool: str, stride: int) -> tuple[nn.Module, Any]:
        return nn.Identity(), EachAlone(Trunk(backbone), 7 * stride)


class EachAlone(nn.Module):
    """Each region's pixels, warped to a square, through the trunk."""

    def __init__(self, trunk: nn.Module, px: int):
        super().__init__()
        self.trunk, self.px = trunk, px

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_shapes: Any) -> Tensor:
        warped = roi_align(maps["0"], boxes, self.px, sampling_ratio=2, aligned=True)
        if self.training:  # batch normalisation sees all of them
            return self.trunk(warped)
        return torch.cat([self.trunk(some) for some in warped.split(CROPS_AT_ONCE)])


def grid(height: int, width: int, box_px: Sequence[int], ratios: Sequence[float], step: float) -> Tensor:
    """(N, 4) boxes of all sides and ratios, `step` of their own sides apart, from edge to edge of the image."""
    found = []
    for side in box_px:
        for ratio in ratios:
            h, w = min(height, side * ratio**0.5), min(width, side / ratio**0.5)
            tops, lefts = (torch.linspace(0, length - size, 1 + math.ceil((length - size) / (step * size)))
                           for length, size in ((height, h), (width, w)))
            corners = torch.cartesian_prod(tops, lefts).flip(1)  # x, y
            found.append(torch.cat([corners, corners + torch.tensor([w, h])], 1))
    boxes = clip_boxes_to_image(torch.cat(found), (height, width))
    return boxes[remove_small_boxes(boxes, 1.0)]
