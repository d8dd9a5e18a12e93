"""Maps images (B, C, H, W) to class logits (B, num_classes): the net of the speed records on CIFAR-10.

K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, arXiv 2404.00498: a whitening layer of 2x2 patches,
three blocks of two 3x3 convolutions, the first of which is followed by a 2x2 max pooling, a global max pooling and a
linear layer without a bias, whose output is divided by 9. Its ancestors are T. Balsam's hlb-CIFAR10 (2023) and D.
Page's ResNet-9 (2018).

A convolution begins as the identity in its first filters and at random in the others. Batch normalisation has a bias
but no scale, and fast running statistics (momentum 0.4 in torch's sense).

Differs from the paper: the last pooling is of the whole map, which for 32 px is the same 3x3, so that images of any
size of 16 px and more can be taken; the bias of the whitening layer is trained to the end.

B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.models.whitening import PatchWhitening

LOGIT_SCALE = 1 / 9
NORM_MOMENTUM, NORM_EPSILON = 0.4, 1e-12


class BiasNorm(nn.BatchNorm2d):
    """Batch normalisation that trains its bias only; its scale stays 1."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)
        del self.weight
        self.register_buffer("weight", torch.ones(channels), persistent=False)


class Block(nn.Module):
    """Convolution, pooling, norm, GELU, convolution, norm, GELU: half the height and width."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv1, self.norm1 = convolution(c_in, c_out), BiasNorm(c_out)
        self.conv2, self.norm2 = convolution(c_out, c_out), BiasNorm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def convolution(c_in: int, c_out: int) -> nn.Conv2d:
    layer = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[: min(c_in, c_out)].detach())
    return layer


class AirbenchNet(nn.Module):
    """`widths`: channels of the three blocks, 64, 256, 256 in the paper: 1.97 M parameters. Raises ValueError if they
    are not three."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (64, 256, 256)):
        super().__init__()
        if len(widths) != 3:
            raise ValueError(f"widths must be three numbers of channels, but are {list(widths)}")
        self.whitening = PatchWhitening(in_channels, 2)
        channels = [self.whitening.out_channels, *widths]
        self.blocks = nn.ModuleList(Block(*pair) for pair in pairwise(channels))
        self.out_channels = channels[-1]
        self.head = nn.Linear(self.out_channels, num_classes, bias=False)

    def stages(self) -> dict[str, list[nn.Module]]:
        """The layers of the stages, whose maps have strides 1, 2, 4, 8."""
        return {"stem": [self.whitening, nn.GELU()],
                **{f"stage{number}": [block] for number, block in enumerate(self.blocks, 1)}}

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, (H - 1) // 8, (W - 1) // 8)."""
        x = F.gelu(self.whitening(images))
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).amax((2, 3))) * LOGIT_SCALE
