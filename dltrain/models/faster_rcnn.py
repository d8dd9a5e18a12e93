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

from dltrain.models.regions import Trunk, region_head, region_pool


class FasterRCNN(nn.Module):
    """`anchor_px`: sides of the square anchors, each also in the `ratios` height : width; on a pyramid one side for
    each of its maps. `short_px`: images are scaled so that their short side has so many pixels, their long side at most
    `long_px`. `stride` of the backbone's map is for roi_pool=pool only.

    Raises ValueError for a pyramid with another number of sides than maps."""

    losses = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")

    def __init__(self, backbone: Any, num_classes: int, anchor_px: Sequence[int], ratios: Sequence[float],
                 short_px: int, long_px: int, hidden: int, roi_pool: str = "align", stride: int = 4,
                 rpn_batch: int = 256, rpn_proposals: int = 2000, test_proposals: int = 300, roi_batch: int = 128,
                 roi_foreground: float = 0.25, score_threshold: float = 0.05, nms: float = 0.5):
        super().__init__()
        trunk = Trunk(backbone)
        sides: tuple[tuple[int, ...], ...] = (tuple(anchor_px),)
        if levels := getattr(backbone, "levels", None):  # torchvision adds a coarser one for the proposals alone
            sides = tuple((side,) for side in anchor_px)
            if len(sides) != len(levels) + 1:
                raise ValueError(f"anchor_px must have {len(levels) + 1} sides, one for each map of the pyramid, but "
                                 f"is {list(anchor_px)}")
        head, predictor = region_head(trunk.out_channels, hidden, num_classes)
        self.net = Net(
            trunk, None, min_size=short_px, max_size=long_px, image_mean=[0.0] * 3, image_std=[1.0] * 3,
            rpn_anchor_generator=AnchorGenerator(sides, (tuple(ratios),) * len(sides)),
            rpn_pre_nms_top_n_train=2 * rpn_proposals, rpn_post_nms_top_n_train=rpn_proposals,
            rpn_pre_nms_top_n_test=2 * test_proposals, rpn_post_nms_top_n_test=test_proposals,
            rpn_batch_size_per_image=rpn_batch, box_roi_pool=region_pool("align", backbone, stride), box_head=head,
            box_predictor=predictor, box_batch_size_per_image=roi_batch, box_positive_fraction=roi_foreground,
            box_score_thresh=score_threshold, box_nms_thresh=nms)
        self.net.roi_heads.box_roi_pool = region_pool(roi_pool, backbone, stride)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The four `losses`: of the proposals loss_objectness and loss_rpn_box_reg, of the regions the others."""
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        found: dict[str, Tensor] = self.net(images, shifted)
        return found

    def proposals(self, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The region proposal network's boxes (N, 4) of each image, best first, and all anchors (A, 4), both in the
        image's pixels. In evaluation mode."""
        scaled, _ = self.net.transform(images)
        maps = self.net.backbone(scaled.tensors)
        maps = {"0": maps} if isinstance(maps, Tensor) else maps
        boxes, _ = self.net.rpn(scaled, maps)
        anchors = self.net.rpn.anchor_generator(scaled, list(maps.values()))
        scales = [image.shape[1] / size[0] for image, size in zip(images, scaled.image_sizes, strict=True)]
        return ([found * scale for found, scale in zip(boxes, scales, strict=True)],
                [found * scale for found, scale in zip(anchors, scales, strict=True)])

    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """boxes (N, 4), labels (N,) in [0, K), scores (N,), best first. In evaluation mode."""
        found = self.net(images)
        return [{**one, "labels": one["labels"] - 1} for one in found]
