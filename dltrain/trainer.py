"""Builds the trainer of a run from its config: Lightning's, with dltrain's callbacks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment

from dltrain.callbacks.averaging import WeightAverage
from dltrain.callbacks.branching import Branching
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.callbacks.ending import StopWhen, TimeLimit
from dltrain.callbacks.figures import Figures
from dltrain.callbacks.first_steps import FirstSteps
from dltrain.callbacks.keeping import KeptCheckpoints
from dltrain.callbacks.metrics import MetricsFile, MetricsLogging, TensorBoard
from dltrain.callbacks.progress import ProgressDisplay
from dltrain.callbacks.step_seeds import StepSeeds
from dltrain.callbacks.stochastic_average import StochasticAverage
from dltrain.callbacks.stopping import StopAtNonFinite, StopAtStep
from dltrain.checkpoints import DurableIO
from dltrain.config import schema
from dltrain.config.interpolations import to_plain
from dltrain.data.datamodule import DataModule
from dltrain.devices import on_gpu
from dltrain.errors import UserError
from dltrain.optim import Extension
from dltrain.ranks import is_first_process, trains_as_one
from dltrain.signals import Signals, leave_to_dltrain
from dltrain.step_loop import StepLoop
from dltrain.stored_files import digest
from dltrain.strategy import strategy_of
from dltrain.tasks.task import Task
from dltrain.trackers.tracker import Tracker

# Their code takes random numbers from torch's generators only.
LIBRARIES = {"dltrain", "torch", "torchvision", "torchmetrics", "pytorch_lightning"}
EXTENSION_KEYS = ("at", "max_epochs", "max_steps", "target_steps", "schedule")


def planned_steps(config: DictConfig, batches_per_epoch: int) -> tuple[int, int]:
    """Optimizer steps of the whole run, and the epochs they take. Raises UserError if nothing limits them."""
    keys = config.trainer
    per_epoch = math.ceil(batches_per_epoch / keys.accumulate_batches)
    if keys.smoke_steps is not None:
        return per_epoch, 1
    return planned_length(keys.max_epochs, keys.max_steps, keys.get("target_steps"), per_epoch)


def planned_length(max_epochs: int | None, max_steps: int | None, target_steps: int | None, per_epoch: int
                   ) -> tuple[int, int]:
    """As `planned_steps`, from the keys of the trainer and the steps of an epoch."""
    if max_epochs is None and max_steps is None:
        if target_steps is None:
            raise UserError("trainer.max_epochs, max_steps and target_steps are null: one must say how long to train")
        max_epochs = max(1, round(target_steps / per_epoch))
    limits = [max_epochs * per_epoch] if max_epochs is not None else []
    total = min([*limits, max_steps] if max_steps is not None else limits)
    return total, math.ceil(total / per_epoch)


def extensions(config: DictConfig, batches_per_epoch: int) -> list[Extension]:
    """Where the run was made longer, from trainer.extended. Raises UserError for what dltrain extend does not write."""
    per_epoch = math.ceil(batches_per_epoch / config.trainer.accumulate_batches)
    result: list[Extension] = []
    for index, entry in enumerate(config.trainer.get("extended") or []):
        try:
            length = planned_length(entry.max_epochs, entry.max_steps, entry.target_steps, per_epoch)
            result.append(Extension(entry.at, *length, entry.schedule))
        except (AttributeError, TypeError, OmegaConfBaseException):
            raise UserError(f"trainer.extended.{index}: must have {', '.join(EXTENSION_KEYS)}, as dltrain extend "
                            "writes it") from None
    return result


def build_trainer(config: DictConfig, run_dir: Path, data: DataModule, task: Task, signals: Signals,
                  saved: dict[str, Any] | None, own_callbacks: Sequence[pl.Callback] = (),
                  own_loggers: Sequence[Logger] = ()) -> tuple[pl.Trainer, Checkpointing]:
    """Lightning's trainer with dltrain's callbacks, and the callback that writes the checkpoints. `saved`: the
    checkpoint that the run resumes from. `own_callbacks`, `own_loggers`: the user's."""
    keys = config.trainer
    task.scales_loss = keys.precision == "16-mixed"
    task.total_steps, task.total_epochs = planned_steps(config, len(data.train_dataloader()))
    task.extended = extensions(config, len(data.train_dataloader()))
    plain = to_plain(config)
    metrics_file = MetricsFile(run_dir / "metrics.csv", saved["dltrain"]["metrics_rows"] if saved else 0,
                               is_first_process())
    board = TensorBoard(run_dir, name="", version="", default_hp_metric=False,
                        purge_step=saved["global_step"] + 1 if saved else 0)
    checkpointing = Checkpointing(run_dir, task.headline, task.headline_mode, plain, metrics_file, signals,
                                  keys.checkpoint_every_minutes, keys.checkpoint_every_steps)
    keep = keys.get("keep_checkpoints") or {}
    kept = KeptCheckpoints(run_dir, task.headline, task.headline_mode, keep.get("best"), keep.get("every_epochs"))
    metrics = MetricsLogging(keys.log_every_n_steps)
    averaging: list[pl.Callback] = []
    if keys.get("average", "none") == "ema":
        averaging.append(WeightAverage(keys.average_decay, keys.average_every_n_steps))
    elif keys.get("average", "none") == "swa":
        averaging.append(StochasticAverage(round(keys.average_from * task.total_steps), keys.average_every_n_steps,
                                           config.seed))
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs time only
    trainer = pl.Trainer(
        accelerator=keys.accelerator, devices=keys.devices, num_nodes=keys.get("nodes", 1), precision=keys.precision,
        strategy=strategy_of(config, task.has_unused_parameters), sync_batchnorm=trains_as_one(keys) and on_gpu(keys),
        deterministic=keys.deterministic, gradient_clip_val=keys.gradient_clip_norm,
        accumulate_grad_batches=keys.accumulate_batches, max_epochs=-1, log_every_n_steps=keys.log_every_n_steps,
        callbacks=[Branching(), *averaging, StepSeeds(config.seed, has_own_code(config)),
                   StopAtNonFinite(keys.log_every_n_steps), StopAtStep(task.total_steps), FirstSteps(run_dir), metrics,
                   Figures(board, saved["global_step"] if saved else 0, schema.dump(plain, {}),
                           [logger for logger in own_loggers if isinstance(logger, Tracker)]),
                   ProgressDisplay(metrics, task.total_steps, task.total_epochs, task.headline, task.unit),
                   *own_callbacks, *endings_of(keys, task), kept, checkpointing],
        plugins=[DurableIO({"config": plain, "vocabularies": digest(data.vocabularies)}), LightningEnvironment()],
        logger=[metrics_file, board, *own_loggers], default_root_dir=run_dir, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False)
    leave_to_dltrain(trainer)
    trainer.fit_loop.epoch_loop = StepLoop(trainer, keys.get("validate_every_epochs", 1) or 0,
                                           keys.get("validate_every_steps") or 0)
    return trainer, checkpointing


def endings_of(keys: DictConfig, task: Task) -> list[pl.Callback]:
    """What may end the run before its full length."""
    endings: list[pl.Callback] = []
    when = keys.get("stop_when") or {}
    if when.get("patience_epochs"):
        metric = when.get("metric") or task.headline
        mode = task.headline_mode if metric == task.headline else "min" if metric.endswith("loss") else "max"
        endings.append(StopWhen(metric, mode, when["patience_epochs"], when["min_delta"]))
    if keys.get("max_minutes"):
        endings.append(TimeLimit(keys.max_minutes, keys.log_every_n_steps))
    return endings


def has_own_code(config: DictConfig) -> bool:
    """Whether the config names code that is neither dltrain's nor that of the libraries it is built on."""
    text = json.dumps(OmegaConf.to_container(config, resolve=True), default=str)
    words = re.findall(r"\b([A-Za-z_]\w*)(?:\.[A-Za-z_]\w*)+", text)
    return not LIBRARIES.issuperset(words)
