"""Decoding ahead in threads, and the memory that a step gives back."""

import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import default_collate

from dltrain.data.decoded import BATCHES_AHEAD, decode_batches
from dltrain.errors import DataError

BATCHES = list(torch.arange(40).split(3))


def decode(sample: int) -> torch.Tensor:
    time.sleep(0.002 * (sample % 3 == 0))  # the threads overtake one another
    return torch.tensor(sample)


def threads() -> int:
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


def wait_for_their_end() -> None:
    for _ in range(200):
        if not threads():
            return
        time.sleep(0.01)
    raise AssertionError("threads of a closed loader live on")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_order_does_not_depend_on_the_threads(workers):
    batches = list(decode_batches(range(40), decode, BATCHES, workers, default_collate))
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in BATCHES]
    wait_for_their_end()


def test_a_loader_that_is_left_early_reads_no_further():
    seen: list[int] = []

    def note(sample: int) -> int:
        seen.append(sample)
        return sample

    reader = decode_batches(range(3000), note, list(torch.arange(3000).split(1)), 2, list)
    next(reader)
    del reader
    wait_for_their_end()
    assert len(seen) <= 2 * BATCHES_AHEAD + 4


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_thread_is_that_of_its_batch(workers):
    def refuse(sample: int) -> torch.Tensor:
        if sample == 10:
            raise DataError("photo 10: not an image")
        return torch.tensor(sample)

    reader = decode_batches(range(40), refuse, BATCHES, workers, default_collate)
    assert [next(reader).tolist() for _ in range(3)] == [batch.tolist() for batch in BATCHES[:3]]
    with pytest.raises(DataError, match="photo 10: not an image"):
        next(reader)
    wait_for_their_end()


FAULTS = """
import resource, torch
from dltrain.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(count) for count in (12_000_000, 9_000_000, 15_000_000, 10_000_000)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = min(faults() for _ in range(6))
keep_freed_memory()
print(before, min(faults() for _ in range(6)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_freed_memory_is_used_again():
    """Tensors of 36 to 60 MB, 44,922 pages or 88 huge ones, are new to the process each time, until freed memory stays.
    Of those one may still be new: its place is too small by what glibc adds to align it."""
    before, after = map(int, subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True,
                                            check=True).stdout.split())
    assert before >= 80
    assert after < before / 2
