"""Maps images (B, C, H, W) to class logits (B, num_classes): GoogLeNet, 22 layers, nine Inception modules.

C. Szegedy et al., "Going Deeper with Convolutions", 2014, arXiv 1409.4842, table 1 and figure 3. An Inception module
concatenates the channels of a 1x1, a 3x3 and a 5x5 convolution and of a pooling; a 1x1 convolution reduces the channels
before the larger convolutions and after the pooling. Two auxiliary classifiers read the maps of 4a and 4d in training
only (section 5); the factor of their losses is 0.3.

The net is torchvision's, parameter names too, so that its published weights fit. `size="cifar"` is for 32 px: the stem
has a 3x3 convolution of stride 1 in the place of 7x7 of stride 2, and no pooling.

Differs from the paper: torchvision's net has batch normalisation after each convolution, a 3x3 convolution in the place
of the 5x5, no local response normalisation, and averages the map to 4 x 4 before an auxiliary classifier, whatever its
size. Initialised after K. He et al., 2015, arXiv 1502.01852.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import GoogLeNet as TorchvisionGoogLeNet
from torchvision.models.googlenet import BasicConv2d, Inception, InceptionAux

from dltrain.models.deterministic_pool import AverageTo
from dltrain.models.initialisation import initialise_convolutions


class Auxiliary(InceptionAux):
    """Section 5: averaging to 4 x 4, a 1x1 convolution to 128 channels, 1,024 units, dropout, logits."""

    def __init__(self, c_in: int, num_classes: int, dropout: float):
        super().__init__(c_in, num_classes, dropout=dropout)
        self.pool = AverageTo(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(x)).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


class GoogLeNet(TorchvisionGoogLeNet):
    """`width`: channels of the first convolution, a multiple of 8, 64 in the paper; all others are in proportion,
    except those inside the auxiliary classifiers. In training it returns (logits, auxiliary logits of 4d, of 4a), in
    evaluation the logits. With `auxiliary_weight` 0 there are no auxiliary classifiers, and it returns the logits in
    both. `features` gives (B, 16 * width, H / 32, W / 32), for the cifar size H / 4 and W / 4."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, size: str = "imagenet", width: int = 64,
                 dropout: float = 0.4, auxiliary_weight: float = 0.3):
        def scaled(channels: int) -> int:
            return channels * width // 64

        def conv(c_in: int, c_out: int, **keys: int) -> nn.Module:
            return BasicConv2d(in_channels if c_in == 3 else scaled(c_in), scaled(c_out), **keys)

        def inception(*channels: int) -> nn.Module:
            return Inception(*map(scaled, channels))

        def auxiliary(c_in: int, classes: int, dropout: float) -> nn.Module:
            return Auxiliary(scaled(c_in), classes, dropout)

        super().__init__(num_classes, dropout=dropout, init_weights=False, aux_logits=auxiliary_weight > 0,
                         blocks=[conv, inception, auxiliary])
        self.auxiliary_weight = auxiliary_weight
        self.out_channels = scaled(1024)
        self.fc = nn.Linear(self.out_channels, num_classes)
        if size == "cifar":
            self.conv1 = conv(3, 64, kernel_size=3, padding=1)
            self.maxpool1, self.maxpool2 = nn.Identity(), nn.Identity()
        initialise_convolutions(self)

    def stages(self) -> dict[str, list[nn.Module]]:
        """The layers of the stages, whose maps have strides 2, 4, 8, 16, 32; for the cifar size 1, 1, 1, 2, 4."""
        return {"conv1": [self.conv1], "conv2": [self.maxpool1, self.conv2, self.conv3],
                "inception3": [self.maxpool2, self.inception3a, self.inception3b],
                "inception4": [self.maxpool3, self.inception4a, self.inception4b, self.inception4c, self.inception4d,
                               self.inception4e],
                "inception5": [self.maxpool4, self.inception5a, self.inception5b]}

    def features(self, images: Tensor) -> Tensor:
        for layers in self.stages().values():
            for layer in layers:
                images = layer(images)
        return images
