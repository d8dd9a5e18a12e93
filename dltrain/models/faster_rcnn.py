"""Maps images to boxes: a region proposal network and a classifier of regions on one backbone, built from torchvision.

S. Ren, K. He, R. Girshick, J. Sun, "Faster R-CNN", 2015, arXiv 1506.01497. Both are trained together (section 3.2,
"approximate joint training"). With `pyramid`: T.-Y. Lin et al., "Feature Pyramid Networks", 2016, arXiv 1612.03144.

Differs from the paper: RoIAlign (K. He et al., 2017, 1703.06870) in the place of RoI pooling unless `roi_pool=pool`.

B images (C, Hi, Wi), N boxes (x1, y1, x2, y2) in pixels, K classes; the class for background is added here, and removed
from what is returned.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dltrain.contracts import Backbone
from dltrain.models.backbones import output_stride, remove_head, stage_maps, stage_shapes
from dltrain.models.fixed_order import align
from dltrain.models.regions import REGION_PX, OneMapRoIPool, RegionHeads, RegionPool, region_head

PYRAMID_CHANNELS, PYRAMID_LEVELS = 256, 4


class OneMap(nn.Module):
    """A backbone as torchvision's detectors call it: images (B, C, H, W) to maps by level, here its last one alone."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.body, self.out_channels = backbone, backbone.out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": self.body.features(images)}


class Pyramid(nn.Module):
    """The same with a feature pyramid: the maps of the last four stages, merged from the top down to 256 channels each,
    and a coarser one by pooling for the proposals alone. Raises ValueError for a backbone of fewer stages."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        shapes = stage_shapes(backbone, 3)[-PYRAMID_LEVELS:]
        if len(shapes) < PYRAMID_LEVELS:
            raise ValueError(f"pyramid must be false: {type(backbone).__name__} has fewer than {PYRAMID_LEVELS} stages")
        self.body, self.out_channels = backbone, PYRAMID_CHANNELS
        self.fpn = FeaturePyramidNetwork([shape.channels for shape in shapes], PYRAMID_CHANNELS, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = stage_maps(self.body, images)[-PYRAMID_LEVELS:]
        merged: dict[str, Tensor] = self.fpn(OrderedDict((str(level), map_) for level, map_ in enumerate(maps)))
        return merged


class Scaling(GeneralizedRCNNTransform):
    """Scales images of any channels, and their boxes, and pads the images to one size. They are normalised already."""

    def __init__(self, short_px: int, long_px: int):
        super().__init__(short_px, long_px, [0.0], [1.0])

    def normalize(self, image: Tensor) -> Tensor:
        return image


class RegionAlign(MultiScaleRoIAlign):
    """RoIAlign (K. He et al., 2017, arXiv 1703.06870) from the maps of one or several levels; a region is read from the
    level that its size decides (T.-Y. Lin et al., 2016, 1612.03144, equation 1)."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        maps = [map_ for name, map_ in x.items() if name in self.featmap_names]
        if not (maps[0].is_cuda and torch.are_deterministic_algorithms_enabled()):  # as fixed_order.py, with no call
            regions: Tensor = super().forward(x, boxes, image_shapes)
            return regions
        longest = max(height for height, _ in image_shapes)
        powers = [round(math.log2(longest / map_.shape[2])) for map_ in maps]  # of two, the strides
        pooled = [align(map_, boxes, 0.5**power, self.output_size, self.sampling_ratio)
                  for map_, power in zip(maps, powers, strict=True)]
        corners = torch.cat(boxes)
        side = ((corners[:, 2:] - corners[:, :2]).prod(1)).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(side / self.canonical_scale) + 1e-6)
        level = level.clamp(powers[0], powers[-1])[:, None, None, None]
        out = pooled[0]
        for power, of_level in zip(powers[1:], pooled[1:], strict=True):
            out = torch.where(level == power, of_level, out)
        return out


def region_pool(kind: str, levels: Sequence[str], stride: int) -> RegionPool:
    """`align`: RoIAlign (K. He et al., 2017, arXiv 1703.06870) on the maps of all `levels`; `pool`: RoI max pooling on
    one map of this stride. Raises ValueError for pooling from several levels."""
    if kind == "align":
        region_align: RegionPool = RegionAlign(list(levels), REGION_PX, 2)
        return region_align
    if len(levels) > 1:
        raise ValueError("roi_pool must be align where pyramid=true: roi_pool=pool reads one map")
    return OneMapRoIPool(REGION_PX, stride)


def fixed_sizes(levels: Sequence[Sequence[Sequence[float]]]) -> AnchorGenerator:
    """Anchors of these sizes (width, height) at every position of each map."""
    count = len(levels[0])
    generator = AnchorGenerator(((1,) * count,) * len(levels), ((1.0,),) * len(levels))
    halves = [torch.tensor([list(size) for size in level]).float() / 2 for level in levels]
    generator.cell_anchors = [torch.cat([-half, half], 1) for half in halves]
    return generator


class FasterRCNN(nn.Module):
    """`anchor_px`: sides of the square anchors, each also in the `ratios` height : width; with `pyramid` one side for
    each of its five maps. `anchor_boxes`: as many sizes [width, height] in their place, by increasing area, of which
    each map of a pyramid gets as many; with `anchors=auto` they are found from the training boxes (anchors.py) before
    the model is built. `short_px`: images are scaled so that their short side has this many pixels and their long
    side at most `long_px`. `rpn_candidates` and `test_candidates`: how many of the best anchors of a map go into
    non-maximum suppression, of which `rpn_proposals` and `test_proposals` are kept; None for twice as many as those.

    Raises ValueError for a pyramid with another number of anchor sides, and with roi_pool=pool; for sizes that are not
    as many as anchor_px times ratios; and for anchors=auto without them."""

    losses = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")

    def __init__(self, backbone: Backbone, num_classes: int, anchor_px: Sequence[int], ratios: Sequence[float],
                 short_px: int, long_px: int, hidden: int, pyramid: bool = False, roi_pool: str = "align",
                 rpn_batch: int = 256, rpn_proposals: int = 2000, test_proposals: int = 300, roi_batch: int = 128,
                 roi_foreground: float = 0.25, score_threshold: float = 0.05, nms: float = 0.5,
                 rpn_candidates: int | None = None, test_candidates: int | None = None, anchors: str = "fixed",
                 anchor_boxes: Sequence[Sequence[float]] | None = None):
        super().__init__()
        remove_head(backbone)
        levels, sides = ["0"], [tuple(anchor_px)]
        if pyramid:
            levels, sides = [str(level) for level in range(PYRAMID_LEVELS)], [(side,) for side in anchor_px]
            if len(sides) != PYRAMID_LEVELS + 1:
                raise ValueError(f"anchor_px must have {PYRAMID_LEVELS + 1} sides, one for each map of the pyramid, "
                                 f"but is {list(anchor_px)}")
        generator = AnchorGenerator(tuple(sides), (tuple(ratios),) * len(sides))
        if anchor_boxes is not None:
            if len(anchor_boxes) != len(anchor_px) * len(ratios) or not all(
                    len(size) == 2 and min(size) > 0 for size in anchor_boxes):
                raise ValueError(f"anchor_boxes must be {len(anchor_px) * len(ratios)} sizes [width, height] above 0, "
                                 f"as many as anchor_px times ratios, but is {[*map(list, anchor_boxes)]}")
            of_map = len(anchor_boxes) // len(sides)
            generator = fixed_sizes([anchor_boxes[i * of_map : (i + 1) * of_map] for i in range(len(sides))])
        elif anchors == "auto":
            raise ValueError("anchors=auto needs the training boxes, which are not read here; set anchor_boxes")
        stride = output_stride(backbone)
        body = Pyramid(backbone) if pyramid else OneMap(backbone)
        head, predictor = region_head(body.out_channels, hidden, num_classes)
        self.net = TorchvisionFasterRCNN(
            body, None, min_size=short_px, max_size=long_px, image_mean=[0.0], image_std=[1.0],
            rpn_anchor_generator=generator,
            rpn_pre_nms_top_n_train=rpn_candidates or 2 * rpn_proposals, rpn_post_nms_top_n_train=rpn_proposals,
            rpn_pre_nms_top_n_test=test_candidates or 2 * test_proposals, rpn_post_nms_top_n_test=test_proposals,
            rpn_batch_size_per_image=rpn_batch, box_head=head, box_predictor=predictor)
        self.net.transform = Scaling(short_px, long_px)
        self.net.roi_heads = RegionHeads(region_pool(roi_pool, levels, stride), head, predictor, 0.5, 0.5, roi_batch,
                                         roi_foreground, None, score_threshold, nms, 100)

    @property
    def backbone(self) -> Backbone:
        backbone: Backbone = self.net.backbone.body
        return backbone

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The four `losses`: loss_objectness and loss_rpn_box_reg are those of the proposals."""
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        losses: dict[str, Tensor] = self.net(images, shifted)
        return losses

    def proposals(self, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The region proposal network's boxes (N, 4) of each image, best first, and all anchors (A, 4), both in the
        image's pixels. In evaluation mode."""
        scaled, _ = self.net.transform(images)
        maps = self.net.backbone(scaled.tensors)
        boxes, _ = self.net.rpn(scaled, maps)
        anchors = self.net.rpn.anchor_generator(scaled, list(maps.values()))
        sizes = [(size, image.shape[1:]) for size, image in zip(scaled.image_sizes, images, strict=True)]
        return ([resize_boxes(proposed, *size) for proposed, size in zip(boxes, sizes, strict=True)],
                [resize_boxes(anchor, *size) for anchor, size in zip(anchors, sizes, strict=True)])

    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """boxes (N, 4), labels (N,) in [0, K), scores (N,), best first. In evaluation mode."""
        return [{**boxes, "labels": boxes["labels"] - 1} for boxes in self.net(images)]
