"""model.json, which stands beside an exported file: what it is, its inputs and outputs, and how it was checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dltrain.disk import write_text
from dltrain.errors import CheckpointError, UserError

if TYPE_CHECKING:
    from dltrain.tasks.graphs import Graph, Port

RECORD, CARD = "model.json", "README.md"
IDENTITY = ("format", "checkpoint", "pixels", "dltrain")  # two exports with equal ones are the same


def digest_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_graph(graph: Graph, file: str) -> dict[str, Any]:
    return {"name": graph.name, "file": file, "inputs": [*map(describe_port, graph.inputs)],
            "outputs": [*map(describe_port, graph.outputs)]}


def describe_port(port: Port) -> dict[str, Any]:
    """`shape`: a text is an axis of any size, the same one wherever it stands."""
    return {"name": port.name, "shape": list(port.axes), "dtype": str(port.dtype).removeprefix("torch."),
            "values": port.values}


def write_record(folder: Path, record: Mapping[str, Any], files: Sequence[str]) -> None:
    """`files`: those whose digests are kept."""
    digests = {name: digest_of(folder / name) for name in files}
    write_text(folder / RECORD, json.dumps({**record, "sha256": digests}, indent=1, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Of an exported model, whose files are as they were written. Raises UserError where there is none, CheckpointError
    where a file is damaged or missing."""
    file = folder / RECORD
    if not file.is_file():
        raise UserError(f"{folder}: no exported model: it has no {RECORD}")
    try:
        record: Any = json.loads(file.read_text(encoding="utf-8"))
        digests = record["sha256"]
        if type(digests) is not dict or any(Path(name).name != name for name in digests):
            raise ValueError("sha256")
        names = {graph["file"] for graph in record["graphs"]}
        if not names <= digests.keys() or type(record["run"]) is not str or type(record["format"]) is not str:
            raise ValueError("graphs")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({' '.join(str(error).split())[:80]}); export the run again") from None
    for name, expected in digests.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing; export the run again")
        if digest_of(folder / name) != expected:
            raise CheckpointError(f"{folder / name}: not as it was exported; export the run again")
    return dict(record)


class ExportedModel(NamedTuple):
    folder: Path
    record: dict[str, Any]

    @property
    def run(self) -> Path:
        """The folder of the run that it was exported from."""
        return Path(os.path.normpath(self.folder / self.record["run"]))


def read_exported(place: Path) -> ExportedModel | None:
    """The exported model in a folder, or that a file belongs to; None where `place` is none, as a run folder. Raises
    UserError where predictions cannot be made with it."""
    folder = place.parent if place.is_file() else place
    if not (folder / RECORD).is_file() or (folder / "config.yaml").exists():
        return None
    model = ExportedModel(folder, read_record(folder))
    name = model.record["format"]
    if name != "onnx":
        reason = {"torch_export": "reading a file of torch.export may run code in it",
                  "safetensors": "it holds the weights alone"}.get(name, "the format is unknown")
        raise UserError(f"run={place}: format={name} cannot predict ({reason}); run={model.run} can, and so can "
                        "format=onnx")
    if not (model.run / "config.yaml").is_file():
        raise UserError(f"run={place}: the run that it was exported from is not in {model.run}, and predict needs its "
                        "config; move it there, or export it again")
    return model


def same_export(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether the folder holds this export, whole."""
    try:
        kept = read_record(folder)
    except UserError:
        return False
    return all(kept.get(key) == record[key] for key in IDENTITY)
