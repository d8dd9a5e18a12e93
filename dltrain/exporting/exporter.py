"""Writes a run's model in a format: into a folder beside, where it is compared with the run, then moved into place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from dltrain import __version__, evaluation, training_state
from dltrain.build import build_data
from dltrain.data.datamodule import DataModule
from dltrain.disk import write_text, writing
from dltrain.errors import CheckpointError, UserError
from dltrain.exporting import record as records
from dltrain.exporting.card import write_card
from dltrain.exporting.checking import Check, compare, example_batch, require_agreement
from dltrain.exporting.connecting import connect_graphs
from dltrain.exporting.formats import FORMATS, refuse_format
from dltrain.exporting.plain_weights import check_weights, write_weights
from dltrain.exporting.versions import versions_of
from dltrain.pretrained import without_pretrained
from dltrain.run_dir import RunDir
from dltrain.tasks.graphs import PIXELS, Attempt, Form, Graph
from dltrain.tasks.task import Task

NOTHING_WRITTEN = "nothing is written"


class Request(NamedTuple):
    """What is exported. `folder`: where to; `pixels`: the type of images that a graph takes."""

    config: DictConfig
    run_dir: RunDir
    format: str
    checkpoint: str
    folder: Path
    pixels: str


class Exported(NamedTuple):
    """`check` is None where the same export was there already."""

    folder: Path
    check: Check | None
    files: list[Path]


def export(request: Request) -> Exported:
    """Raises UserError for a format that the task does not allow and for a folder with something else in it,
    CheckpointError where the outputs differ from those of the run; then nothing is left."""
    task = evaluation.restore(request.config, request.run_dir, request.checkpoint)
    refuse_format(request.format, task)
    record = describe(request, task)
    folder = request.folder
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        if folder.is_dir() and records.same_export(folder, record):
            return Exported(folder, None, [folder / name for name in records.read_record(folder)["sha256"]])
        raise UserError(f"output={folder}: is there already, and is not this export; move it away, or choose another "
                        "output=")
    evaluation.use_one_process(request.config)
    data = build_data(request.config, request.run_dir.read_vocabularies())
    request.run_dir.check_class_names(data.class_names)
    with new_folder(folder) as place:
        if request.format == "safetensors":
            check, graphs = export_weights(request, task, data, place), list[dict[str, Any]]()
        else:
            check, graphs = export_graphs(request, task, data, place, record)
        record |= {"graphs": graphs, "check": {"split": "test", "samples": check.samples,
                                               "largest_differences": check.differences}}
        names = sorted(file.name for file in place.iterdir())
        records.write_record(place, record, names)
        write_card(place, record, request.run_dir)
    return Exported(folder, check, [folder / name for name in names])


def describe(request: Request, task: Task) -> dict[str, Any]:
    """What model.json says before the graphs are made."""
    run_dir, config = request.run_dir, request.config
    file = run_dir.checkpoint(request.checkpoint)
    step = int(training_state.load_checkpoint(run_dir, request.checkpoint)["global_step"])
    form = task.export_form()
    reads_pixels = form is not None and form.reads_pixels and request.format != "safetensors"
    if request.pixels != "uint8" and not reads_pixels:
        raise UserError(f"pixels={request.pixels}: the inputs of this export are no images; leave it out")
    return {
        "format": request.format, "run": os.path.relpath(run_dir.path, request.folder), "dltrain": __version__,
        "model": config.choices.model, "data": config.choices.data, "task": config.choices.get("task"),
        "checkpoint": {"name": request.checkpoint, "epoch": run_dir.epoch_of(step)[0], "step": step,
                       "sha256": records.digest_of(file)},
        "pixels": request.pixels if reads_pixels else None, "usage": form.usage if form is not None else "",
        "class_names": list(config.get("class_names") or []), "vocabularies": run_dir.read_vocabularies(),
        "versions": versions_of(request.format)}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside it, which gets its name at the end; after an error neither is there, nor an empty one above that
    was made for it."""
    above = [parent for parent in folder.absolute().parents if not parent.exists()]
    place = folder.with_name(f".{folder.name}.tmp")
    try:
        with writing(folder, kept=NOTHING_WRITTEN):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        yield place
        with writing(folder, kept=NOTHING_WRITTEN):
            os.replace(place, folder)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        for parent in above:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def export_weights(request: Request, task: Task, data: DataModule, place: Path) -> Check:
    file = place / f"model{FORMATS['safetensors'].suffix}"
    write_weights(task, file)
    write_text(place / "model.yaml", OmegaConf.to_yaml(without_pretrained(request.config.model), resolve=True))
    return check_weights(file, task, request.config, data)


def export_graphs(request: Request, task: Task, data: DataModule, place: Path, record: Mapping[str, Any]
                  ) -> tuple[Check, list[dict[str, Any]]]:
    """Tries the attempts of the form until the outputs agree. Returns the check, and the graphs for model.json."""
    own, source = task.export_form(), evaluation.restore(request.config, request.run_dir, request.checkpoint)
    source.to(memory_format=torch.contiguous_format)  # torch.export ties a graph to the strides that it has seen
    form = source.export_form()
    assert own is not None
    assert form is not None
    attempts = [one for one in form.attempts if request.format == "onnx" or not one.traced]
    reasons = []
    for number, attempt in enumerate(attempts):
        is_last = number == len(attempts) - 1
        try:
            graphs = form.graphs(example_batch(data), attempt.any_size, PIXELS[request.pixels])
            described = write_graphs(graphs, request.format, attempt, place, record)
            check = check_graphs(request, own, data, described, place)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # an exporter raises whatever it likes, and so does a runtime for a wrong shape
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
            if is_last:
                raise UserError(f"format={request.format}: {type(task.model).__name__} cannot be exported so "
                                f"({'; '.join(dict.fromkeys(reasons))}); {other_formats(request.format)}") from error
        else:
            if is_last or not check.exceeded(form.tolerances):
                require_agreement(check, form.tolerances, f"format={request.format}: the exported model")
                return check, described
            reasons.append(f"differences of {check.exceeded(form.tolerances)}")
        for file in place.iterdir():
            file.unlink()
    raise CheckpointError(f"format={request.format}: {type(task).__name__} has no way to be exported")


def other_formats(name: str) -> str:
    return f"format={' or format='.join(other for other in FORMATS if other != name)} may do"


def write_graphs(graphs: list[Graph], name: str, attempt: Attempt, place: Path, record: Mapping[str, Any]
                 ) -> list[dict[str, Any]]:
    from dltrain.exporting.onnx_graphs import write_onnx
    from dltrain.exporting.programs import write_program

    described = []
    for graph in graphs:
        file = place / f"{graph.name}{FORMATS[name].suffix}"
        ports = records.describe_graph(graph, file.name)
        graph.module.eval()  # a module around the model: exporters restore its mode, also that of the model below
        if name == "onnx":
            write_onnx(graph, file, attempt.traced, properties_of(record, ports))
        else:
            write_program(graph, file)
        described.append(ports)
    return described


def properties_of(record: Mapping[str, Any], ports: Mapping[str, Any]) -> dict[str, str]:
    """The metadata_props of a file: what model.json says, each value as JSON where it is no text."""
    kept = ("dltrain", "model", "data", "task", "usage", "class_names", "vocabularies")
    values = {**{key: record[key] for key in kept}, "inputs": ports["inputs"], "outputs": ports["outputs"]}
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in values.items() if value}


def check_graphs(request: Request, own: Form, data: DataModule, graphs: list[dict[str, Any]], place: Path) -> Check:
    other = evaluation.restore(request.config, request.run_dir, request.checkpoint)
    exported = other.export_form()
    assert exported is not None
    connect_graphs(exported, place, graphs, request.format)
    open_sides = any("height" in port["shape"] for graph in graphs for port in graph["inputs"])
    with torch.inference_mode():
        return compare(own, exported, data, open_sides)
