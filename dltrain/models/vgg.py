"""Maps images (B, C, H, W) to class logits (B, num_classes): VGG, 3x3 convolutions only.

K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014, arXiv 1409.1556,
table 1: configurations A, B, D and E, which have 11, 13, 16 and 19 layers with weights.

Five stages of 3x3 convolutions with 64, 128, 256, 512 and 512 channels, each followed by 2x2 max pooling.
`ImagenetVGG` is torchvision's, parameter names too, so that its published weights fit: three linear layers read a map
of 7 x 7. `CifarVGG` has the same convolutions and one linear layer on the mean of the last map, 1 x 1 at 32 px.

Differs from the paper: initialised after K. He et al., 2015, arXiv 1502.01852, where the paper starts a deep net from
the weights of a trained shallow one; `norm="batch"` adds batch normalisation after each convolution, which keeps its
bias.
In `ImagenetVGG` the map of an image that does not have 224 px is averaged to 7 x 7.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import vgg

from dltrain.models.deterministic_pool import AverageTo
from dltrain.models.initialisation import initialise_convolutions
from dltrain.models.whitening import whitening_layers

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # of each stage
CHANNELS = (1, 2, 4, 8, 8)  # of each stage, in units of the first one's


def convolutions(depth: int, in_channels: int, norm: str, width: int) -> nn.Sequential:
    """The five stages, a pooling layer after each. Raises ValueError for a depth that table 1 does not have."""
    if depth not in CONVOLUTIONS:
        raise ValueError(f"depth must be one of {', '.join(map(str, CONVOLUTIONS))}, but is {depth}")
    layers: list[nn.Module] = []
    c_in = in_channels
    for count, factor in zip(CONVOLUTIONS[depth], CHANNELS, strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(c_in, width * factor, 3, padding=1))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(width * factor))
            layers.append(nn.ReLU(inplace=True))
            c_in = width * factor
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def vgg_stages(features: nn.Sequential, depth: int, norm: str) -> dict[str, list[nn.Module]]:
    """The layers of each stage, conv1 to conv5 and pool5: a pooling layer is the first layer of the next stage."""
    layers, start = list(features), 0
    stages: dict[str, list[nn.Module]] = {}
    per_convolution = 3 if norm == "batch" else 2
    for number, count in enumerate(CONVOLUTIONS[depth], start=1):
        end = start + count * per_convolution + (number > 1)
        stages[f"conv{number}"], start = layers[start:end], end
    return {**stages, "pool5": layers[start:]}


class ImagenetVGG(vgg.VGG):
    """`dropout`: after each of the two hidden linear layers. `features` gives (B, 512, H / 32, W / 32)."""

    def __init__(self, depth: int, num_classes: int = 1000, in_channels: int = 3, norm: str = "none",
                 dropout: float = 0.5):
        super().__init__(convolutions(depth, in_channels, norm, 64), num_classes, init_weights=True, dropout=dropout)
        self.depth, self.norm, self.out_channels = depth, norm, 512
        self.avgpool = AverageTo(7)

    def stages(self) -> dict[str, list[nn.Module]]:
        """The layers of the stages, whose maps have strides 1, 2, 4, 8, 16, 32."""
        return vgg_stages(self.features, self.depth, self.norm)


class CifarVGG(nn.Module):
    """`width`: channels of the first stage, 64 in the paper. `features` gives (B, 8 * width, H / 32, W / 32); images
    must have 32 px or more. `whitening_px`: odd side of the patches of a whitening layer before the first convolution
    (whitening.py), None for no such layer."""

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, norm: str = "batch", width: int = 64,
                 whitening_px: int | None = None):
        super().__init__()
        whitening, channels = whitening_layers(in_channels, whitening_px)
        self.features = nn.Sequential(*whitening, *convolutions(depth, channels, norm, width))
        self.first = len(whitening)  # index of the first convolution
        self.depth, self.norm, self.out_channels = depth, norm, width * CHANNELS[-1]
        self.head = nn.Linear(self.out_channels, num_classes)
        initialise_convolutions(self)

    def stages(self) -> dict[str, list[nn.Module]]:
        """The layers of the stages, whose maps have strides 1, 2, 4, 8, 16, 32."""
        stages = vgg_stages(self.features[self.first :], self.depth, self.norm)
        return {**stages, "conv1": [*self.features[: self.first], *stages["conv1"]]}

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))
