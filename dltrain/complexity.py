"""What a net has and what it computes, measured while it reads one image on torch's meta device: shapes, no numbers.

Parameters: those that are read, so not what serves training alone (GoogLeNet's auxiliary classifiers). Multiply-adds:
of convolutions and products of matrices, half of torch's count of operations. Depth: layers with weights, convolutions
and linear ones, on the longest path from the image to the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from dltrain.config import compose, groups
from dltrain.pretrained import NODE

aten = torch.ops.aten
LAYERS = {aten.convolution.default, aten.addmm.default, aten.mm.default, aten.linear.default}


class Measured(NamedTuple):
    parameters: int
    multiply_adds: int
    depth: int


class Paths(TorchDispatchMode):
    """Carries a depth with each tensor that comes from the image: that of the deepest it is made of, and one more where
    a layer reads a weight. What is made of parameters alone is a weight."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.weights, self.depths = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        for parameter in net.parameters():
            self.weights[parameter] = parameter
        self.read: set[nn.Parameter] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        weights = [value for value in given if value in self.weights]
        self.read.update(value for value in weights if isinstance(value, nn.Parameter))
        if given and len(weights) == len(given):
            for value in made:
                self.weights[value] = value
            return out
        depth = max((self.depths.get(value, 0) for value in given), default=0)
        for value in made:
            self.depths[value] = depth + (func in LAYERS and bool(weights))
        return out


def measure(net: nn.Module, images: Tensor) -> Measured:
    """In evaluation, on the device of both; multiply-adds and depth are those of one image. Raises what the net raises
    for images that do not fit."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Paths(net.eval()) as paths:
        logits = net(images)
    parameters = sum(parameter.numel() for parameter in paths.read)
    return Measured(parameters, counter.get_total_flops() // 2 // len(images), paths.depths[logits])


def classifiers(px: int, channels: int, classes: int) -> Iterator[tuple[str, Measured | str]]:
    """Each model that labels images, with what is measured of it, or in a few words why it does not fit."""
    for name in groups.names("model"):
        if groups.batch_of_model(name) != "ClassificationBatch":
            continue
        words = [f"model={name}", "data=image_folder", f"data.image_px={px}", f"data.channels={channels}",
                 f"data.num_classes={classes}"]
        keys: Any = OmegaConf.to_container(compose.compose(words).config.model, resolve=True)
        made = get_object(keys.pop("_target_"))
        found: Measured | str
        try:
            with torch.device("meta"):
                net = made(**{key: value for key, value in keys.items() if key != NODE})
                found = measure(net, torch.empty(1, channels, px, px))
        except (ValueError, RuntimeError) as error:
            found = str(error).splitlines()[0].rpartition(". ")[2][:90]
        yield name, found
