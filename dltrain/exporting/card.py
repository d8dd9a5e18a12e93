"""The model card, README.md, beside an exported file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dltrain.disk import write_text
from dltrain.drawing.tables import format_count
from dltrain.exporting.record import CARD, RECORD
from dltrain.exporting.usage import usage_code
from dltrain.pretrained import TIMM, nodes, pretrained_of
from dltrain.run_dir import RunDir

COMMAND = re.compile(r"^\S+  (?:\S*__main__\.py|\S*dltrain)? ?(.*)$")  # a line of command.txt: time, program, words


def write_card(folder: Path, record: Mapping[str, Any], run_dir: RunDir) -> None:
    write_text(folder / CARD, "\n".join(card_lines(record, run_dir)) + "\n")


def card_lines(record: Mapping[str, Any], run_dir: RunDir) -> Iterator[str]:
    checkpoint, config = record["checkpoint"], run_dir.read_config()
    yield f"# {record['model']} on {record['data']}"
    yield ""
    yield (f"A model for {str(record['task']).replace('_', ' ')}, trained by dltrain {config['version']} and exported "
           f"as {record['format']}: the {checkpoint['name']} weights, of epoch {checkpoint['epoch']}, step "
           f"{checkpoint['step']}. `{RECORD}` has the names, shapes and ranges of inputs and outputs"
           f"{', the names of the classes' if record['class_names'] else ''}"
           f"{' and the vocabulary' if record['vocabularies'] else ''}.")
    yield from ["", "## Use", "", "In this folder:", "", "```python", *usage_code(record, config), "```"]
    yield from ["", record["usage"]] if record["usage"] else []
    yield from ["", "## Results", "", *result_lines(run_dir)]
    check = record["check"]
    values = ", ".join(f"{name} {value:.2g}" for name, value in check["largest_differences"].items())
    yield from ["", f"The exported file against the run, on {format_count(check['samples'], 'input')} of the test "
                f"split, largest absolute differences: {values}."]
    yield from ["", "## Training", "", *training_lines(config, run_dir)]
    yield from ["", "## Weights and licences", "", *licence_lines(config)]
    yield from ["", "## Versions", "", f"Exported with {', '.join(f'{k} {v}' for k, v in record['versions'].items())}."]


def result_lines(run_dir: RunDir) -> list[str]:
    result = run_dir.read_result()
    metrics = {key: value for key, value in result.items() if key.count("/") == 1 and type(value) in (int, float)
               and key.startswith(("test/", "val/"))}
    if not metrics:
        return ["The run has not finished: it has no result yet."]
    rows = [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    return ["| metric of the run, of its best weights | value |", "| --- | --- |", *rows]


def training_lines(config: Mapping[str, Any], run_dir: RunDir) -> Iterator[str]:
    choices = config["choices"]
    splits = ", ".join(f"{split['samples']:,} {name}" for name, split in run_dir.read_splits().items()
                       if name in ("train", "val", "test"))
    root = config["data"].get("root")
    yield f"- Data: {choices['data']}{f' ({splits} samples)' if splits else ''}{f', root {root}' if root else ''}"
    result = run_dir.read_result()
    if {"steps", "parameters", "seed"} <= result.keys():
        yield f"- {result['parameters']:,} parameters, {result['steps']:,} steps, seed {result['seed']}"
    yield f"- Recipe: {choices.get('recipe') or 'none'}; augmentation: {choices.get('augment')}"
    for command in commands_of(run_dir):
        yield f"- Command: `{command}`"
    yield f"- Every key and its value: config.yaml of the run, {run_dir.path.absolute().name}"


def commands_of(run_dir: RunDir) -> list[str]:
    file = run_dir.path / "command.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return [f"dltrain {match[1]}".strip() for line in lines if (match := COMMAND.match(line))]


def licence_lines(config: Mapping[str, Any]) -> list[str]:
    """What the run began with, and under which licence, as far as that is known."""
    lines = []
    for key, node in nodes(OmegaConf.create(dict(config["model"])), "model"):
        pretrained = pretrained_of(node, key)
        if pretrained is None:
            continue
        if pretrained.from_run:
            lines.append(f"- {key} began with the weights of the run {pretrained.from_run}: licence unknown here, see "
                         "what that run began with")
        elif pretrained.weights == TIMM:
            lines.append(f"- {key} began with weights of timm: licence {timm_licence(str(node.get('name')))}")
        elif pretrained.weights:
            lines.append(f"- {key} began with {Path(pretrained.weights).name}: licence unknown; the terms of its "
                         "author and of the data that it was trained on apply")
    return [*(lines or ["- The run began with random weights."]), "- The licence of the training data is not known to "
            "dltrain; whoever passes the model on must look it up."]


def timm_licence(name: str) -> str:
    """As timm states it."""
    try:
        import timm

        config = timm.get_pretrained_cfg(name)
        return str((config and config.license) or "unknown")
    except (ImportError, RuntimeError, AttributeError):
        return "unknown"
