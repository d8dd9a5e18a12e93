"""Maps images (B, C, H, W) to class logits (B, num_classes): torchvision's ResNets for ImageNet-size images.

K. He et al., 2015, arXiv 1512.03385, table 1. Differs from the paper: torchvision puts the stride of a bottleneck block
on its 3x3 convolution, not on the first 1x1 ("ResNet v1.5").
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

STAGES = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}


class ImagenetResNet(resnet.ResNet):
    """`depth`: layers with weights. `norm`: batch normalisation (`batch`), or a fixed scale and shift in its place
    (`frozen_batch`), for published weights in detectors whose batches are small. Raises ValueError for a depth that
    table 1 does not have."""

    def __init__(self, depth: int, num_classes: int = 1000, in_channels: int = 3, norm: str = "batch"):
        if depth not in STAGES:
            raise ValueError(f"depth must be one of {', '.join(map(str, STAGES))}, but is {depth}")
        super().__init__(resnet.BasicBlock if depth < 50 else resnet.Bottleneck, STAGES[depth], num_classes,
                         norm_layer=FrozenBatchNorm2d if norm == "frozen_batch" else nn.BatchNorm2d)
        self.out_channels = self.fc.in_features
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> dict[str, list[nn.Module]]:
        """The layers of the stages, whose maps have strides 2, 4, 8, 16, 32."""
        return {"stem": [self.conv1, self.bn1, self.relu], "stage1": [self.maxpool, *self.layer1],
                "stage2": [*self.layer2], "stage3": [*self.layer3], "stage4": [*self.layer4]}

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, H / 32, W / 32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x
