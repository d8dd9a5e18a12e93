"""The state of the optimizer and of the schedule in a run that begins with the checkpoint of another one."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch.optim.lr_scheduler import LambdaLR

from dltrain.checkpoints import Checkpoint

MARK = "branch"  # in the first checkpoint of such a run, below "dltrain": what branches.py says of its parent


class Branching(pl.Callback):
    """Lightning restores the optimizer and the schedule from the checkpoint: here they get the rates, decays and
    moments of the run's own config, where it begins with the checkpoint of another run."""

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Checkpoint) -> None:
        adapt(checkpoint, pl_module.configure_optimizers())


def adapt(checkpoint: Checkpoint, optimizers: Any) -> None:
    """Changes a checkpoint of another run, in place; others stay as they are. `optimizers`: what the task of this run
    configures. Its hyperparameters are kept, and so is the position of its schedule; what the optimizer of the other
    run has accumulated is kept unless it is of another kind, or of other groups of weights."""
    mark = checkpoint["dltrain"].get(MARK)
    if mark is None or type(optimizers) is not dict:
        return
    optimizer, scheduler = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
    before, schedule_before = checkpoint["optimizer_states"][0], checkpoint["lr_schedulers"][0]
    if isinstance(scheduler, LambdaLR):  # the rate is a function of the step
        scheduler.last_epoch, scheduler._step_count = checkpoint["global_step"] - 1, checkpoint["global_step"]
        scheduler.step()
        checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    elif schedule_before.keys() == scheduler.state_dict().keys():  # it is a function of the rate before
        bases = zip(schedule_before["base_lrs"], scheduler.base_lrs, strict=True)
        for group, old, (base_before, base) in zip(optimizer.param_groups, before["param_groups"], bases, strict=True):
            group["lr"] = old["lr"] * base / base_before
        checkpoint["lr_schedulers"] = [{**schedule_before, "base_lrs": scheduler.base_lrs}]
    else:
        checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    fresh = optimizer.state_dict()
    checkpoint["optimizer_states"] = [{**fresh, "state": before["state"] if mark["keeps_moments"] else {}}]
