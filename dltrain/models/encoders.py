"""What a net that labels every pixel takes from a classifier: the map of each of its stages; and fewer strides.

An encoder has `stages()`, its trunk in order: the modules of each stage by its name, each reading what the one before
gives; and `out_channels`. All of ours have it but timm's.

Dilation in the place of strides (F. Yu, V. Koltun, 2015, arXiv 1511.07122; L.-C. Chen et al., 2014, 1412.7062, "the
hole algorithm"): a layer at stride s that is no longer to stride reads every pixel, and all layers after it read pixels
s times as far apart. The weights stay, and so do the values where the two grids meet: at every s-th pixel, for images
whose sides the strides divide.

B images, C channels, H, W height and width; a stage's stride is that of its map to the image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROBE_PX = 64  # side of the image that shows the strides and channels of a trunk


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
    """Of each stage's map, seen on an empty image. Raises ValueError for what has no stages."""
    if not hasattr(encoder, "stages"):
        raise ValueError(f"{type(encoder).__name__} must have stages to serve as an encoder of every pixel")
    training = encoder.training
    with torch.no_grad():
        found = maps(encoder.eval(), torch.zeros(1, in_channels, PROBE_PX, PROBE_PX))
    encoder.train(training)
    return [Stage(name, one.shape[1], round(PROBE_PX / one.shape[3]))
            for name, one in zip(encoder.stages(), found, strict=True)]


def behead(encoder: Any) -> Any:
    """The encoder, without the layers that no stage has; what is left out has no weights to train or to save."""
    kept = {part for modules in encoder.stages().values() for module in modules for part in module.modules()}
    for name, child in list(encoder.named_children()):
        if kept.isdisjoint(child.modules()):
            setattr(encoder, name, nn.Identity())
    return encoder


class DensePool(nn.Module):
    """A max pooling of stride 1 that reads pixels `rate` apart; its output at every s-th pixel is that of `origin`, a
    pooling of stride s over every rate-th pixel."""

    def __init__(self, origin: nn.MaxPool2d, rate: int):
        super().__init__()
        self.kernel, self.padding = single(origin.kernel_size), single(origin.padding)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.padding * self.rate, (self.kernel - 1 - self.padding) * self.rate
        x = F.pad(x, (before, after, before, after), value=-torch.inf)
        return F.max_pool2d(x, self.kernel, 1, dilation=self.rate)


def single(value: Any) -> int:
    """The one number of a layer that is square."""
    return int(value[0] if isinstance(value, tuple) else value)


def dilate(encoder: Any, stride: int, in_channels: int) -> None:
    """No stage of the encoder strides beyond `stride` any more; in place. Raises ValueError for a stride that none of
    its stages has."""
    known = [stage.stride for stage in shapes(encoder, in_channels)]
    if stride not in known:
        raise ValueError(f"stride must be one of {', '.join(map(str, sorted(set(known))))}, the strides of "
                         f"{type(encoder).__name__}, but is {stride}")
    reached, rate = 1, 1
    pools: dict[nn.Module, nn.Module] = {}
    for modules in encoder.stages().values():
        for unit in modules:
            step = max((single(one.stride) for one in leaves(unit) if hasattr(one, "stride")), default=1)
            if reached * step <= stride:
                reached *= step
                step = 1
            rate = widen(unit, rate, rate * step, pools) if rate * step > 1 else rate
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if child in pools:
                setattr(parent, name, pools[child])


def leaves(unit: nn.Module) -> list[nn.Module]:
    """Its layers in the order in which they were made. A torchvision block has a stride too, that of a layer in it."""
    return [one for one in unit.modules() if not list(one.children())]


def widen(unit: nn.Module, rate: int, after: int, pools: dict[nn.Module, nn.Module]) -> int:
    """Layers of the unit read pixels `rate` apart, `after` behind the one that strode; returns `after`. Poolings are
    noted for replacement."""
    now = rate
    for one in leaves(unit):
        strides = hasattr(one, "stride") and single(one.stride) > 1
        if isinstance(one, nn.MaxPool2d):
            pools[one] = DensePool(one, now)
        elif isinstance(one, nn.Conv2d):
            kernel = single(one.kernel_size)
            if kernel > 1:
                one.dilation = (now, now)
                if not isinstance(one.padding, str):
                    one.padding = (single(one.padding) * now,) * 2
            if strides:
                one.stride = (1, 1)
        elif strides:  # a shortcut that takes every other pixel
            one.stride = 1  # type: ignore[assignment]
        if strides and not (isinstance(one, nn.Conv2d) and single(one.kernel_size) == 1):
            now = after
    return after
