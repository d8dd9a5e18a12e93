"""What ends a run: the planned number of steps, or a loss that is not finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from dltrain.errors import DivergedError
from dltrain.tensor_files import LAST


class StopAtStep(pl.Callback):
    """Ends training after `total_steps` optimizer steps, also in the middle of an epoch; a validation follows."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.global_step >= self.total_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if trainer.global_step >= self.total_steps:
            trainer.should_stop = True


class StopAtNonFinite(pl.Callback):
    """Raises DivergedError at the first loss that is nan or infinite, before the optimizer step that would use it. On
    devices where reading the loss makes the host wait, it is read every `every_n_steps` steps only."""

    def __init__(self, every_n_steps: int):
        self.every_n_steps = every_n_steps

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        if (loss.is_cpu or trainer.global_step % self.every_n_steps == 0) and not math.isfinite(loss.item()):
            lr, kept = trainer.optimizers[0].param_groups[0]["lr"], describe_kept(trainer)
            place = f"loss is {float(loss):g} at step {trainer.global_step} with lr {lr:g}; {kept}; "
            if trainer.global_step == 0:
                raise DivergedError(f"{place}no step was taken yet, so the rate is not the cause: look at the data "
                                    "(dltrain show draws the first batch), the weights that it begins with, or "
                                    f"trainer.precision={trainer.precision}")
            raise DivergedError(f"{place}try a smaller task.optimizer.lr, trainer.gradient_clip_norm=1 or "
                                f"task.schedule.warmup_steps=500{half_precision_hint(trainer)}")


def refuse_non_finite_weights(trainer: pl.Trainer, folder: Path) -> None:
    """Raises DivergedError if a weight is nan or infinite, or a buffer has nan. Called before every save: all
    checkpoints in `folder` are finite."""
    module = trainer.lightning_module
    if not nn.utils.get_total_norm(module.parameters(), math.inf).isfinite():
        raise DivergedError(f"weights are not finite at step {trainer.global_step}; {describe_kept(trainer)}; try a "
                            "smaller task.optimizer.lr or trainer.gradient_clip_norm=1")
    sums = [buffer.sum(dtype=torch.float32) for buffer in module.buffers() if buffer.is_floating_point()]
    if sums and bool(torch.stack(sums).isnan().any()):  # one wait for the device; a mask of -inf is none
        names = [name for name, buffer in module.named_buffers() if bool(buffer.isnan().any())]
        if names:
            raise DivergedError(f"{', '.join(names[:3])} has nan at step {trainer.global_step}; "
                                f"{describe_kept(trainer)}; look at the data (dltrain show), or try a smaller "
                                "task.optimizer.lr")


def describe_kept(trainer: pl.Trainer) -> str:
    """Which weights a run that ends here keeps."""
    file = Path(trainer.default_root_dir) / "checkpoints" / LAST
    is_being_saved = bool(vars(trainer.strategy.checkpoint_io).get("saves"))  # by a thread, see checkpoints.py
    if file.is_file() or is_being_saved:
        return f"{file} is finite"
    return "no checkpoint was saved before it"


def half_precision_hint(trainer: pl.Trainer) -> str:
    return ", or trainer.precision=32-true" if str(trainer.precision).startswith("16") else ""
