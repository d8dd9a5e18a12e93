"""Batches that are on their way to a GPU while the step before them is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

BatchT = TypeVar("BatchT")


class SendAhead(Generic[BatchT]):
    """Copies each batch to a GPU by `send`, on a stream of its own, before the batch that comes before it is yielded.
    The copy then runs beside the kernels of that batch's step; the kernels of its own step wait for it on the device,
    not on the host."""

    def __init__(self, send: Callable[[BatchT], BatchT], device: torch.device):
        self.send, self.device = send, device
        self.stream = torch.cuda.Stream(device)

    def __call__(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        pending: list[tuple[BatchT, torch.cuda.Event]] = []
        for batch in batches:
            with torch.cuda.stream(self.stream):
                pending.append((self.send(batch), self.stream.record_event()))
            if len(pending) > 1:
                yield self.receive(*pending.pop(0))
        for batch, copied in pending:
            yield self.receive(batch, copied)

    def receive(self, batch: BatchT, copied: torch.cuda.Event) -> BatchT:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)

        def keep_memory(tensor: Tensor) -> None:
            """It is used again only after the kernels that are queued when the batch is dropped."""
            if tensor.is_cuda:
                tensor.record_stream(current)

        tree_map_only(Tensor, keep_memory, batch)
        return batch
