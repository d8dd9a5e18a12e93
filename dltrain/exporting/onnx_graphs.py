"""Graphs as files of ONNX: written by torch's exporters, called by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dltrain.exporting.programs import branch_free_suppression, dynamic_shapes
from dltrain.exporting.quiet import quiet
from dltrain.tasks.graphs import Graph

TRACED_OPSET = 17  # of torch's older exporter, whose torchvision operators are made for it


class FixedAxis(Exception):
    """An exporter has fixed an axis that was to stay open."""


def write_onnx(graph: Graph, path: Path, traced: bool, properties: Mapping[str, str]) -> None:
    """Raises FixedAxis, or whatever the exporter raises, where the graph cannot be written. `properties`: texts, the
    metadata_props of the file."""
    import onnx

    names = [port.name for port in graph.inputs], [port.name for port in graph.outputs]
    with quiet(), torch.no_grad():
        if traced:
            axes = {port.name: {place: axis for place, axis in enumerate(port.axes) if isinstance(axis, str)}
                    for port in (*graph.inputs, *graph.outputs)}
            torch.onnx.export(graph.module, graph.example, str(path), dynamo=False, opset_version=TRACED_OPSET,
                              input_names=names[0], output_names=names[1], dynamic_axes=axes)
        else:
            with branch_free_suppression():
                program: Any = torch.onnx.export(
                    graph.module, graph.example, dynamo=True, dynamic_shapes=dynamic_shapes(graph),
                    input_names=names[0], output_names=names[1], verbose=False)
            program.save(str(path))
        model = onnx.load(str(path))
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        refuse_fixed_axes(graph, model)
        onnx.helper.set_model_props(model, dict(properties))
        onnx.save(model, str(path))


def refuse_fixed_axes(graph: Graph, model: Any) -> None:
    stored = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for port in graph.inputs:
        for place, axis in enumerate(port.axes):
            if isinstance(axis, str) and stored[port.name][place].HasField("dim_value"):
                raise FixedAxis(f"{port.name} has the fixed size {stored[port.name][place].dim_value} as its {axis}")


class OnnxCall:
    """A file of ONNX that takes and returns tensors of torch, on the CPU. Tensors are converted to the types of the
    inputs. `inputs`, `outputs`: names."""

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str], dtypes: Sequence[torch.dtype]):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs, self.dtypes = list(inputs), list(outputs), list(dtypes)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        feed = {name: tensor.detach().cpu().to(dtype).contiguous().numpy() for name, tensor, dtype in
                zip(self.inputs, tensors, self.dtypes, strict=True)}
        return tuple(torch.from_numpy(value) for value in self.session.run(self.outputs, feed))
