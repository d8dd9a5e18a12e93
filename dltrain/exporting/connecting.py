"""Exported graphs in the place of a task's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dltrain.exporting.formats import require_libraries
from dltrain.tasks.graphs import Call, Form


def connect_graphs(form: Form, folder: Path, graphs: Sequence[Mapping[str, Any]], name: str) -> None:
    """`graphs`: as model.json has them; `name`: the format. Raises UserError where its library is missing."""
    form.connect({graph["name"]: open_graph(folder / graph["file"], graph, name) for graph in graphs})


def open_graph(file: Path, graph: Mapping[str, Any], name: str) -> Call:
    require_libraries(name)
    ports = [port["name"] for port in graph["inputs"]], [port["name"] for port in graph["outputs"]]
    dtypes = [getattr(torch, port["dtype"]) for port in graph["inputs"]]
    if name == "onnx":
        from dltrain.exporting.onnx_graphs import OnnxCall

        return OnnxCall(file, *ports, dtypes)
    from dltrain.exporting.programs import ProgramCall

    return ProgramCall(file, *ports, dtypes)
