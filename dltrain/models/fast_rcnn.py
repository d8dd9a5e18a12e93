"""The two detectors before Faster R-CNN, whose proposals come from outside: Fast R-CNN and R-CNN.

R. Girshick et al., "Rich feature hierarchies" (R-CNN), 2013, arXiv 1311.2524. R. Girshick, "Fast R-CNN", 2015,
1504.08083. Both share with Faster R-CNN the backbone, the head, the losses, the sampling of regions and the suppression
of overlapping boxes (torchvision's RoIHeads), so that they differ in what the papers changed: R-CNN warps the pixels of
each region to a square and takes it through the backbone alone; Fast R-CNN takes the image through the backbone once
and pools each region from its map.

Differs from the papers: proposals are a dense grid of boxes in the place of selective search; R-CNN is trained in one
stage with a softmax and a box regression, not in three (fine-tuning, SVMs, ridge regression); a region is warped by
RoIAlign on the image, without the 16 px of context around it.

B images (C, Hi, Wi), N boxes (x1, y1, x2, y2) in pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from dltrain.batches import to_device
from dltrain.contracts import Backbone
from dltrain.models.backbones import output_stride, remove_head
from dltrain.models.faster_rcnn import Scaling, region_pool
from dltrain.models.regions import REGION_PX, RegionHeads, RegionPool, region_head

Target = dict[str, Tensor]
Features = Callable[[Tensor], Tensor] | None
CROPS_AT_ONCE = 1024  # regions that go through R-CNN's backbone together in evaluation
GRIDS_KEPT = 64  # sizes of images whose grids of boxes stay in memory


class GridRegions(nn.Module):
    """Classifies and regresses the boxes of a dense grid over each image, from the features that `pool` reads in them.

    `box_px`: sides of the square boxes, each also in the `ratios` height : width; neighbours lie `step` of their side
    apart. The other keys are those of FasterRCNN."""

    losses = ("loss_classifier", "loss_box_reg")

    def __init__(self, channels: int, pool: RegionPool, num_classes: int, box_px: Sequence[int],
                 ratios: Sequence[float], step: float, short_px: int, long_px: int, hidden: int, roi_batch: int,
                 roi_foreground: float, score_threshold: float, nms: float):
        super().__init__()
        self.box_px, self.ratios, self.step = tuple(box_px), tuple(ratios), step
        self.transform = Scaling(short_px, long_px)
        head, predictor = region_head(channels, hidden, num_classes)
        self.heads = RegionHeads(pool, head, predictor, 0.5, 0.5, roi_batch, roi_foreground, None, score_threshold, nms,
                                 100)

    def classify(self, images: list[Tensor], targets: list[Target] | None, features: Features
                 ) -> tuple[list[Target], dict[str, Tensor]]:
        """The boxes with labels in [1, K], and the losses where there are targets. `features`: the scaled images
        (B, C, H, W) to the map that regions are pooled from; None: they are pooled from the images themselves."""
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        scaled, targets = self.transform(images, targets)
        pixels = scaled.tensors
        proposals = [to_device(kept_grid(int(h), int(w), self.box_px, self.ratios, self.step).to(pixels.dtype),
                               pixels.device) for h, w in scaled.image_sizes]
        map_ = features(pixels) if features is not None else pixels
        boxes, losses = self.heads({"0": map_}, proposals, scaled.image_sizes, targets)
        return self.transform.postprocess(boxes, scaled.image_sizes, sizes), losses

    def forward(self, images: list[Tensor], targets: list[Target], features: Features = None) -> dict[str, Tensor]:
        """The losses of training, by the names in `losses`."""
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        return self.classify(images, shifted, features)[1]

    def detect(self, images: list[Tensor], features: Features = None) -> list[Target]:
        """As FasterRCNN.detect."""
        return [{**boxes, "labels": boxes["labels"] - 1} for boxes in self.classify(images, None, features)[0]]


class FastRCNN(nn.Module):
    """Takes each image through the backbone once and pools the regions from its map. `roi_pool`: align or pool; the
    other keys: see GridRegions."""

    losses = GridRegions.losses

    def __init__(self, backbone: Backbone, num_classes: int, box_px: Sequence[int], ratios: Sequence[float],
                 step: float, short_px: int, long_px: int, hidden: int, roi_pool: str = "align", roi_batch: int = 128,
                 roi_foreground: float = 0.25, score_threshold: float = 0.05, nms: float = 0.5):
        super().__init__()
        self.backbone = remove_head(backbone)
        pool = region_pool(roi_pool, ["0"], output_stride(backbone))
        self.regions = GridRegions(backbone.out_channels, pool, num_classes, box_px, ratios, step, short_px, long_px,
                                   hidden, roi_batch, roi_foreground, score_threshold, nms)

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.regions(images, targets, self.backbone.features)
        return losses

    def detect(self, images: list[Tensor]) -> list[Target]:
        """As FasterRCNN.detect."""
        return self.regions.detect(images, self.backbone.features)


class RCNN(nn.Module):
    """Takes the pixels of each region through the backbone alone, warped to a square of seven strides, so that its map
    is 7 x 7. The keys: see GridRegions."""

    losses = GridRegions.losses

    def __init__(self, backbone: Backbone, num_classes: int, box_px: Sequence[int], ratios: Sequence[float],
                 step: float, short_px: int, long_px: int, hidden: int, roi_batch: int = 128,
                 roi_foreground: float = 0.25, score_threshold: float = 0.05, nms: float = 0.5):
        super().__init__()
        self.backbone = remove_head(backbone)
        self.crop_px = REGION_PX * output_stride(backbone)
        self.regions = GridRegions(backbone.out_channels, self.crop_maps, num_classes, box_px, ratios, step, short_px,
                                   long_px, hidden, roi_batch, roi_foreground, score_threshold, nms)

    def crop_maps(self, images: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """The map (N, C, 7, 7) of each region of all images."""
        numbered = torch.cat([F.pad(of_image, (1, 0), value=image) for image, of_image in enumerate(boxes)])
        crops = torch.ops.torchvision.roi_align(images["0"], numbered, 1.0, self.crop_px, self.crop_px, 2, True)
        if self.training:  # batch normalisation needs all of them together
            return self.backbone.features(crops)
        return torch.cat([self.backbone.features(some) for some in crops.split(CROPS_AT_ONCE)])

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.regions(images, targets)
        return losses

    def detect(self, images: list[Tensor]) -> list[Target]:
        """As FasterRCNN.detect."""
        return self.regions.detect(images)


@lru_cache(maxsize=GRIDS_KEPT)
@torch.inference_mode(False)
def kept_grid(height: int, width: int, box_px: tuple[int, ...], ratios: tuple[float, ...], step: float) -> Tensor:
    """As `grid`, the same tensor for the same arguments: it is a constant of an exported graph."""
    return grid(height, width, box_px, ratios, step)


def grid(height: int, width: int, box_px: Sequence[int], ratios: Sequence[float], step: float) -> Tensor:
    """(N, 4) boxes of all sides and ratios, `step` of their own sides apart, from edge to edge of the image."""
    boxes = []
    for side in box_px:
        for ratio in ratios:
            h, w = min(height, side * ratio**0.5), min(width, side / ratio**0.5)
            tops, lefts = (torch.linspace(0, length - size, 1 + math.ceil((length - size) / (step * size)))
                           for length, size in ((height, h), (width, w)))
            corners = torch.cartesian_prod(tops, lefts).flip(1)  # x, y
            boxes.append(torch.cat([corners, corners + torch.tensor([w, h])], 1))
    inside = clip_boxes_to_image(torch.cat(boxes), (height, width))
    return inside[remove_small_boxes(inside, 1.0)]
