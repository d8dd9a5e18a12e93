"""Exported graphs in the place of a task's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from dltrain.build import build_task
from dltrain.errors import CheckpointError
from dltrain.exporting.formats import require_libraries
from dltrain.exporting.record import ExportedModel
from dltrain.run_dir import RunDir
from dltrain.tasks.graphs import Call, Form
from dltrain.tasks.task import Task


def restore_exported(config: DictConfig, run_dir: RunDir, exported: ExportedModel) -> Task:
    """As evaluation.restore, with the exported graphs in the place of the model, on the CPU. Raises CheckpointError
    where the run has other classes or symbols than the graphs."""
    vocabularies = run_dir.read_vocabularies()
    now = list(config.get("class_names") or []), vocabularies
    if now != (exported.record.get("class_names"), exported.record.get("vocabularies")):
        raise CheckpointError(f"{exported.folder}: {run_dir} has other classes or another vocabulary than the exported "
                              "model; export it again")
    task = build_task(config, vocabularies, fresh=False).eval()
    if (form := task.export_form()) is None:
        raise CheckpointError(f"{exported.folder}: {type(task).__name__} has no export_form; export it again")
    connect_graphs(form, exported.folder, exported.record["graphs"], exported.record["format"])
    return task


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
