"""Sample order: which samples form which batch, and from which batch a resumed run continues. And what happens when a
batch does not come, because a network disk is gone, or because a process that reads hangs or was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Generic, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from dltrain.batches import generator
from dltrain.data.threads import list_some, names_being_read
from dltrain.errors import MachineError

BatchT = TypeVar("BatchT")
TIMEOUT = 600.0  # seconds, of data that do not have the key timeout_seconds
SECONDS_TO_RAISE = 5.0  # after which a main thread that does not answer is ended with its process
DEAD_WORKER = "DataLoader worker"  # in the message of torch's DataLoader about a process that died
errors: list[MachineError] = []  # to be raised in the main thread
RowsT = TypeVar("RowsT", Tensor, "list[Any]", "tuple[Any, ...]")
Read = Callable[[list[Tensor]], Iterable[BatchT]]  # the sample indices of each coming batch -> those batches


class Waiting:
    """`since`: when somebody began to wait, None while nobody does. `describe`: what is being waited for."""

    def __init__(self, describe: Callable[[], str]):
        self.describe = describe
        self.since: float | None = None

    @contextmanager
    def limited(self, timeout_seconds: float | None) -> Iterator[None]:
        """Raises MachineError in the main thread where one wait takes longer, and where a process that reads dies."""
        is_over = threading.Event()
        if timeout_seconds is not None and threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
                signal.signal(signal.SIGALRM, fail)
            threading.Thread(target=self.watch, args=(timeout_seconds, is_over), name="waiting", daemon=True).start()
        try:
            yield
        except (RuntimeError, EOFError, OSError) as error:
            text = f"{error} {error.__cause__}"
            is_dead = DEAD_WORKER in text or any(frame.filename.endswith("torch/multiprocessing/reductions.py")
                                                 for frame in traceback.extract_tb(error.__traceback__))
            if not is_dead or "Bus error" in text:  # out of shared memory, see out_of_memory.py
                raise
            error.add_note(f"when the next was {self.describe()}")
            raise MachineError(describe_dead_worker(error)) from error
        finally:
            is_over.set()

    def watch(self, timeout_seconds: float, is_over: threading.Event) -> None:
        while not is_over.wait(min(timeout_seconds / 10, 5)):
            since = self.since
            if since is not None and time.perf_counter() - since > timeout_seconds:
                break
        else:
            return
        error = MachineError(f"data.timeout_seconds={timeout_seconds:g}: {self.describe()} was not read in that time"
                             f"{names_being_read()}; see whether the disk answers")
        for process in multiprocessing.active_children():  # that read; they do not end by themselves
            process.kill()
        errors.append(error)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        if not is_over.wait(SECONDS_TO_RAISE):
            os.write(2, f"dltrain: error: {error}\n".encode("utf-8", "backslashreplace"))
            os._exit(error.exit_code)


def fail(signum: int, frame: FrameType | None) -> None:
    """Handles SIGALRM in the main thread."""
    if errors:
        raise errors.pop()


def describe_dead_worker(error: BaseException) -> str:
    """Names the signal, which torch often has in the cause, and what notes of the error say about the batch."""
    text = " ".join(str(error.__cause__ or error).split()).rstrip(".")
    if DEAD_WORKER not in text:  # it died while a batch was handed over
        text = f"a process that reads data has ended ({type(error).__name__})"
    return (f"{', '.join([text, *getattr(error, '__notes__', [])])}; if the system was out of memory, use a smaller "
            "data.num_workers or data.batch_size")


def describe_batch(split: str, batches: Sequence[Tensor], index: int) -> str:
    samples = batches[index].tolist() if index < len(batches) else []
    return f"a batch of {split}, samples {list_some([*map(str, samples)])}"


class Loader(Generic[BatchT]):
    split = "the training split"  # in messages
    timeout_seconds: float | None = None  # to read a batch


class TrainLoader(Loader[BatchT]):
    """Yields the batches of an epoch in an order that is a function of (seed, epoch); each sample comes once.

    `batches_done` counts the batches yielded since the start of the run. It is all that a resumed run needs: it
    continues with batch `batches_done % len(self)` of epoch `batches_done // len(self)`. Worker processes that read
    ahead do not change it. With `bucket_keys` (N,), as lengths or aspect ratios, samples of similar keys share a batch,
    which reduces padding.

    Of `world_size` processes each takes every world_size-th sample of each batch of all, which is that of one process
    with world_size * batch_size samples (`as_one`); `read` gets the batches of all. Earlier versions took every
    world_size-th sample of the whole order, and left out the remainder in that epoch.
    """

    def __init__(self, read: Read[BatchT], num_samples: int, batch_size: int, seed: int, rank: int = 0,
                 world_size: int = 1, max_batches: int | None = None, shuffled: bool = True,
                 bucket_keys: Tensor | None = None, as_one: bool = True):
        self.read, self.seed, self.rank, self.world_size = read, seed, rank, world_size
        self.shuffled, self.bucket_keys = shuffled, bucket_keys
        self.num_samples, self.batch_size = num_samples, batch_size
        self.shares = as_one and world_size > 1
        if as_one:
            self.rank, self.world_size, self.batch_size = 0, 1, batch_size * world_size
        self.num_batches = -(-(num_samples // self.world_size) // self.batch_size)
        self.rows_of_all: int | None = None  # samples in the present batch, where each process has some of them
        self.is_cut = max_batches is not None and max_batches < self.num_batches  # a smoke run
        if max_batches is not None:
            self.num_batches = min(self.num_batches, max_batches)
        self.batches_done = 0
        self.seconds_waiting = 0.0  # that the training waited for batches
        self.waiting = Waiting(lambda: self.split)

    def __len__(self) -> int:
        return self.num_batches

    def order(self, epoch: int) -> Tensor:
        """The sample indices of this process in one epoch, (N // world_size,) int64."""
        if not self.shuffled:
            return torch.arange(self.num_samples)
        shuffled = torch.randperm(self.num_samples, generator=generator("order", self.seed, epoch))
        even = self.num_samples - self.num_samples % self.world_size
        indices = shuffled[:even][self.rank :: self.world_size]
        if self.bucket_keys is None:
            return indices
        return bucket_by_key(indices, self.bucket_keys, self.batch_size, generator("buckets", self.seed, epoch))

    def __iter__(self) -> Iterator[BatchT]:
        epoch, start = divmod(self.batches_done, len(self))
        batches = self.order(epoch).split(self.batch_size)[start : len(self)]
        first = self.batches_done
        waiting = self.waiting = Waiting(lambda: describe_batch(self.split, batches, self.batches_done - first))
        with waiting.limited(self.timeout_seconds):
            waiting.since = started = time.perf_counter()
            for batch in self.read(list(batches)):
                if self.shares:
                    self.rows_of_all = len(batches[self.batches_done - first])
                self.batches_done += 1  # before the step: a checkpoint at the end of the step counts this batch as done
                self.seconds_waiting += time.perf_counter() - started
                waiting.since = None
                yield batch
                waiting.since = started = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        return {"position": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches_done = state["position"]


def bucket_by_key(order: Tensor, keys: Tensor, batch_size: int, rng: torch.Generator, pool: int = 50) -> Tensor:
    """Sorts each `pool` batches of the order by `keys` (N,), such as lengths, then shuffles the batches (I. Sutskever
    et al., 2014, arXiv 1409.3215, section 3.4: twice as fast). The last batch, which may be smaller, stays the last."""
    sorted_pools = [indices[keys[indices].argsort(stable=True)] for indices in order.split(batch_size * pool)]
    num_full, remainder = len(order) // batch_size, len(order) % batch_size
    batches = torch.cat(sorted_pools)
    shuffled = batches[: num_full * batch_size].view(num_full, batch_size)[torch.randperm(num_full, generator=rng)]
    return torch.cat([shuffled.flatten(), batches[len(order) - remainder :]])


class EvalLoader(Loader[BatchT]):
    """Yields a split once, in the order of its indices. Each of `world_size` processes takes every world_size-th
    sample. So that all have equally many, the last ones are filled up with the index -1, which `read` must turn into a
    sample that is not scored."""

    def __init__(self, read: Read[BatchT], num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1,
                 max_batches: int | None = None):
        padded = torch.arange(-(-num_samples // world_size) * world_size)
        padded[num_samples:] = -1
        self.read = read
        self.batches = list(padded[rank::world_size].split(batch_size))[:max_batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[BatchT]:
        done = 0
        waiting = Waiting(lambda: describe_batch(self.split, self.batches, done))
        with waiting.limited(self.timeout_seconds):
            waiting.since = time.perf_counter()
            for batch in self.read(self.batches):
                done += 1
                waiting.since = None
                yield batch
                waiting.since = time.perf_counter()


class SplitLoaders(pl.LightningDataModule, Generic[BatchT]):
    """Lightning's hooks for the loaders of the three splits. A checkpoint saves the position of the training loader.

    A subclass implements `num_samples` and `read`. The test split is read only by `test_dataloader`."""

    validated_split = "val"  # or train: that which `dltrain eval split=train` measures
    shuffled = True  # whether the training samples come in a new order in each epoch

    def __init__(self, *, batch_size: int, seed: int = 0):
        super().__init__()
        self.batch_size, self.eval_batch_size, self.seed = batch_size, batch_size, seed
        self.max_batches: int | None = None  # of every split, in a smoke run
        self.timeout_seconds: float | None = TIMEOUT  # to read a batch
        self.rank, self.world_size = 0, 1  # the index of this process, and how many train together
        self.as_one = True  # how they do, see TrainLoader
        self.train_loader: TrainLoader[BatchT] | None = None
        self.send_ahead: Callable[[Iterable[BatchT]], Iterator[BatchT]] | None = None  # to a GPU, see ahead.py

    def num_samples(self, split: str) -> int:
        raise NotImplementedError

    def bucket_keys(self) -> Tensor | None:
        """(N,) of the training samples, such as lengths, if samples of similar keys shall share a batch; else None."""
        return None

    def read(self, split: str, batches: list[Tensor]) -> Iterator[BatchT]:
        """Yields the batch of each tensor of sample indices; an index of -1 gives a sample that is not scored."""
        raise NotImplementedError

    def read_rows(self, split: str, batches: list[Tensor]) -> Iterator[BatchT]:
        """As `read` for the batches of all processes: this one's rows of each."""
        return self.read(split, [self.own_rows(batch) for batch in batches])

    def own_rows(self, of_all: RowsT) -> RowsT:
        """What this process has of a value for each sample of the batch of all: one sample at least."""
        return of_all[self.rank if self.rank < len(of_all) else 0 :: self.world_size]

    def fewest_rows(self, batch_size: int) -> int:
        """Samples in the smallest batch of an epoch, with another batch size, of the process that has fewest."""
        samples, processes = self.num_samples("train"), self.world_size
        if not self.as_one:
            return samples // processes % batch_size or batch_size
        return max(1, (samples % (batch_size * processes) or batch_size * processes) // processes)

    def keep_on(self, device: torch.device, at_most: int) -> None:
        """Keeps all samples in the memory of a GPU, where they are whole tensors and take `at_most` bytes."""

    def read_ahead(self, split: str, batches: list[Tensor]) -> Iterable[BatchT]:
        """As `read`; on a GPU each batch is there before the step that takes it."""
        is_shared = split == "train" and self.world_size > 1 and self.as_one
        samples = (self.read_rows if is_shared else self.read)(split, batches)
        return samples if self.send_ahead is None else self.send_ahead(samples)

    def train_dataloader(self) -> TrainLoader[BatchT]:
        if self.train_loader is None:
            self.train_loader = TrainLoader(partial(self.read_ahead, "train"), self.num_samples("train"),
                                            self.batch_size, self.seed, self.rank, self.world_size, self.max_batches,
                                            self.shuffled, self.bucket_keys(), self.as_one)
            self.limit(self.train_loader, "train")
        return self.train_loader

    def eval_loader(self, split: str) -> EvalLoader[BatchT]:
        loader = EvalLoader(partial(self.read_ahead, split), self.num_samples(split), self.eval_batch_size, self.rank,
                            self.world_size, self.max_batches)
        self.limit(loader, split)
        return loader

    def limit(self, loader: Loader[BatchT], split: str) -> None:
        loader.split, loader.timeout_seconds = f"the {split} split of {type(self).__name__}", self.timeout_seconds

    def val_dataloader(self) -> EvalLoader[BatchT]:
        return self.eval_loader(self.validated_split)

    def test_dataloader(self) -> EvalLoader[BatchT]:
        return self.eval_loader("test")

    def on_exception(self, exception: BaseException) -> None:
        """Lightning's hook. torch says that a process died wherever the training is, then without what it read."""
        if DEAD_WORKER in str(exception) and self.train_loader is not None:
            exception.add_note(f"when the next was {self.train_loader.waiting.describe()}")

    def state_dict(self) -> dict[str, int]:
        return {"position": self.train_loader.batches_done if self.train_loader else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.train_dataloader().batches_done = state["position"]
