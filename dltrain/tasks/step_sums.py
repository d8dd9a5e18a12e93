"""Sums of what each training step measures, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class StepSums(list[tuple[Tensor | float, ...]]):
    """The values of each training step, `size` scalars without a graph, and their sums in double precision. To append
    the values of a step costs nothing; they are summed on the host when they are read or a checkpoint is saved, and
    only then does the host wait for the device."""

    def __init__(self, size: int):
        super().__init__()
        self.totals = [0.0] * size

    def settle(self) -> list[float]:
        """The sums since the start or the last `read`."""
        for index, values in enumerate(zip(*self, strict=True)):
            tensors = [value for value in values if torch.is_tensor(value)]
            numbers = [value for value in values if not torch.is_tensor(value)]
            is_near = all(tensor.is_cpu for tensor in tensors)
            numbers += [tensor.item() for tensor in tensors] if is_near else torch.stack(tensors).tolist()
            self.totals[index] += sum(numbers)
        self.clear()
        return self.totals

    def read(self) -> list[float]:
        """As `settle`; the sums start anew."""
        totals, self.totals = self.settle(), [0.0] * len(self.totals)
        return totals
