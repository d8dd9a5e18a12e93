"""Which samples, in which order, from which step on: the part of exact resume that belongs to data; and what every
data module is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dltrain.batches import generator

Read = Callable[[list[Tensor]], Iterable[Any]]  # the indices of each batch to come -> the batches


class TrainLoader:
    """Yields an epoch's batches in an order that is a function of (seed, epoch), each sample once.

    `position` counts the batches yielded since the run began, so that it alone says where to go on: epoch
    `position // len(self)`, batch `position % len(self)`. Workers that read ahead do not change it.
    With several processes each takes its stride of the common order; what does not divide is left out that epoch.
    With `lengths` (N,) samples of like length come in one batch, so that little is filled up.
    """

    def __init__(self, read: Read, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
                 max_batches: int | None = None, shuffled: bool = True, lengths: Tensor | None = None):
        self.read, self.seed, self.rank, self.world_size = read, seed, rank, world_size
        self.shuffled, self.lengths = shuffled, lengths
        self.num_samples, self.batch_size = num_samples, batch_size
        self.num_batches = -(-(num_samples // world_size) // batch_size)
        if max_batches is not None:
            self.num_batches = min(self.num_batches, max_batches)
        self.position = 0

    def __len__(self) -> int:
        return self.num_batches

    def order(self, epoch: int) -> Tensor:
        """The sample indices of this process in one epoch."""
        if not self.shuffled:
            return torch.arange(self.num_samples)
        shuffled = torch.randperm(self.num_samples, generator=generator("order", self.seed, epoch))
        even = self.num_samples - self.num_samples % self.world_size
        own = shuffled[:even][self.rank :: self.world_size]
        if self.lengths is None:
            return own
        return bucketed(own, self.lengths, self.batch_size, generator("buckets", self.seed, epoch))

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


def bucketed(order: Tensor, lengths: Tensor, batch_size: int, draws: torch.Generator, pool: int = 50) -> Tensor:
    """The order with every `pool` batches of it sorted by length, and then whole batches shuffled (I. Sutskever et al.,
    2014, arXiv 1409.3215, section 3.4: twice as fast). The last batch, which may be smaller, stays the last."""
    sorted_pools = [split[lengths[split].argsort(stable=True)] for split in order.split(batch_size * pool)]
    whole, rest = len(order) // batch_size, len(order) % batch_size
    batches = torch.cat(sorted_pools)
    shuffled = batches[: whole * batch_size].view(whole, batch_size)[torch.randperm(whole, generator=draws)]
    return torch.cat([shuffled.flatten(), batches[len(order) - rest :]])


class EvalLoader:
    """Yields a split once, in its own order. With several processes each takes a stride; the last is filled up with -1,
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


class DataModule(pl.LightningDataModule):
    """Samples in the splits train, val, test, as batches of `batch_type`. A subclass has `load`, `num_samples`, `read`

    After `load`, `class_names` has num_classes entries where there are classes, and `vocabularies` the symbols of each
    kind of text, by its name, where there is text: set before `load`, they are kept. The test split is read only by
    `test_dataloader`.
    """

    batch_type: type
    shuffled = True  # the training samples, anew in each epoch

    def __init__(self, *, batch_size: int, seed: int = 0):
        super().__init__()
        self.batch_size, self.eval_batch_size, self.seed = batch_size, batch_size, seed
        self.class_names: list[str] = []
        self.vocabularies: dict[str, list[str]] = {}
        self.max_batches: int | None = None  # a smoke run's limit on every split
        self.rank, self.world_size = 0, 1  # this process's number, and how many train together
        self.train_loader: TrainLoader | None = None

    def load(self) -> None:
        """Finds, checks and, where it fits, reads everything. Raises DataError with the file and the remedy."""
        raise NotImplementedError

    def num_samples(self, split: str) -> int:
        raise NotImplementedError

    def lengths(self) -> Tensor | None:
        """(N,) of the training samples, where those of like length should come together."""
        return None

    def read(self, split: str, batches: list[Tensor]) -> Iterator[Any]:
        """The batches of these indices; an index of -1 gives a sample that is not scored."""
        raise NotImplementedError

    def sizes(self) -> dict[str, int]:
        """The keys of data.* that only the files know."""
        return {}

    def describe(self) -> str:
        """The data in a few words."""
        return ", ".join(f"{self.num_samples(split):,} {split}" for split in ("train", "val", "test"))

    def write_samples(self, folder: Path) -> str:
        """Leaves something in `folder` that `predict` can be tried on; returns the words to type after run=."""
        return ""

    def train_dataloader(self) -> TrainLoader:
        if self.train_loader is None:
            self.train_loader = TrainLoader(lambda batches: self.read("train", batches), self.num_samples("train"),
                                            self.batch_size, self.seed, self.rank, self.world_size,
                                            self.max_batches, self.shuffled, self.lengths())
        return self.train_loader

    def eval_loader(self, split: str) -> EvalLoader:
        return EvalLoader(lambda batches: self.read(split, batches), self.num_samples(split), self.eval_batch_size,
                          self.rank, self.world_size, self.max_batches)

    def val_dataloader(self) -> EvalLoader:
        return self.eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        return self.eval_loader("test")

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.train_loader.position if self.train_loader else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.train_dataloader().position = state["position"]
