"""Short texts that are equal for equal values, to compare what two runs had in memory or on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}  # by bytes a value


def flatten(tree: object, name: str = "") -> dict[str, Any]:
    """Nested values by their path, as optimizer_states.0.state.3.exp_avg."""
    match tree:
        case Mapping():
            items = [*tree.items()]
        case list() | tuple():
            items = [*enumerate(tree)]
        case _:
            return {name: tree}
    return {path: leaf for key, value in items for path, leaf in flatten(value, f"{name}.{key}" if name else str(key)
                                                                         ).items()}


def digest(values: Mapping[str, Any]) -> str:
    """Equal for equal bits; "-" for nothing."""
    total = hashlib.blake2b(digest_size=6)
    for name, value in values.items():
        total.update(f"{name}\n".encode())
        if torch.is_tensor(value):
            total.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
            total.update(in_a_row(value.cpu()).view(torch.uint8).numpy().data)
        else:
            total.update(json.dumps(value, default=repr).encode())
    return total.hexdigest() if values else "-"


def in_a_row(tensor: Tensor) -> Tensor:
    """Its values as one dimension without gaps; not a copy where they lie so. A dimension of one value may have any
    stride, which `view` of another type does not take."""
    return tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))


def sums_of_bits(tensors: Iterable[Tensor]) -> Tensor:
    """(N,) int64: of each tensor the sum of its bits read as integers, which another value anywhere changes. On the
    device, without waiting for it, at the cost of reading the tensors once; not different for the same values in
    another order."""
    sums = [in_a_row(tensor).view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
            for tensor in tensors]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)
