"""Random numbers of several processes that train as one.

Each process has some rows of the batch of all. What is drawn for its rows is drawn for the batch of all, from the same
seed in every process, and each takes its own rows of that. So a sample gets the same numbers whatever the number of
processes. It costs the time to draw the other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class RowsOfAll(TorchFunctionMode):
    """Within `of`, a random tensor whose first size is that of this process's batch has this process's rows of what is
    drawn for the batch of all: rank, rank + processes, ... These are torch.rand, randn and randint, rand_like and
    randn_like, bernoulli_, and dropout, also that between the layers of torch's recurrent nets, but not that of weights
    (nn.Parameter). In dropout the first size may be a multiple of the batch, as of several sentences of each image. All
    other random numbers are the same in every process. Unless it `is_active`, nothing is changed: torch's compiler does
    not take it with every layer."""

    def __init__(self, rank: int, processes: int, is_active: bool = True):
        super().__init__()
        self.rank, self.processes, self.is_active = rank, processes, is_active
        self.rows, self.all_rows = 0, 0
        self.drawers: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
            torch.rand: self.by_size, torch.randn: self.by_size, torch.randint: self.by_size,
            torch.rand_like: self.like, torch.randn_like: self.like, Tensor.bernoulli_: self.bernoulli,
            **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), self.dropout)}
        self.layered = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}

    @contextmanager
    def of(self, rows: int, all_rows: int) -> Iterator[None]:
        """For a step: the rows of this process's batch and of that of all."""
        self.rows, self.all_rows = rows, all_rows
        with self if self.is_active else nullcontext():
            yield
        self.all_rows = 0

    def __torch_function__(self, function: Callable[..., Any], types: Sequence[type], arguments: Sequence[Any] = (),
                           keys: dict[str, Any] | None = None) -> Any:
        keys = keys or {}
        drawer = self.drawers.get(function)
        if drawer is not None and (own_rows := drawer(function, *arguments, **keys)) is not None:
            return own_rows
        is_padded = len(arguments) == 9 and isinstance(arguments[3], bool)  # packed sequences have their sizes before
        if is_padded and function in self.layered:
            return self.layers(function, *arguments)
        return function(*arguments, **keys)

    def own(self, of_all: Tensor, dim: int = 0) -> Tensor:
        """This process's rows, which are at `dim`, of a tensor for all; one row where it has none, as its batch."""
        first = self.rank if self.rank < of_all.shape[dim] else 0
        return of_all[(*[slice(None)] * dim, slice(first, None, self.processes))].contiguous()

    def by_size(self, function: Callable[..., Tensor], *arguments: Any, **keys: Any) -> Tensor | None:
        if "size" in keys:
            size, others = keys.pop("size"), arguments
        elif arguments and not isinstance(arguments[-1], int):
            size, others = arguments[-1], arguments[:-1]
        else:
            size, others = arguments, ()
        if not size or size[0] != self.rows:
            return None
        return self.own(function(*others, (self.all_rows, *size[1:]), **keys))

    def like(self, function: Callable[..., Tensor], values: Tensor, **keys: Any) -> Tensor | None:
        if not values.dim() or len(values) != self.rows:
            return None
        return self.own(function(ones_like(values, self.all_rows), **keys))

    def bernoulli(self, function: Callable[..., Tensor], values: Tensor, *arguments: Any, **keys: Any
                  ) -> Tensor | None:
        if not values.dim() or len(values) != self.rows:
            return None
        return values.copy_(self.own(function(ones_like(values, self.all_rows), *arguments, **keys)))

    def dropout(self, function: Callable[..., Tensor], values: Tensor, p: float = 0.5, training: bool = True,
                inplace: bool = False) -> Tensor | None:
        if not training or p == 0 or not values.dim() or not len(values) or len(values) % self.rows or isinstance(
                values, nn.Parameter):
            return None
        many = len(values) // self.rows  # for each sample
        kept = function(ones_like(values, self.all_rows * many), p, True).unflatten(0, (self.all_rows, many))
        return values.mul_(self.own(kept).flatten(0, 1)) if inplace else values * self.own(kept).flatten(0, 1)

    def layers(self, function: Callable[..., Any], x: Tensor, state: Any, weights: Sequence[Tensor], bias: bool,
               layers: int, dropout: float, training: bool, bidirectional: bool, batch_first: bool) -> Any:
        """torch.lstm and the like, (B, T, F) or (T, B, F): layer by layer where there is dropout between them, which
        torch draws for (T, B, F)."""
        per_layer = len(weights) // layers
        if not training or not dropout or layers == 1 or x.shape[0 if batch_first else 1] != self.rows:
            return function(x, state, weights, bias, layers, dropout, training, bidirectional, batch_first)
        is_lstm, directions = function is torch.lstm or function == torch.lstm, 2 if bidirectional else 1
        states = state if is_lstm else [state]
        last: list[tuple[Tensor, ...]] = []
        for layer in range(layers):
            before = [tensor[layer * directions : (layer + 1) * directions] for tensor in states]
            x, *after = function(x, before if is_lstm else before[0],
                                 weights[layer * per_layer : (layer + 1) * per_layer], bias, 1, 0.0, training,
                                 bidirectional, batch_first)
            last.append(tuple(after))
            if layer < layers - 1:
                steps = x.shape[1 if batch_first else 0]
                kept = self.own(F.dropout(x.new_ones(steps, self.all_rows, x.shape[2]), dropout), dim=1)
                x = x * (kept.transpose(0, 1) if batch_first else kept)
        return x, *(torch.cat(tensors) for tensors in zip(*last, strict=True))


def ones_like(values: Tensor, rows: int) -> Tensor:
    """Ones of the shape of `values` but for their first size, in the same order in memory, which decides in some
    kernels which number goes where."""
    strides = values.stride()
    order = sorted(range(values.dim()), key=lambda dim: (-strides[dim], dim == 0))  # a single row may have any stride
    shape = [rows if dim == 0 else values.shape[dim] for dim in order]
    return values.new_ones(shape).permute([order.index(dim) for dim in range(values.dim())])
