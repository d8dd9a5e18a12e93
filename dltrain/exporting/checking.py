"""Compares an exported model with the run it is of, on samples of the test split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from dltrain.data.datamodule import DataModule
from dltrain.errors import CheckpointError
from dltrain.tasks.graphs import TOLERANCE, Form, first_rows

SAMPLES = 100


class Check(NamedTuple):
    """`differences`: the largest absolute ones, by name."""

    samples: int
    differences: dict[str, float]

    def exceeded(self, tolerances: Mapping[str, float]) -> str:
        """The differences that are too large, as text; "" where there are none."""
        return ", ".join(f"{name} {value:.3g}, at most {tolerances.get(name, TOLERANCE):g}" for name, value
                         in self.differences.items() if not value <= tolerances.get(name, TOLERANCE))

    def describe(self) -> str:
        values = ", ".join(f"{name} {value:.2g}" for name, value in self.differences.items())
        return f"largest difference from the run on {self.samples} test inputs: {values}"


def sizes_up_to(sizes: Iterable[int], count: int) -> list[int]:
    """The first of these sizes whose sum is `count`, the last one reduced; all of them for fewer."""
    kept = []
    for size in sizes:
        if count > 0:
            kept.append(min(size, count))
            count -= size
    return kept


def batches_of_test(data: DataModule, first: Sequence[int]) -> Iterator[Any]:
    """Batches of up to SAMPLES samples of the test split, of the sizes `first`: an exporter may have fixed the size."""
    sizes, indices = [*first, *[first[-1]] * SAMPLES], torch.arange(data.num_samples("test"))
    left = SAMPLES
    for batch in data.read("test", list(indices[: sum(sizes)].split(sizes_up_to(sizes, len(indices))))):
        kept = first_rows(batch, left) if batch.size > left else batch
        left -= kept.size
        yield kept
        if left <= 0:
            return


def example_batch(data: DataModule) -> Any:
    """Two samples of the test split; one twice where it has no second."""
    return next(iter(data.read("test", [torch.arange(2) % data.num_samples("test")])))


def compare(own: Form, exported: Form, data: DataModule, any_size: bool) -> Check:
    """`any_size`: images of another size are compared too."""
    largest: dict[str, float] = {}
    samples = 0
    for number, batch in enumerate(batches_of_test(data, own.check_sizes)):
        samples += batch.size
        cases = [batch, *([first_rows(batch, 1)] if number == 0 and batch.size > 1 else [])]
        if number == 0 and any_size:
            cases.append(own.resized(batch))
        for case in cases:
            for name, value in own.differences(own.outputs(case), exported.outputs(case)).items():
                largest[name] = max(largest.get(name, 0.0), value)
    return Check(samples, largest)


def require_agreement(check: Check, tolerances: Mapping[str, float], what: str) -> None:
    """Raises CheckpointError where an exported model differs from its run."""
    if exceeded := check.exceeded(tolerances):
        raise CheckpointError(f"{what} differs from the run on {check.samples} test inputs: {exceeded}; nothing is "
                              "written")
