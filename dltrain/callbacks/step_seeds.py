"""Seeds each training step. What the model samples (dropout, stochastic depth) and what the task samples (augmentation)
is then a function of (seed, epoch, batch index, process rank): neither a validation nor a resume before the step can
change it, and no generator's state has to be saved."""

from __future__ import annotations

import random

import numpy as np
import pytorch_lightning as pl
import torch

from dltrain.batches import seed_of


class StepSeeds(pl.Callback):
    """Before each training step: seeds the global generators of torch and, with `all_generators`, of Python and NumPy,
    and sets the task's `position` to (seed, epoch, batch index, process rank); processes that share draws have rank 0.
    dltrain itself draws from torch's only; code of the user's may draw from any."""

    def __init__(self, seed: int, all_generators: bool = True):
        self.seed, self.all_generators = seed, all_generators
        self.epoch: int | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
                             ) -> None:
        if batch_idx == 0 or self.epoch is None:
            self.epoch = trainer.current_epoch
            self.rank = 0 if shares_draws(pl_module) else trainer.global_rank
            self.device = pl_module.device.type
        position = (self.seed, self.epoch, batch_idx, self.rank)
        vars(pl_module)["position"] = position  # past Module.__setattr__, which looks for parameters
        step_seed = seed_of("model", *position)
        torch.default_generator.manual_seed(step_seed)  # torch.manual_seed also records a stack trace per absent device
        if self.device == "cuda":
            torch.cuda.manual_seed(step_seed)
        if self.device == "mps":
            torch.mps.manual_seed(step_seed)
        if self.all_generators:
            random.seed(step_seed)
            np.random.seed(step_seed % 2**32)


def shares_draws(task: pl.LightningModule) -> bool:
    """Whether several processes draw the numbers of the batch of all, see parallel/draws.py."""
    as_one = vars(task).get("as_one")
    return as_one is not None and bool(as_one.draws.is_active)
