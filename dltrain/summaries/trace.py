"""What happens while a net computes on torch's meta device: the multiply-adds of each weight, the outputs of each
module, and which pixels of the image a place of a map depends on.

The receptive field is exact for convolutions, poolings, padding, slices and what works place by place: the place i of a
map on one axis depends on the pixels stride * i + low to stride * i + high; of branches that meet, on the union. It is
not known after what mixes all places, and after an interpolation. Layers are taken to be square: the axis of the rows
is followed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
POOLINGS = (aten.max_pool2d_with_indices.default, aten.max_pool2d.default, aten.avg_pool2d.default)
PADDINGS = (aten.constant_pad_nd.default, aten.replication_pad2d.default, aten.reflection_pad2d.default)
# Their results have the kind of a tensor, and no value of it.
FACTORIES = (aten.new_zeros.default, aten.new_empty.default, aten.new_ones.default, aten.new_full.default,
             aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default, aten.full_like.default)


class Field(NamedTuple):
    """Place i of a map depends on the pixels stride * i + low to stride * i + high."""

    stride: int
    low: int
    high: int

    @property
    def px(self) -> int:
        return self.high - self.low + 1

    def window(self, kernel: int, stride: int, padding: int, dilation: int) -> Field:
        """After a layer whose window of `kernel` places begins `padding` places before its own."""
        low = self.low - self.stride * padding
        return Field(self.stride * stride, low, self.high + self.stride * ((kernel - 1) * dilation - padding))


class Output(NamedTuple):
    """Of a module's last call."""

    shape: tuple[int, ...]
    field: Field | None


class Trace(TorchDispatchMode):
    """`multiply_adds`: by the name of the parameter or buffer that an operation reads, or else of the module that is
    being computed. `read`: the names of the parameters that were read. `outputs`: of each module that was called."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.names = {module: name for name, module in net.named_modules()}
        self.weights, self.fields = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        for name, tensor in (*net.named_buffers(), *net.named_parameters()):
            self.weights[tensor] = name
        self.parameters = {name for name, _ in net.named_parameters()}
        self.multiply_adds: Counter[str] = Counter()
        self.read: set[str] = set()
        self.outputs: dict[str, Output] = {}
        self.image_shape: tuple[int, ...] = ()  # of what was marked by `mark_at`
        self.called: list[str] = []  # the modules that are being computed, the innermost last

    def mark_image(self, images: Tensor) -> None:
        """Receptive fields are counted in its pixels."""
        self.fields[images] = Field(1, 0, 0)

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        weights = [tensor for tensor in inputs if tensor in self.weights]
        self.read.update({self.weights[tensor] for tensor in weights} & self.parameters)
        if inputs and len(weights) == len(inputs) and func not in FACTORIES:
            largest = max(weights, key=Tensor.numel)
            for tensor in outputs:
                self.weights[tensor] = self.weights[largest]
            return result
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            owner = self.weights[max(weights, key=Tensor.numel)] if weights else (self.called or [""])[-1]
            self.multiply_adds[owner] += count(*args, **(kwargs or {}), out_val=result) // 2
        seen = [tensor for tensor in inputs if tensor in self.fields]
        if seen and (field := self.field_after(func, args, seen, outputs)) is not None:
            for tensor in outputs:
                self.fields[tensor] = field
        return result

    def field_after(self, func: Any, args: tuple[Any, ...], seen: list[Tensor], outputs: list[Tensor]) -> Field | None:
        field = self.fields[seen[0]]
        if func is aten.convolution.default:
            weight, _, stride, padding, dilation, transposed = args[1:7]
            return None if transposed else field.window(weight.shape[2], stride[0], padding[0], dilation[0])
        if func in POOLINGS:
            return pooled(field, *args[1:])
        if func in PADDINGS:
            above = args[1][2] if len(args[1]) > 2 else 0
            return Field(field.stride, field.low - field.stride * above, field.high - field.stride * above)
        if func is aten.slice.Tensor and args[1:2] == (2,):
            start, step = (args[2] if len(args) > 2 else 0) or 0, args[4] if len(args) > 4 else 1
            start = start if start >= 0 else start + args[0].shape[2]
            return Field(field.stride * step, field.low + field.stride * start, field.high + field.stride * start)
        fields = [self.fields[tensor] for tensor in seen]
        rows = {tensor.shape[2] if tensor.dim() == 4 else 0 for tensor in (*seen, *outputs[:1])}
        if len(rows) > 1 or 0 in rows or len({one.stride for one in fields}) > 1:
            return None
        return Field(field.stride, min(one.low for one in fields), max(one.high for one in fields))

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follows what is computed inside it, without gradients."""
        hooks = [register_module_forward_pre_hook(self.enter),
                 register_module_forward_hook(self.leave, always_call=True)]
        try:
            with torch.no_grad(), self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def enter(self, module: nn.Module, _: object) -> None:
        self.called.append(self.names.get(module, self.called[-1] if self.called else ""))

    def leave(self, module: nn.Module, _: object, result: object) -> None:
        self.called.pop()
        if module in self.names and isinstance(result, Tensor | dict) and (tensors := tensors_in(result)):
            self.outputs[self.names[module]] = Output(tuple(tensors[0].shape), self.fields.get(tensors[0]))


def tensors_in(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def pooled(field: Field, kernel: list[int], stride: list[int] | None = None, padding: Any = (0,), dilation: Any = (1,),
           *_: object) -> Field:
    """The arguments of max pooling; average pooling has no dilation, but a flag in its place."""
    rate = dilation[0] if type(dilation) in (list, tuple) else 1
    return field.window(kernel[0], (stride or kernel)[0], padding[0], rate)


def mark_at(trace: Trace, layer: nn.Module) -> Callable[[], None]:
    """What the layer reads counts as the image, unless a field is known already. Returns what ends this."""
    def mark(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0] not in trace.fields:
            trace.mark_image(inputs[0])
            trace.image_shape = tuple(inputs[0].shape)

    return layer.register_forward_pre_hook(mark).remove
