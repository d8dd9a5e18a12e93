"""What a task offers to `dltrain export`: graphs from tensors to tensors, and the task that calls them.

A form (one per kind of task) has the graphs of a task, each an nn.Module with named inputs and outputs, connects a task
to exported graphs, so that its own `predict` calls them in the place of its model, and compares the outputs of both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dltrain.batches import Batch

Axis = int | str  # a number is fixed; a name is a size that may differ from call to call

TOLERANCE = 1e-4  # of the largest absolute difference of an output
PIXELS = {"uint8": torch.uint8, "float32": torch.float32}
# Why tasks that read whole sequences refuse a format.
FIXED_LENGTH = {"torch_export": "torch.export fixes the length of the sequences that a recurrent layer reads"}


class Port(NamedTuple):
    """An input or output. `values`: what its numbers are, with their range."""

    name: str
    axes: tuple[Axis, ...]
    dtype: torch.dtype
    values: str


class Graph(NamedTuple):
    """`module` takes the tensors of `inputs`, as `example` has them, and returns a tuple of those of `outputs`."""

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Call(Protocol):
    """An exported graph."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]: ...


class Attempt(NamedTuple):
    """One way to export: `traced` by torch's older ONNX exporter, which follows Python's control flow once, or by
    torch.export; with height and width of images left open, or fixed."""

    traced: bool
    any_size: bool


class Form(ABC):
    """The graphs of one kind of task. `refused`: formats that it does not allow, with the reason. `attempts`: tried in
    order for ONNX until the outputs agree; those that are not traced also for torch.export."""

    refused: ClassVar[Mapping[str, str]] = {}
    attempts: ClassVar[tuple[Attempt, ...]] = (Attempt(False, True), Attempt(False, False))
    reads_pixels: ClassVar[bool] = False
    tolerances: ClassVar[Mapping[str, float]] = {}  # by the keys of `differences`; TOLERANCE for the others
    check_sizes: ClassVar[tuple[int, ...]] = (1, 2, 33)  # of the first batches that are compared; then the last again
    usage: ClassVar[str] = ""  # what to know about a call of the graphs, for the model card

    def __init__(self, task: Any):
        self.task = task

    @abstractmethod
    def graphs(self, batch: Any, any_size: bool, pixels: torch.dtype) -> list[Graph]:
        """`batch`: at least two samples of the test split; `pixels`: the type of an input that is an image."""

    @abstractmethod
    def connect(self, calls: Mapping[str, Call]) -> None:
        """Makes the task call the exported graphs, by their names, in the place of its model."""

    @abstractmethod
    def outputs(self, batch: Any) -> list[Any]:
        """What the task computes of a batch, in evaluation mode, to be compared."""

    def differences(self, own: Sequence[Any], exported: Sequence[Any]) -> dict[str, float]:
        """The largest absolute differences, by name, between the `outputs` of two tasks."""
        return {"outputs": max(map(largest_difference, own, exported))}

    def resized(self, batch: Any) -> Any:
        """The first images of a batch in another size, for graphs that take any size; None without images."""
        return None


def largest_difference(own: Tensor, exported: Tensor) -> float:
    """Infinite where shapes differ, or one has nan."""
    if own.shape != exported.shape:
        return torch.inf
    distance = torch.where(own == exported, 0.0, (own.double() - exported.double()).abs())
    return float(distance.nan_to_num(nan=torch.inf).amax()) if distance.numel() else 0.0


def first_rows(batch: Batch, count: int) -> Any:
    """A batch of its first samples: every field has one entry, or row, for each sample."""
    return type(batch)(**{name: value[:count] for name, value in batch._asdict().items()})


def rows_of_one_length(lengths: Iterable[int]) -> dict[int, list[int]]:
    """The numbers of the rows of each length."""
    rows: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows.setdefault(length, []).append(row)
    return rows


def whole_lengths(tokens: Tensor) -> Any:
    """(B,): the length of each row of (B, T) or (B, T, F), all T, computed from the tensor so that a traced graph
    reads it too."""
    return torch.ones_like(tokens.flatten(2)[..., 0] if tokens.dim() > 2 else tokens, dtype=torch.int64).sum(1)
