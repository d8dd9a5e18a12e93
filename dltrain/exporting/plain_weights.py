"""Weights as a file of safetensors: the tensors of the model by their names and, of a task on images, the statistics of
the normalisation, as normalize.mean and the like."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from dltrain.build import build_task
from dltrain.data.datamodule import DataModule
from dltrain.exporting.checking import Check, batches_of_test, compare
from dltrain.tasks.graphs import Form, largest_difference
from dltrain.tasks.task import Task
from dltrain.weights import read_file, write_file

PREFIX = "normalize."
NORMALIZE = "augment.normalize."  # in the task


def exported_tensors(task: Task) -> dict[str, Tensor]:
    statistics = {name.replace(NORMALIZE, PREFIX, 1): value for name, value in task.state_dict().items()
                  if name.startswith(NORMALIZE)}
    return {**task.model.state_dict(), **statistics}


def write_weights(task: Task, file: Path) -> None:
    write_file(exported_tensors(task), file)


def check_weights(file: Path, task: Task, config: DictConfig, data: DataModule) -> Check:
    """Compares every tensor of the file, and the outputs of a new task with these tensors. `tensors` of the differences
    is that of a tensor."""
    tensors = read_file(file, str(file))
    differences = {"tensors": max((largest_difference(value, tensors[name]) for name, value in
                                   exported_tensors(task).items()), default=0.0)}
    other = build_task(config, data.vocabularies, fresh=False)
    other.model.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(PREFIX)})
    statistics = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    if statistics:
        other.get_submodule(NORMALIZE[:-1]).load_state_dict(statistics)
    own, exported = task.export_form(), other.eval().export_form()
    if own is None or exported is None:
        samples = sum(batch.size for batch in batches_of_test(data, Form.check_sizes))
        return Check(samples, differences)
    with torch.inference_mode():
        check = compare(own, exported, data, any_size=False)
    return Check(check.samples, {**differences, **check.differences})
