"""Several processes that train as one process with the batch of all of them would.

Process r of P has the rows r, r + P, ... of each batch of all. DistributedDataParallel takes the mean of the gradients
of the processes; each loss is weighted so that this mean is the gradient of the loss over all rows. What a step reports
are sums over all processes, in each of them: the first one alone saves checkpoints, at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from dltrain.parallel.draws import RowsOfAll


class SharedBatches(Protocol):
    rows_of_all: int | None  # samples in the batch of all of the present step; None: as many in each process


class AsOne:
    """`rank`: the index of this process among so many `processes`. `shares_draws`: whether random numbers are those of
    the batch of all; else each process has its own."""

    def __init__(self, rank: int, processes: int, shares_draws: bool = True):
        self.rank, self.processes = rank, processes
        self.draws = RowsOfAll(rank, processes, shares_draws)

    @property
    def all_rows(self) -> int:
        """Samples in the batch of all of the present step."""
        return self.draws.all_rows

    def own(self, of_all: Tensor, dim: int = 0) -> Tensor:
        """This process's rows, which are at `dim`."""
        return self.draws.own(of_all, dim)

    def join(self, own: Tensor, dim: int = 0) -> Tensor:
        """The inverse: the rows of all processes, of which each has as many."""
        rows = [torch.empty_like(own) for _ in range(self.processes)]
        torch.distributed.all_gather(rows, own.contiguous())
        return torch.stack(rows, dim + 1).flatten(dim, dim + 1)

    def training_step(self, call: Callable[..., Any], sums: list[tuple[Tensor | float, ...]], batches: SharedBatches,
                      batch: Any, *arguments: Any) -> Any:
        """What `call`, the task's training step, returns for this process's batch, its loss weighted. The step's entry
        in `sums`, its last value a count, becomes that of all."""
        all_rows = batches.rows_of_all or batch.size * self.processes
        size, length = batch.size if self.rank < all_rows else 0, len(sums)
        with self.draws.of(batch.size, all_rows):
            returned = call(batch, *arguments)
        if returned is None:  # the task skips the batch, in every process
            return None
        loss: Tensor = returned["loss"] if isinstance(returned, Mapping) else returned
        entry = sums.pop() if len(sums) > length else (float(size),)
        own = torch.stack([exact(value, loss.device) for value in entry])
        own = own if size else torch.zeros_like(own)  # its only sample fills up the last batch of an epoch
        of_all = own.clone()
        torch.distributed.all_reduce(of_all)
        if len(entry) > 1:
            sums.append((*of_all.unbind(),))
        loss = loss * (own[-1] * self.processes / of_all[-1].clamp_min(1)).to(loss.dtype)
        return {**returned, "loss": loss} if isinstance(returned, Mapping) else loss


def exact(value: Tensor | float, device: torch.device) -> Tensor:
    """A scalar on the device, in double precision where it has that. The host does not wait for it."""
    kind = torch.float32 if device.type == "mps" else torch.float64
    return value.to(device, kind) if isinstance(value, Tensor) else torch.full((), value, device=device, dtype=kind)
