"""Samples that are decoded from files, in threads, while the model trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from torch import Tensor

from dltrain.data.threads import ReadingThreads, reading

SampleT = TypeVar("SampleT")
DecodedT = TypeVar("DecodedT")
CollatedT = TypeVar("CollatedT")
BATCHES_AHEAD = 2  # for each thread


def decode_batches(samples: Sequence[SampleT], decode: Callable[[SampleT], DecodedT], batches: list[Tensor],
                   num_workers: int, collate: Callable[[list[DecodedT]], CollatedT],
                   name: Callable[[SampleT], object] = str) -> Iterator[CollatedT]:
    """Yields the collated samples of each tensor of indices. `num_workers` threads read ahead, a batch each; the
    batches and their order are the same with any number of them. Pillow decodes and scales outside Python's lock, and
    threads cost no start in each epoch: processes took longer to start than to decode a small folder. `name`: of a
    sample, in the message that it cannot be read."""

    def read(indices: Tensor) -> CollatedT:
        return collate([reading(decode, name, samples[index]) for index in indices.tolist()])

    if not num_workers:
        yield from map(read, batches)
        return
    pool = ReadingThreads(num_workers, "decode")
    pending: deque[Future[CollatedT]] = deque()
    try:
        for indices in batches:
            pending.append(pool.submit(read, indices))
            if len(pending) > BATCHES_AHEAD * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.close()
