"""Images to boxes: a region proposal network and a classifier of regions on one trunk, of torchvision's own parts.

S. Ren, K. He, R. Girshick, J. Sun, "Faster R-CNN", 2015, arXiv 1506.01497. Joint training of both (section 3.2's
"approximate joint training"), RoIAlign in the place of RoI pooling (K. He et al., 2017, 1703.06870) unless
`roi_pool=pool`.

B images (C, Hi, Wi), N boxes (x1, y1, x2, y2) in pixels, K classes; the background is added here and taken off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as Net
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, RoIPool


class Trunk(nn.Module):
    """A classifier without its head: anything with `features` and `out_channels`."""

    def __init__(self, classifier: Any):
        super().__init__()
        self.classifier = classifier
        self.out_channels = classifier.out_channels
        classifier.head = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


class OneMapRoIPool(nn.Module):
    """RoI max pooling (R. Girshick, 2015, Fast R-CNN, section 2.1) on the trunk's one map."""

    def __init__(self, output_size: int, stride: int):
        super().__init__()
        self.pool = RoIPool(output_size, 1 / stride)

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_shapes: Any) -> Tensor:
        return self.pool(maps["0"], boxes)


class FasterRCNN(nn.Module):
    """`anchor_px`: sides of the square anchors, each also in the `ratios` height : width; `short_px`: images are scaled
    so that their short side has so many pixels, their long side at most `long_px`."""

    losses = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")

    def __init__(self, backbone: Any, num_classes: int, anchor_px: Sequence[int], ratios: Sequence[float],
                 short_px: int, long_px: int, hidden: int, roi_pool: str = "align", stride: int = 4,
                 rpn_batch: int = 256, rpn_proposals: int = 2000, test_proposals: int = 300, roi_batch: int = 128,
                 roi_foreground: float = 0.25, score_threshold: float = 0.05, nms: float = 0.5):
        super().__init__()
        trunk = Trunk(backbone)
        self.net = Net(
            trunk, None, min_size=short_px, max_size=long_px, image_mean=[0.0] * 3, image_std=[1.0] * 3,
            rpn_anchor_generator=AnchorGenerator((tuple(anchor_px),), (tuple(ratios),)),
            rpn_pre_nms_top_n_train=2 * rpn_proposals, rpn_post_nms_top_n_train=rpn_proposals,
            rpn_pre_nms_top_n_test=2 * test_proposals, rpn_post_nms_top_n_test=test_proposals,
            rpn_batch_size_per_image=rpn_batch, box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
            box_head=TwoMLPHead(trunk.out_channels * 49, hidden),
            box_predictor=FastRCNNPredictor(hidden, num_classes + 1),
            box_batch_size_per_image=roi_batch, box_positive_fraction=roi_foreground, box_score_thresh=score_threshold,
            box_nms_thresh=nms)
        if roi_pool == "pool":
            self.net.roi_heads.box_roi_pool = OneMapRoIPool(7, stride)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The four `losses`: of the proposals loss_objectness and loss_rpn_box_reg, of the regions the others."""
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        found: dict[str, Tensor] = self.net(images, shifted)
        return found

    def proposals(self, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The region proposal network's boxes (N, 4) of each image, best first, and all anchors (A, 4), both in the
        scaled image's pixels, which are the image's where short_px is its short side. In evaluation mode."""
        scaled, _ = self.net.transform(images)
        maps = {"0": self.net.backbone(scaled.tensors)}
        boxes, _ = self.net.rpn(scaled, maps)
        return boxes, self.net.rpn.anchor_generator(scaled, list(maps.values()))

    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """boxes (N, 4), labels (N,) in [0, K), scores (N,), best first. In evaluation mode."""
        found = self.net(images)
        return [{**one, "labels": one["labels"] - 1} for one in found]
