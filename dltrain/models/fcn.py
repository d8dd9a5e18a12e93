"""Maps images (B, C, H, W) to the class logits of every pixel (B, K, H, W): fully convolutional nets with skips.

J. Long, E. Shelhamer, T. Darrell, 2014, arXiv 1411.4038, sections 3.1 to 3.3, 4.2 and figure 3: the fully connected
layers of a classifier become convolutions; their coarse logits, at stride 32, are upsampled by two and added to those
of a finer stage, down to stride 16 (FCN-16s) or 8 (FCN-8s), and then upsampled to the image. In the paper these are
read from VGG-16's pool4 and pool3, its maps right after the poolings to stride 16 and 8: `skips=pools`.

Differs from the paper: any backbone serves, also one with random weights; with `skips=last` the logits of a finer
stride are read from its last map before the next pooling; padding keeps the maps aligned, where the paper crops; the
convolutions that replace the fully connected layers have `hidden` channels, not 4,096.

K classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.contracts import Backbone
from dltrain.models.backbones import Place, layer_maps, remove_head, stage_shapes, stage_strides, stride_of
from dltrain.models.fixed_order import enlarge


class FCN(nn.Module):
    """`stride`: that of the finest map that is read. `kernel`: side of the first of the two layers on the coarsest map.
    `upsampling`: bilinear, or learned (section 3.3), which starts as bilinear. `skips`: last, or pools, the maps right
    after the poolings. Raises ValueError for a stride that no stage of the backbone has, and for skips=pools where it
    is not reached by a pooling layer."""

    def __init__(self, backbone: Backbone, num_classes: int, in_channels: int, stride: int, hidden: int, kernel: int,
                 dropout: float, upsampling: str, skips: str = "last"):
        super().__init__()
        stages = stage_shapes(backbone, in_channels)
        last_of_stride = {stage.stride: index for index, stage in enumerate(stages)}
        coarsest = stages[-1].stride
        if stride not in last_of_stride:
            raise ValueError(f"stride must be one of {', '.join(map(str, last_of_stride))}, the strides of "
                             f"{type(backbone).__name__}, but is {stride}")
        self.backbone, self.stride = remove_head(backbone), stride
        self.head = nn.Sequential(
            nn.Conv2d(stages[-1].channels, hidden, kernel, padding=kernel // 2), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(hidden, num_classes, 1))
        finer = [s for s in sorted(last_of_stride, reverse=True) if stride <= s < coarsest]
        if skips == "pools":
            self.places = [pooling_place(backbone, s) for s in finer]
            channels = [stages[stage - 1].channels for stage, _ in self.places]  # a pooling keeps them
        else:
            layers = list(backbone.stages().values())
            self.places = [(last_of_stride[s], len(layers[last_of_stride[s]]) - 1) for s in finer]
            channels = [stages[stage].channels for stage, _ in self.places]
        self.skips = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in channels)
        strides = [coarsest, *finer, 1]
        self.upsamplings = nn.ModuleList(Upsampling(num_classes, before // after, upsampling == "learned")
                                         for before, after in pairwise(strides))
        for parameter in self.skips.parameters():  # at first they add nothing (section 4.2)
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        coarsest, maps = layer_maps(self.backbone, images, self.places)
        logits = self.head(coarsest)
        for upsample, skip, place in zip(self.upsamplings, self.skips, self.places, strict=False):
            finer = skip(maps[place])
            logits = finer + upsample(logits, finer.shape[2:])
        of_pixels: Tensor = self.upsamplings[-1](logits, images.shape[2:])
        return of_pixels


def pooling_place(backbone: Backbone, stride: int) -> Place:
    """Where the pooling to this stride is, the first layer of a stage. Raises ValueError where another layer leads to
    it."""
    strides = list(stage_strides(backbone).values())
    stage = strides.index(stride)
    layer = list(backbone.stages().values())[stage][0]
    if type(layer) not in (nn.MaxPool2d, nn.AvgPool2d) or stride_of(layer) * strides[stage - 1] != stride:
        raise ValueError(f"skips must be last: stride {stride} of {type(backbone).__name__} is not reached by a "
                         "pooling layer between two stages")
    return stage, 0


class Upsampling(nn.Module):
    """Maps `factor` times as large, bilinear; `learned`: a transposed convolution that starts as that."""

    def __init__(self, channels: int, factor: int, learned: bool):
        super().__init__()
        self.factor = factor
        self.kernel = nn.Parameter(bilinear_kernel(channels, factor)) if learned and factor > 1 else None

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """(B, C, h, w) to (B, C, *size). `size` is `factor` times (h, w), or smaller where the stride does not divide
        the sides of the image."""
        if self.kernel is None:
            return enlarge(x, size)
        s = self.factor
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")  # so that the border is that of bilinear interpolation
        out = F.conv_transpose2d(padded, self.kernel, stride=s, padding=s // 2)
        cut = out[:, :, s : s + size[0], s : s + size[1]]
        missing = [size[0] - cut.shape[2], size[1] - cut.shape[3]]
        return F.pad(cut, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else cut


def bilinear_kernel(channels: int, factor: int) -> Tensor:
    """(C, C, k, k), k = 2 factor - factor % 2: bilinear weights from each channel to itself, zeros elsewhere."""
    size = 2 * factor - factor % 2
    centre = factor - 0.5 if size % 2 == 0 else factor - 1.0
    line = 1 - (torch.arange(size) - centre).abs() / factor
    kernel = torch.zeros(channels, channels, size, size)
    kernel[range(channels), range(channels)] = line[:, None] * line
    return kernel
