"""What a net has and computes, measured while it processes one image on torch's meta device, which has shapes but no
numbers.

Parameters: those that are read, so without what serves training alone (GoogLeNet's auxiliary classifiers).
Multiply-adds: of convolutions and matrix products, half of torch's count of operations. Depth: the convolutions and
linear layers on the longest path from the image to the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from dltrain import trust
from dltrain.pretrained import NODE, pretrained_of

aten = torch.ops.aten
LAYERS = {aten.convolution.default, aten.addmm.default, aten.mm.default, aten.linear.default}


class Complexity(NamedTuple):
    parameters: int
    multiply_adds: int
    depth: int


class Paths(TorchDispatchMode):
    """Carries a depth with each tensor that depends on the image: that of the deepest tensor it is computed from, plus
    one if a layer reads a weight. What is computed from parameters alone is a weight."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.weights, self.depths = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        for parameter in net.parameters():
            self.weights[parameter] = parameter
        self.read: set[nn.Parameter] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: object, args: tuple[object, ...] = (),
                           kwargs: dict[str, object] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        weights = [tensor for tensor in inputs if tensor in self.weights]
        self.read.update(tensor for tensor in weights if isinstance(tensor, nn.Parameter))
        if inputs and len(weights) == len(inputs):
            for tensor in outputs:
                self.weights[tensor] = tensor
            return result
        depth = max((self.depths.get(tensor, 0) for tensor in inputs), default=0)
        for tensor in outputs:
            self.depths[tensor] = depth + (func in LAYERS and bool(weights))
        return result


def tensors_in(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def measure(net: nn.Module, images: Tensor) -> Complexity:
    """Calls the net in evaluation mode on `images`, which are on the same device. Multiply-adds and depth are those of
    one image. Raises what the net raises for images that do not fit."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Paths(net.eval()) as paths:
        logits = net(images)
    parameters = sum(parameter.numel() for parameter in paths.read)
    return Complexity(parameters, counter.get_total_flops() // 2 // len(images), paths.depths[logits])


def measure_node(node: DictConfig, channels: int, px: int) -> Complexity:
    """A model by its config node, for one image. The net has no storage: its weights are not initialised."""
    arguments: Any = OmegaConf.to_container(node, resolve=True)
    target = trust.locate("model._target_", arguments.pop("_target_"))
    if pretrained_of(node, "model"):
        del arguments[NODE]
    with torch.device("meta"):
        return measure(target(**arguments), torch.empty(1, channels, px, px))
