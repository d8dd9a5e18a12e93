"""Images (B, C, H, W) to class logits (B, num_classes): torchvision's ResNets for ImageNet-size images.

K. He et al., 2015, arXiv 1512.03385, table 1. Differs from the paper: torchvision puts the stride of a bottleneck on
its 3x3 convolution, not on the first 1x1 ("ResNet v1.5").
"""

from __future__ import annotations

from torch import nn
from torchvision.models import resnet

BUILDERS = {18: resnet.resnet18, 34: resnet.resnet34, 50: resnet.resnet50, 101: resnet.resnet101, 152: resnet.resnet152}


def imagenet_resnet(depth: int, num_classes: int = 1000, in_channels: int = 3) -> resnet.ResNet:
    """An untrained net of `depth` layers. Raises ValueError for a depth that table 1 does not have."""
    if depth not in BUILDERS:
        raise ValueError(f"depth must be one of {', '.join(map(str, BUILDERS))}, but is {depth}")
    net = BUILDERS[depth](weights=None, num_classes=num_classes)
    if in_channels != 3:
        net.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net
