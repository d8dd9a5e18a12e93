"""What a net that labels every pixel takes from a classifier: the map of each of its stages; and fewer strides.

An encoder has `stages()`, its trunk in order: the modules of each stage by its name, each reading what the one before
gives; and `out_channels`. All of ours have it but timm's.

Dilation in the place of strides (F. Yu, V. Koltun, 2015, arXiv 1511.07122; L.-C. Chen et al., 2014, 1412.7062, "the
hole algorithm"): a layer at stride s that is no longer to stride reads every pixel, and all layers after it read pixels
s times as far apart. The weights stay, and so do the values where the two grids meet: at every s-th place from some
first one on, for images whose sides the strides divide. A window that reads right and down of its place, as 2x2 pooling
does, is put around it, so that a dense map lies over the image as evenly as it can.

B images, C channels, H, W height and width; a stage's stride is that of its map to the image.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROBE_PX = 64  # side of that image


def maps(encoder: Any, images: Tensor) -> list[Tensor]:
    """(B, C, H, W) to the map of each stage."""
    found = []
    for modules in encoder.stages().values():
        for module in modules:
            images = module(images)
        found.append(images)
    return found


class Stage(NamedTuple):
    name: str
    channels: int
    stride: int


def shapes(encoder: Any, in_channels: int) -> list[Stage]:
    """Of each stage's map; the channels are seen on an empty image. Raises ValueError for what has no stages."""
    if not hasattr(encoder, "stages"):
        raise ValueError(f"{type(encoder).__name__} must have stages to serve as an encoder of every pixel")
    training, reached, strides = encoder.training, 1, []
    with torch.no_grad():
        found = maps(encoder.eval(), torch.zeros(1, in_channels, PROBE_PX, PROBE_PX))
    encoder.train(training)
    for units in encoder.stages().values():
        reached *= math.prod(map(step_of, units))
        strides.append(reached)
    return [Stage(name, one.shape[1], stride) for name, one, stride in
            zip(encoder.stages(), found, strides, strict=True)]


def step_of(unit: nn.Module) -> int:
    """The stride of a layer or block: that of the one layer in it that strides, or of several side by side."""
    return max((single(one.stride) for one in leaves(unit) if hasattr(one, "stride")), default=1)


def behead(encoder: Any) -> Any:
    """The encoder, without the layers that no stage has; what is left out has no weights to train or to save."""
    kept = {part for modules in encoder.stages().values() for module in modules for part in module.modules()}
    for name, child in list(encoder.named_children()):
        if kept.isdisjoint(child.modules()):
            setattr(encoder, name, nn.Identity())
    return encoder


class DensePool(nn.Module):
    """A max pooling of stride 1 that reads pixels `rate` apart, around its place."""

    def __init__(self, kernel: int, rate: int):
        super().__init__()
        self.kernel, self.rate = kernel, rate

    def forward(self, x: Tensor) -> Tensor:
        before = centred(self.kernel, self.rate)
        after = (self.kernel - 1) * self.rate - before
        return F.max_pool2d(F.pad(x, (before, after) * 2, value=-torch.inf), self.kernel, 1, dilation=self.rate)


def centred(kernel: int, rate: int) -> int:
    """How far before its place a window of `kernel` pixels, `rate` apart, begins."""
    return (kernel - 1) * rate // 2


def single(value: Any) -> int:
    """The one number of a layer that is square."""
    return int(value[0] if isinstance(value, tuple) else value)


def dilate(encoder: Any, stride: int, in_channels: int) -> int:
    """No stage of the encoder strides beyond `stride` any more; in place. Returns the first row, and column, of its
    last map where the grids meet. Raises ValueError for a stride that none of its stages has."""
    known = [stage.stride for stage in shapes(encoder, in_channels)]
    if stride not in known:
        raise ValueError(f"stride must be one of {', '.join(map(str, sorted(set(known))))}, the strides of "
                         f"{type(encoder).__name__}, but is {stride}")
    reached, rate, first = 1, 1, 0
    pools: dict[nn.Module, nn.Module] = {}
    for modules in encoder.stages().values():
        for unit in modules:
            step = step_of(unit)
            if reached * step <= stride:
                reached *= step
                step = 1
            if rate * step > 1:
                first += widen(unit, rate, rate * step, pools)
                rate *= step
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if child in pools:
                setattr(parent, name, pools[child])
    return first


def leaves(unit: nn.Module) -> list[nn.Module]:
    """Its layers in the order in which they were made. A torchvision block has a stride too, that of a layer in it."""
    return [one for one in unit.modules() if not list(one.children())]


def widen(unit: nn.Module, rate: int, after: int, pools: dict[nn.Module, nn.Module]) -> int:
    """Layers of the unit read pixels `rate` apart, `after` behind the one that strode. Returns by how much their
    windows begin earlier than those of the origin do. Poolings are noted for replacement."""
    now, earlier = rate, 0
    for one in leaves(unit):
        strides = hasattr(one, "stride") and single(one.stride) > 1
        if isinstance(one, nn.MaxPool2d):
            kernel = single(one.kernel_size)
            pools[one] = DensePool(kernel, now)
            earlier += centred(kernel, now) - single(one.padding) * now
        elif isinstance(one, nn.Conv2d):
            kernel = single(one.kernel_size)
            if kernel > 1:
                one.dilation = (now, now)
                begins: Any = getattr(one, "begins", None)
                if begins is not None:  # it pads by itself
                    earlier += centred(kernel, now) - begins() * now
                else:
                    one.padding = (single(one.padding) * now,) * 2
            if strides:
                one.stride = (1, 1)
        elif strides:  # a shortcut that takes every other pixel
            one.stride = 1  # type: ignore[assignment]
        if strides and not (isinstance(one, nn.Conv2d) and single(one.kernel_size) == 1):
            now = after
    return earlier
