"""Reads the checkpoints of a run, and whether the state of training in one, which Lightning takes over unseen, is one
that this run can have."""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dltrain import checkpoints
from dltrain.callbacks import branching, checkpointing
from dltrain.checkpoints import Checkpoint
from dltrain.data.datamodule import DataModule
from dltrain.errors import CheckpointError, UserError
from dltrain.run_dir import RunDir
from dltrain.stored_files import refuse_changed_files
from dltrain.tasks.task import Task
from dltrain.tensor_files import remedy
from dltrain.weights import load_weights

# States of torch's optimizers that have a value for each weight
PER_WEIGHT = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg"}
# Keys of their groups of weights that torch does not add where they are missing
NEEDED = {"lr", "initial_lr", "momentum", "weight_decay", "dampening", "nesterov", "betas", "eps", "alpha",
          "last_epoch", "base_lrs"}
RESTORING = {"restore_training_state", "_restore_modules_and_callbacks"}  # in Lightning


class Newest(NamedTuple):
    """The checkpoint that a run continues from."""

    file: Path
    state: Checkpoint
    note: str  # why it is not the newest file, to put before another sentence, or ""

    @property
    def step(self) -> int:
        return int(self.state["global_step"])

    @property
    def branch(self) -> dict[str, Any]:
        """What branches.py says of the run whose checkpoint this is; empty for a run's own."""
        return dict(self.state["dltrain"].get(branching.MARK) or {})

    @property
    def metrics_rows(self) -> int:
        """The rows that metrics.csv had."""
        return int(self.state["dltrain"]["metrics_rows"])


def find_newest(run_dir: RunDir) -> Newest | None:
    """None if the run has no checkpoint yet. Raises CheckpointError if none is intact."""
    file, note = checkpoints.find_newest(run_dir.path / "checkpoints")
    return Newest(file, read_own(run_dir, file, for_training=True), f"{note}; " if note else "") if file else None


def load_checkpoint(run_dir: RunDir, checkpoint: str) -> Checkpoint:
    """Raises CheckpointError, and UserError if the run has none yet, or its files are no longer those of the
    checkpoint."""
    file = run_dir.checkpoint(checkpoint)
    if not os.path.lexists(file):
        raise UserError(f"run={run_dir}: no {checkpoint} checkpoint yet; dltrain resume run={run_dir} continues the "
                        "run")
    return read_own(run_dir, file)


def read_own(run_dir: RunDir, file: Path, for_training: bool = False) -> Checkpoint:
    saved = checkpoints.read(file, for_training)
    refuse_changed_files(run_dir.path, saved["dltrain"], file)
    return saved


def take_over(task: Task, data: DataModule, newest: Newest) -> None:
    """The weights of the checkpoint that a run resumes from; the rest of it is only checked, Lightning takes it over.
    Raises CheckpointError."""
    load_weights(task, newest.state, newest.file)
    sums: Checkpoint = {}
    Task.on_save_checkpoint(task, sums)
    optimizers, batches_per_epoch = task.configure_optimizers(), len(data.train_dataloader())
    if newest.branch:
        refuse_other_epochs(newest, type(data).__qualname__, batches_per_epoch)
        branching.adapt(newest.state, optimizers)
    check(newest.state, newest.file, optimizers, sums, type(data).__qualname__, batches_per_epoch)


def refuse_other_epochs(newest: Newest, data_key: str, batches_per_epoch: int) -> None:
    """A run that begins with the checkpoint of another one counts its epochs on. Raises UserError where they have
    another number of batches."""
    epochs, position = newest.branch["epoch"], newest.state.get(data_key, {}).get("position")
    if type(position) is int and position // batches_per_epoch != epochs:
        raise UserError(f"an epoch has {batches_per_epoch} batches, but the run that this one begins with had done "
                        f"{epochs} epochs after {position}: dltrain fork keeps the batches of an epoch "
                        "(data.batch_size, the samples, the processes); a new run with model.pretrained.from_run= "
                        "begins with the weights alone")


def check(saved: Checkpoint, path: Path, optimizers: Any, sums: Checkpoint, data_key: str,
          batches_per_epoch: int) -> None:
    """`optimizers`: what a new task configures, with a schedule; `sums`: what it saves beside its weights; `data_key`:
    where a checkpoint has the position in the data. Raises CheckpointError for what no run of this config has saved."""
    position = saved.get(data_key, {})
    fault = None
    if type(position) is not dict or type(position.get("position")) is not int or position["position"] < 0:
        fault = f"{data_key} must have the position in the training data"
    else:
        fault = loops_fault(saved, position["position"], batches_per_epoch) or structure_fault(
            sums if "sums" in saved else {}, {"sums": saved.get("sums")}, "state")
    if fault is None and type(optimizers) is dict:
        optimizer, schedule = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
        fault = (structure_fault([optimizer.state_dict()["param_groups"]],
                                 [state.get("param_groups") if type(state) is dict else None
                                  for state in saved["optimizer_states"]], "optimizer_states")
                 or structure_fault([schedule.state_dict()], saved["lr_schedulers"], "lr_schedulers")
                 or shapes_fault(optimizer, saved["optimizer_states"][0].get("state")))
    if fault:
        raise CheckpointError(f"{path}: damaged ({fault}); {remedy(path)}")


def loops_fault(saved: Checkpoint, position: int, batches_per_epoch: int) -> str | None:
    """Lightning's counters are those that follow from the position in the data."""
    expected = copy.deepcopy(saved["loops"]["fit_loop"])
    try:
        checkpointing.set_loop_counters(expected, position, batches_per_epoch, saved["global_step"])
    except (KeyError, TypeError, AttributeError) as error:
        return f"loops.fit_loop: {type(error).__name__} {error}"
    differ = [key for key, value in expected.items() if saved["loops"]["fit_loop"][key] != value]
    return f"loops.fit_loop.{differ[0]} does not follow from position {position}" if differ else None


def structure_fault(fresh: Any, saved: Any, place: str) -> str | None:
    """Whether nested containers have other types or lengths than those of a new optimizer or schedule. Entries that
    only one of them has are of another version of torch. None stands for any value."""
    kinds = ((int, float) if type(value) in (int, float) else (list, tuple) if type(value) in (list, tuple) else
             (type(value),) for value in (fresh, saved))
    if fresh is None or saved is None or torch.is_tensor(fresh) or torch.is_tensor(saved):
        return None if saved is not None or fresh is None or type(fresh) not in (dict, list) else f"{place} is missing"
    expected, actual = kinds
    if expected != actual:
        return f"{place} is a {type(saved).__name__} and must be a {type(fresh).__name__}"
    if type(fresh) is dict:
        if lacking := sorted(NEEDED & fresh.keys() - saved.keys()):
            return f"{place}.{lacking[0]} is missing"
        pairs = [(f"{place}.{key}", value, saved[key]) for key, value in fresh.items() if key in saved]
    elif type(fresh) in (list, tuple):
        if len(fresh) != len(saved):
            return f"{place} has {len(saved)} entries and must have {len(fresh)}"
        pairs = [(f"{place}.{number}", *both) for number, both in enumerate(zip(fresh, saved, strict=True))]
    else:
        return None
    return next((fault for name, one, other in pairs if (fault := structure_fault(one, other, name))), None)


def shapes_fault(optimizer: torch.optim.Optimizer, states: Any) -> str | None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if type(states) is not dict:
        return "optimizer_states.0.state is missing"
    for index, state in states.items():
        if type(index) is not int or not 0 <= index < len(weights) or type(state) is not dict:
            return f"optimizer_states.0.state.{index} is of no weight"
        for name in PER_WEIGHT & state.keys():
            value = state[name]
            if value is not None and (not torch.is_tensor(value) or value.shape != weights[index].shape):
                return f"optimizer_states.0.state.{index}.{name} is not of the shape of its weight"
    return None


@contextmanager
def restoring(newest: Newest | None) -> Iterator[None]:
    """An error with which Lightning restores the checkpoint is the checkpoint's: CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        if newest is None or not names & RESTORING:
            raise
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(f"{newest.file}: damaged, or of other libraries ({message}); {remedy(newest.file)}"
                              ) from error
