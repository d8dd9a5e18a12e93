"""Graphs as files of torch.export, which are called without the code of the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torchvision.ops import boxes as box_ops

from dltrain.exporting.quiet import quiet
from dltrain.tasks.graphs import Graph


def write_program(graph: Graph, path: Path) -> None:
    """Raises whatever torch.export raises where the graph cannot be written."""
    with quiet(), torch.no_grad(), branch_free_suppression():
        program = torch.export.export(graph.module, graph.example, dynamic_shapes=dynamic_shapes(graph, Dim.DYNAMIC),
                                      strict=False, prefer_deferred_runtime_asserts_over_guards=True)
        torch.export.save(program, path)


def dynamic_shapes(graph: Graph, dim: Any = None) -> tuple[Any, ...]:
    """The open axes of the inputs, as torch.export takes them: of arguments `*state` in one tuple. `dim`: what each of
    them is; None: the axes of one name are equal, and of any size that torch.export can prove to work."""
    dims: dict[str, Any] = {}
    shapes = [{place: dim or dims.setdefault(axis, Dim(axis)) for place, axis in enumerate(port.axes)
               if isinstance(axis, str)} for port in graph.inputs]
    parameters = inspect.signature(graph.module.forward).parameters.values()
    named = [one for one in parameters if one.kind is not inspect.Parameter.VAR_POSITIONAL]
    if len(named) == len(shapes):
        return tuple(shapes)
    return (*shapes[: len(named)], tuple(shapes[len(named) :]))


@contextmanager
def branch_free_suppression() -> Iterator[None]:
    """Torchvision's batched_nms chooses by the number of boxes how it computes, which torch.export cannot follow. Here
    it always shifts the boxes of each class away from those of the others, as torchvision does for few boxes."""
    before = box_ops.batched_nms

    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
        shifted = boxes + (idxs.to(boxes) * (largest + 1))[:, None]
        return box_ops.nms(shifted, scores, iou_threshold)

    box_ops.batched_nms = batched_nms
    try:
        yield
    finally:
        box_ops.batched_nms = before


class ProgramCall:
    """A file of torch.export, called on the CPU. Tensors are converted to the types of the inputs."""

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str], dtypes: Sequence[torch.dtype]):
        with quiet():
            self.module = torch.export.load(path).module()
        self.inputs, self.outputs, self.dtypes = list(inputs), list(outputs), list(dtypes)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        values = [tensor.detach().cpu().to(dtype) for tensor, dtype in zip(tensors, self.dtypes, strict=True)]
        out: tuple[Tensor, ...] = self.module(*values)
        return tuple(out)
