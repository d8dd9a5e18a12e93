"""Denser maps from a trained backbone: dilation in the place of strides.

F. Yu, V. Koltun, 2015, arXiv 1511.07122; L.-C. Chen et al., 2014, 1412.7062, "the hole algorithm". A layer of stride s
that is made dense is computed at every pixel, and all layers after it read pixels that lie s times as far apart. The
weights stay as they are. The dense map has the values of the strided one at every s-th place, counted from an offset,
for images whose sides the strides divide.

A window that reaches to the right and down only, as that of 2x2 pooling, is centred, so that the dense map lies over
the image as evenly as possible: without it each pooling would shift the map by half its window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.contracts import Backbone
from dltrain.models.backbones import check_backbone, layer_stride, leaves, side_of, stage_strides, stride_of
from dltrain.models.efficientnet_lite import SameConv2d


class DensePool(nn.Module):
    """Max pooling of stride 1 over a centred window of `kernel` x `kernel` pixels that lie `rate` apart."""

    def __init__(self, kernel: int, rate: int):
        super().__init__()
        self.kernel, self.rate = kernel, rate

    def forward(self, x: Tensor) -> Tensor:
        before = centred_start(self.kernel, self.rate)
        after = (self.kernel - 1) * self.rate - before
        return F.max_pool2d(F.pad(x, (before, after) * 2, value=-torch.inf), self.kernel, 1, dilation=self.rate)


def centred_start(kernel: int, rate: int) -> int:
    """The distance in pixels from the start of a centred window, of `kernel` pixels that lie `rate` apart, to the pixel
    that it is computed for."""
    return (kernel - 1) * rate // 2


def dilate(backbone: Backbone, stride: int) -> int:
    """Caps the output stride at `stride`, replacing later strides by dilation, in place.

    Returns the offset, in rows and in columns of the dense map, at which dense and strided maps coincide. Raises
    ValueError for a stride that no stage has, and for a module that is no backbone."""
    check_backbone(backbone)
    known = sorted({*stage_strides(backbone).values()})
    if stride not in known:
        raise ValueError(f"stride must be one of {', '.join(map(str, known))}, the strides of "
                         f"{type(backbone).__name__}, but is {stride}")
    reached, rate, offset = 1, 1, 0
    pools: dict[nn.Module, nn.Module] = {}
    for blocks in backbone.stages().values():
        for block in blocks:
            step = stride_of(block)
            if reached * step <= stride:
                reached *= step
                step = 1
            if rate * step > 1:
                offset += dilate_block(block, rate, rate * step, pools)
                rate *= step
    for parent in list(backbone.modules()):
        for name, child in parent.named_children():
            if child in pools:
                setattr(parent, name, pools[child])
    return offset


def dilate_block(block: nn.Module, rate: int, rate_after: int, pools: dict[nn.Module, nn.Module]) -> int:
    """Dilates the layers of a block: by `rate` up to and including the layer that had a stride, by `rate_after` after
    it. Writes the replacement of each pooling layer into `pools`.

    Returns by how many pixels the windows start earlier than those of the strided block."""
    now, earlier = rate, 0
    for layer in leaves(block):
        strides, is_pointwise = layer_stride(layer) > 1, False
        if isinstance(layer, nn.MaxPool2d):
            kernel = side_of(layer.kernel_size)
            pools[layer] = DensePool(kernel, now)
            earlier += centred_start(kernel, now) - side_of(layer.padding) * now
        elif isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0]
            is_pointwise = kernel == 1
            if not is_pointwise:
                layer.dilation = (now, now)
                if isinstance(layer, SameConv2d):  # pads in its forward pass
                    earlier += centred_start(kernel, now) - layer.padding_before() * now
                else:
                    layer.padding = (int(layer.padding[0]) * now,) * 2
            if strides:
                layer.stride = (1, 1)
        elif strides:  # ZeroPad, a shortcut that takes every other pixel
            layer.stride = 1  # type: ignore[assignment]
        if strides and not is_pointwise:
            now = rate_after
    return earlier
