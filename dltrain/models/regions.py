"""What a net that reads regions takes from a classifier: its features, without its top.

A trunk has `features`, images (B, C, H, W) to maps, and `out_channels`. Any classifier that has both serves; here are
torchvision's VGG-16 and ResNets, whose published weights fit as they are, and the pyramid over a ResNet.

K. Simonyan, A. Zisserman, 2014, arXiv 1409.1556, configuration D. K. He et al., 2015, 1512.03385, table 1. T.-Y. Lin et
al., "Feature Pyramid Networks", 2016, 1612.03144.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models import vgg
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, RoIPool
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


class Trunk(nn.Module):
    """A classifier without its head, as torchvision's detectors call it. Raises ValueError for one without `features`
    or `out_channels`."""

    def __init__(self, classifier: Any):
        super().__init__()
        if not hasattr(classifier, "features") or not hasattr(classifier, "out_channels"):
            raise ValueError(f"{type(classifier).__name__} must have features and out_channels to serve as a trunk")
        self.classifier = classifier
        self.out_channels: int = classifier.out_channels
        classifier.head = nn.Identity()

    def forward(self, images: Tensor) -> Any:
        return self.classifier.features(images)


class VGG16(nn.Module):
    """The 13 convolutions, whose maps have a sixteenth of the image's sides: the last pooling is left out (Fast R-CNN,
    1504.08083, section 2.2), and conv1 and conv2 are not trained (section 4.5)."""

    out_channels = 512

    def __init__(self, in_channels: int = 3):
        super().__init__()
        if in_channels != 3:
            raise ValueError(f"in_channels must be 3, but is {in_channels}")
        self.features = vgg.vgg16(weights=None).features[:-1]
        for layer in self.features[:10]:
            layer.requires_grad_(False)


class Pyramid(nn.Module):
    """The pyramid of five maps of 256 channels over a ResNet, strides 4 to 64. As in torchvision's own detectors the
    stem and the first stage rest, and batch normalisation is fixed where `frozen`, which is for published weights."""

    def __init__(self, trunk: Any, frozen: bool):
        super().__init__()
        if frozen:
            fix_statistics(trunk)
            for part in (trunk.conv1, trunk.layer1):
                part.requires_grad_(False)
        widths = [trunk.out_channels // 8 << stage for stage in range(4)]
        self.net = BackboneWithFPN(trunk, {f"layer{n}": str(n - 1) for n in range(1, 5)}, widths, 256,
                                   LastLevelMaxPool())
        self.out_channels = 256
        self.levels = ["0", "1", "2", "3"]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.net(images)
        return maps


def fix_statistics(module: nn.Module) -> None:
    """Every batch normalisation below becomes a fixed scale and shift with the same values."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            fixed = FrozenBatchNorm2d(child.num_features, child.eps)
            fixed.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, fixed)
        else:
            fix_statistics(child)


class OneMapRoIPool(nn.Module):
    """RoI max pooling (R. Girshick, 2015, Fast R-CNN, section 2.1) on the trunk's one map."""

    def __init__(self, output_size: int, stride: int):
        super().__init__()
        self.pool = RoIPool(output_size, 1 / stride)

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_shapes: Any) -> Tensor:
        found: Tensor = self.pool(maps["0"], boxes)
        return found


def region_pool(kind: str, trunk: Any, stride: int) -> Callable[..., Tensor]:
    """`align`: RoIAlign on one map or on a pyramid; `pool`: RoI max pooling. Both to 7 x 7. Raises ValueError."""
    levels = getattr(trunk, "levels", None)
    if kind == "align":
        return MultiScaleRoIAlign(levels or ["0"], 7, 2)
    if levels:
        raise ValueError("roi_pool=pool reads one map, but the backbone is a pyramid; roi_pool=align")
    return OneMapRoIPool(7, stride)


def region_head(in_channels: int, hidden: int, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """The two fully connected layers on 7 x 7 pieces, and the classes' scores, background first, with their boxes."""
    return TwoMLPHead(in_channels * 49, hidden), FastRCNNPredictor(hidden, num_classes + 1)
