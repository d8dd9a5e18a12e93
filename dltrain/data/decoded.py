"""Samples that are decoded from files, in worker processes, while the model trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

SampleT = TypeVar("SampleT")
DecodedT = TypeVar("DecodedT")
CollatedT = TypeVar("CollatedT")


class Decoded(Dataset[DecodedT], Generic[SampleT, DecodedT]):
    """`decode` runs in a worker process and must be picklable: a function of a module, or a partial of one."""

    def __init__(self, samples: Sequence[SampleT], decode: Callable[[SampleT], DecodedT]):
        self.samples, self.decode = samples, decode

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> DecodedT:
        return self.decode(self.samples[index])


def decode_batches(samples: Sequence[SampleT], decode: Callable[[SampleT], DecodedT], batches: list[Tensor],
                   num_workers: int, collate: Callable[[list[DecodedT]], CollatedT]) -> Iterator[CollatedT]:
    """Yields the collated samples of each tensor of indices. `num_workers` processes read ahead; the batches and their
    order are the same with any number of them."""
    dataset = Decoded(samples, decode)
    yield from DataLoader(dataset, batch_sampler=[batch.tolist() for batch in batches], num_workers=num_workers,
                          collate_fn=collate, generator=torch.Generator())  # its own: the global one is not advanced
