"""Which samples, in which order, from which step on: the part of exact resume that belongs to data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from dltrain.batches import generator

Read = Callable[[list[Tensor]], Iterable[Any]]  # the indices of each batch to come -> the batches


class TrainLoader:
    """Yields an epoch's batches in an order that is a function of (seed, epoch), each sample once.

    `position` counts the batches yielded since the run began, so that it alone says where to go on: epoch
    `position // len(self)`, batch `position % len(self)`. Workers that read ahead do not change it.
    With several processes each takes its stride of the common order; what does not divide is left out that epoch.
    """

    def __init__(self, read: Read, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
                 max_batches: int | None = None):
        self.read, self.seed, self.rank, self.world_size = read, seed, rank, world_size
        self.num_samples, self.batch_size = num_samples, batch_size
        self.num_batches = -(-(num_samples // world_size) // batch_size)
        if max_batches is not None:
            self.num_batches = min(self.num_batches, max_batches)
        self.position = 0

    def __len__(self) -> int:
        return self.num_batches

    def order(self, epoch: int) -> Tensor:
        """The sample indices of this process in one epoch."""
        shuffled = torch.randperm(self.num_samples, generator=generator("order", self.seed, epoch))
        even = self.num_samples - self.num_samples % self.world_size
        return shuffled[:even][self.rank :: self.world_size]

    def __iter__(self) -> Iterator[Any]:
        epoch, start = divmod(self.position, len(self))
        batches = self.order(epoch).split(self.batch_size)[start : len(self)]
        for batch in self.read(list(batches)):
            self.position += 1  # before the step: what is saved at the step's end counts this batch as done
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class EvalLoader:
    """Yields a part once, in its own order. With several processes each takes a stride; the last is filled up with -1,
    which `read` must turn into samples that are not scored."""

    def __init__(self, read: Read, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1,
                 max_batches: int | None = None):
        padded = torch.arange(-(-num_samples // world_size) * world_size)
        padded[num_samples:] = -1
        self.read = read
        self.batches = list(padded[rank::world_size].split(batch_size))[:max_batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.read(self.batches))
