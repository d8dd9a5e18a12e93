"""The weights of a run, or others, measured on a split of data."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from dltrain import same_data, training_state
from dltrain.build import build_data, build_task, check_first_step
from dltrain.data.datamodule import DataModule
from dltrain.devices import set_matmul_precision, set_up_device
from dltrain.errors import UserError
from dltrain.fitted_anchors import choose_anchors
from dltrain.memory import keep_freed_memory
from dltrain.pretrained import load_pretrained, pretrained_of
from dltrain.run_code import describe_changed_code
from dltrain.run_device import describe_other_device
from dltrain.run_dir import RunDir
from dltrain.signals import leave_to_dltrain
from dltrain.tasks.task import Task
from dltrain.weights import load_weights

log = logging.getLogger("dltrain")


def restore(config: DictConfig, run_dir: RunDir, checkpoint: str = "best") -> Task:
    """The run's task with its `best` or `last` weights, in evaluation mode. `config`: that of its config.yaml. Raises
    UserError if there is no such checkpoint yet."""
    saved = training_state.load_checkpoint(run_dir, checkpoint)
    task = build_task(config, run_dir.read_vocabularies(), fresh=False)
    if changed_code := describe_changed_code(run_dir):
        print(f"dltrain: warning: {changed_code}", file=sys.stderr)
    load_weights(task, saved, run_dir.checkpoint(checkpoint))
    return task.eval()


def device_of(config: DictConfig) -> torch.device:
    """Where predictions are made: a GPU if there is one and the trainer may use it, else the CPU."""
    set_matmul_precision(config.trainer)
    return torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")


class Evaluation(NamedTuple):
    """The metrics of some weights on a split, and how many of its samples were scored. `weights` says which weights:
    a file, or for those of a run `checkpoint`, `epoch` and `step`."""

    metrics: dict[str, float]
    samples: int
    weights: dict[str, str | int]


def use_one_process(config: DictConfig) -> None:
    OmegaConf.update(config, "trainer.nodes", 1, force_add=True)
    config.trainer.devices = 1


def evaluate(config: DictConfig, run_dir: RunDir, split: str, checkpoint: str = "best", progress_bar: bool = False
             ) -> Evaluation:
    """Measures the `best` or `last` weights of a run on the `train`, `val` or `test` split, on one device."""
    step = training_state.load_checkpoint(run_dir, checkpoint)["global_step"]
    keep_freed_memory()
    set_up_device(config.trainer)
    use_one_process(config)
    data = build_data(config, run_dir.read_vocabularies())
    run_dir.check_class_names(data.class_names)
    if line := same_data.describe_measured(run_dir, data, split):
        log.warning(f"dltrain: warning: {line}")
    if line := describe_other_device(run_dir, device_of(config), is_training=False):
        log.warning(f"dltrain: warning: {line}")
    metrics, samples = measure(restore(config, run_dir, checkpoint), data, config, split, progress_bar)
    epoch, fault = run_dir.epoch_of(step)
    if fault:
        log.warning(f"dltrain: warning: {fault}; the epoch of step {step} is not known")
    return Evaluation(metrics, samples, {"checkpoint": checkpoint, "epoch": epoch, "step": step})


def load_data(config: DictConfig) -> DataModule:
    """The data of a config that has no run folder, for one device. What only the data know is written into the
    config."""
    keep_freed_memory()
    set_up_device(config.trainer)
    use_one_process(config)
    data = build_data(config)
    choose_anchors(config, data)
    config.class_names = data.class_names
    return data


def evaluate_pretrained(config: DictConfig, split: str, progress_bar: bool = False) -> Evaluation:
    """Measures the weights that model.pretrained names, head and all, on a split, without a step of training. The
    statistics of normalisation are those of the training split."""
    data = load_data(config)
    pretrained = pretrained_of(config.model, "model")
    source = pretrained and (pretrained.weights or pretrained.from_run)
    if pretrained is None or not source:
        raise UserError("eval needs run=FOLDER, or a model with model.pretrained.weights=FILE or "
                        "model.pretrained.from_run=FOLDER")
    task = build_task(config, data.vocabularies, fresh=False)
    load_pretrained(task.model, pretrained, data.class_names, with_head=True)
    if pretrained.from_run and (line := same_data.describe_measured(RunDir(Path(pretrained.from_run)), data, split)):
        log.warning(f"dltrain: warning: {line}")
    check_first_step(config, data, task)
    task.fit_statistics(data)
    return Evaluation(*measure(task.eval(), data, config, split, progress_bar), {"weights": str(source)})


def measure(task: Task, data: DataModule, config: DictConfig, split: str, progress_bar: bool
            ) -> tuple[dict[str, float], int]:
    """The metrics of a split, and the number of samples that were scored."""
    trainer = pl.Trainer(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision,
                         logger=False, enable_checkpointing=False, enable_progress_bar=progress_bar,
                         enable_model_summary=False)
    leave_to_dltrain(trainer)
    task.validated_split = data.validated_split = "train" if split == "train" else "val"
    evaluation = trainer.test if split == "test" else trainer.validate
    evaluation(task, datamodule=data, verbose=False)
    return ({key: float(value) for key, value in trainer.callback_metrics.items()},
            sum(len(batch) for batch in data.eval_loader(split).batches))
