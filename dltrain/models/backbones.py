"""What larger models need of a backbone: its maps stage by stage, their channels and strides, and no head.

A backbone (dltrain.contracts.Backbone) is a classifier of images that lists its layers by stage: `stages()` gives the
layers of each stage by its name, each reading the output of the one before; `features` computes the map of the last
stage, which has `out_channels`.

B images, C channels, H and W height and width. A stage's stride is how many pixels of the image lie between neighbours
of its map.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import vgg

from dltrain.contracts import Backbone, Model, backbone_of
from dltrain.models.vgg import vgg_stages

PROBE_PX = 64  # side of the empty image that shows the channels of each map


Place = tuple[int, int]  # of a layer: the number of its stage, and its number in it


class Stage(NamedTuple):
    name: str
    channels: int
    stride: int


def stage_maps(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """(B, C, H, W) to the map of each stage."""
    maps = []
    for layers in backbone.stages().values():
        for layer in layers:
            images = layer(images)
        maps.append(images)
    return maps


def layer_maps(backbone: Backbone, images: Tensor, places: Collection[Place]) -> tuple[Tensor, dict[Place, Tensor]]:
    """The map of the last stage, and those after the layers at `places`."""
    maps = {}
    for stage, layers in enumerate(backbone.stages().values()):
        for number, layer in enumerate(layers):
            images = layer(images)
            if (stage, number) in places:
                maps[stage, number] = images
    return images, maps


def stage_shapes(backbone: Backbone, in_channels: int) -> list[Stage]:
    """Name, channels and stride of each stage; the channels are read from the maps of an empty image. Raises ValueError
    for a module that is no backbone, and for one that does not read images of `in_channels`."""
    check_backbone(backbone)
    training = backbone.training
    try:
        with torch.no_grad():
            maps = stage_maps(backbone.eval(), torch.zeros(1, in_channels, PROBE_PX, PROBE_PX))
    except RuntimeError as error:
        raise ValueError(f"{type(backbone).__name__} does not read images of {in_channels} channels: "
                         f"{str(error).splitlines()[0]}") from None
    finally:
        backbone.train(training)
    return [Stage(name, map_.shape[1], stride) for (name, stride), map_ in
            zip(stage_strides(backbone).items(), maps, strict=True)]


def stage_strides(backbone: Backbone) -> dict[str, int]:
    """The stride of each stage: the product of the strides of its layers and of those before them."""
    strides, stride = {}, 1
    for name, layers in backbone.stages().items():
        stride *= math.prod(map(stride_of, layers))
        strides[name] = stride
    return strides


def output_stride(backbone: Backbone) -> int:
    """The stride of the map that `features` returns."""
    return [*stage_strides(backbone).values()][-1]


def stride_of(block: nn.Module) -> int:
    """The stride of a layer or block: the largest stride of its layers, since those with a stride > 1 are parallel
    branches."""
    return max(map(layer_stride, leaves(block)), default=1)


def layer_stride(layer: nn.Module) -> int:
    """1 for a layer that has no stride."""
    return side_of(getattr(layer, "stride", 1))


def leaves(block: nn.Module) -> list[nn.Module]:
    """Its layers in the order in which they were created, without the modules that contain them: torchvision's blocks
    have an attribute `stride` too."""
    return [module for module in block.modules() if not list(module.children())]


def side_of(value: int | tuple[int, ...]) -> int:
    """The one number of a square layer's kernel, stride or padding."""
    return int(value[0] if isinstance(value, tuple) else value)


def check_backbone(module: object) -> None:
    """Raises ValueError for what cannot serve as a backbone."""
    if backbone_of(module) is not module:
        raise ValueError(f"{type(module).__name__} must have features, out_channels and stages() to be a backbone")


def remove_head(backbone: Backbone) -> Backbone:
    """Replaces the modules that belong to no stage by nn.Identity, in place: their weights would get no gradient.
    Returns the backbone. Raises ValueError for a module that is no backbone."""
    check_backbone(backbone)
    keep_only({module for layers in backbone.stages().values() for layer in layers for module in layer.modules()},
              backbone)
    return backbone


def keep_only(kept: set[nn.Module], parent: Model) -> None:
    """Replaces the modules below `parent` that neither are in `kept` nor contain one of it."""
    for name, child in list(parent.named_children()):
        if kept.isdisjoint(child.modules()):
            setattr(parent, name, nn.Identity())
        elif child not in kept:
            keep_only(kept, child)


class VGG16(nn.Module):
    """The 13 convolutions of VGG-16 as Fast and Faster R-CNN use them: without the last pooling, so that the map has
    stride 16 (R. Girshick, 2015, arXiv 1504.08083, section 2.2). By torchvision, parameter names too, so that its
    published weights fit. Raises ValueError for images that do not have three channels.

    K. Simonyan, A. Zisserman, 2014, arXiv 1409.1556, configuration D."""

    out_channels = 512

    def __init__(self, in_channels: int = 3):
        super().__init__()
        if in_channels != 3:
            raise ValueError(f"in_channels must be 3, but is {in_channels}")
        self.features = vgg.vgg16(weights=None).features[:-1]

    def stages(self) -> dict[str, list[nn.Module]]:
        """The layers of the stages, whose maps have strides 1, 2, 4, 8, 16."""
        layers = vgg_stages(self.features, 16, "none")
        del layers["pool5"]
        return layers
