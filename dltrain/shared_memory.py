"""Whether the batches of worker processes fit into /dev/shm, found out before the first step. There a process that
writes beyond the end is killed, later and without a word, by a bus error.

The data sets of dltrain are read in threads and use none of it; data of one's own may have worker processes, as those
of torch's DataLoader."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor
from torch.utils._pytree import tree_leaves

from dltrain.batches import Batch
from dltrain.errors import MachineError

SHARED = Path("/dev/shm")
PREFETCH = 2  # batches that each worker of a DataLoader reads ahead, if nothing else is said


def check_shared_memory(batch: Batch, batch_size: int, workers: int, processes: int) -> None:
    """`batch`: the first one, of any size. `workers`: of each of the `processes` that train together. Raises
    MachineError with the bytes that are needed and those that are free."""
    tensors = [leaf for leaf in tree_leaves(batch) if issubclass(type(leaf), Tensor)]
    shared = sum(tensor.nbytes for tensor in tensors if tensor.is_cpu and tensor.is_shared())
    if not shared or not SHARED.is_dir():
        return
    waiting = (PREFETCH * max(1, workers) + 1) * processes
    needed = waiting * batch_size * shared // batch.size
    status = os.statvfs(SHARED)
    free = status.f_frsize * status.f_bavail
    if needed > free:
        raise MachineError(f"{SHARED} is too small: {waiting} batches of data.batch_size={batch_size} samples "
                           f"wait there and need {needed / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free; start the "
                           f"container with --shm-size={max(1, round(2 * needed / 1e9))}g, or use a smaller "
                           "data.num_workers")
