"""Keeps an exponential moving average of the weights, which is what a run evaluates, saves as `best` and predicts with.

B. Polyak, A. Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the exponential form as in C.
Szegedy et al., 2015, arXiv 1512.00567, section 8.

After every step, or every k steps: average <- d^k * average + (1 - d^k) * weights. The decay d is the smaller of
`trainer.average_decay` and (1 + s) / (10 + s) at step s, so that the initial weights are soon forgotten. It is a
function of the step alone: a checkpoint needs the two sets of weights and nothing else. The running statistics of batch
normalisation are averaged in the same way; integers, as counters, are copied.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

TRAINED = "trained_weights"  # of last.ckpt: those that the optimizer updates; its state_dict has the average


class WeightAverage(pl.Callback):
    """During a validation the model has the average, else the trained weights. The state_dict of every checkpoint is
    the average; that of a full one has the trained weights beside it, and a resumed run continues from those."""

    def __init__(self, decay: float, every_n_steps: int):
        self.decay, self.every_n_steps = decay, every_n_steps
        self.trained: dict[str, Tensor] | None = None  # of the checkpoint that the run resumes from
        self.has_average = False  # whether the model has the average now, and `others` the trained weights
        self.tensors: list[Tensor] = []  # of the model, each once
        self.others: list[Tensor] = []  # the average, in the same order
        self.last_step = 0

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
                           ) -> None:
        self.trained = checkpoint.get(TRAINED)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        named = stored_tensors(pl_module)
        self.tensors = list({id(tensor): tensor for tensor in named.values()}.values())
        self.others = [tensor.detach().clone() for tensor in self.tensors]
        self.last_step = trainer.global_step
        if self.trained is not None:
            with torch.no_grad():
                for name, tensor in named.items():
                    tensor.copy_(self.trained[name])
            self.trained = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
                             ) -> None:
        if self.has_average:
            self.exchange()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step != self.last_step and step % self.every_n_steps == 0:
            self.update(step)
        self.last_step = step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not self.has_average and self.has_begun(trainer.global_step):
            self.exchange()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
                           ) -> None:
        other = {id(tensor): value for tensor, value in zip(self.tensors, self.others, strict=True)}
        named = stored_tensors(pl_module)
        swapped = {name: other[id(tensor)] for name, tensor in named.items()}
        own = {name: tensor.detach() for name, tensor in named.items()}
        if self.has_average:
            average, trained = own, swapped
        else:
            average, trained = swapped if self.has_begun(trainer.global_step) else own, own
        checkpoint[TRAINED] = trained
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **average}

    def has_begun(self, step: int) -> bool:
        """Whether there is an average after so many steps; before that, the trained weights stand for it."""
        return True

    @torch.no_grad()
    def update(self, step: int) -> None:
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)) ** self.every_n_steps)
        pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # one call for all tensors of a type
        for other, tensor in zip(self.others, self.tensors, strict=True):
            others, tensors = pairs.setdefault(tensor.dtype, ([], []))
            others.append(other)
            tensors.append(tensor)
        for dtype, (others, tensors) in pairs.items():
            if dtype.is_floating_point:
                average(others, tensors, 1)
            else:
                copy_all(others, tensors)

    @torch.no_grad()
    def exchange(self) -> None:
        """Swaps the values of the model's tensors and of `others`, in place."""
        before = [tensor.clone() for tensor in self.tensors]
        copy_all(self.tensors, self.others)
        copy_all(self.others, before)
        self.has_average = not self.has_average


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of the task's model by the names that they have in a checkpoint."""
    named: dict[str, Tensor] = {**dict(module.named_parameters(remove_duplicate=False)),
                                **dict(module.named_buffers(remove_duplicate=False))}
    return {name: named[name] for name in module.state_dict() if name.startswith("model.")}
