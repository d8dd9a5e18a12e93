"""Maps images (B, C, H, W) to class logits (B, num_classes): AlexNet, five convolutions and three linear layers.

A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, arXiv 1404.5997: the net of
A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 2012, in one
tower. It is torchvision's, parameter names too, so that its published weights fit. Images must have 63 px or more.

Differs from the papers: no local response normalisation, torch's own initialisation. Differs from that of 2012: 64,
192, 384, 256 and 256 channels, where it has 96, 256, 384, 384 and 256 on two GPUs. The map of an image that does not
have 224 px is averaged to 6 x 6.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import AlexNet as TorchvisionAlexNet

from dltrain.models.deterministic_pool import AverageTo


class AlexNet(TorchvisionAlexNet):
    """`dropout`: before each of the two hidden linear layers. `features` gives (B, 256, h, w), 6 x 6 for 224 px."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5):
        super().__init__(num_classes, dropout)
        self.out_channels, self.avgpool = 256, AverageTo(6)
        if in_channels != 3:
            self.features[0] = nn.Conv2d(in_channels, 64, kernel_size=11, stride=4, padding=2)

    def stages(self) -> dict[str, list[nn.Module]]:
        """The layers of the stages, whose maps have strides 4, 8, 16, 32."""
        layers = list(self.features)
        return {"conv1": layers[:2], "conv2": layers[2:5], "conv3": layers[5:12], "pool5": layers[12:]}
