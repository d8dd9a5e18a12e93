"""Seeds each training step. What the model samples (dropout, stochastic depth) and what the task samples (augmentation)
is then a function of (seed, epoch, batch index, process rank): neither a validation nor a resume before the step can
change it, and no generator's state has to be saved."""

from __future__ import annotations

import random
from typing import cast

import numpy as np
import pytorch_lightning as pl
import torch

from dltrain.batches import seed_of
from dltrain.callbacks.metrics import TrainedTask


class StepSeeds(pl.Callback):
    """Before each training step: seeds the global generators of torch, Python and NumPy, and sets the task's `position`
    to (seed, epoch, batch index, process rank)."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
                             ) -> None:
        position = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        cast(TrainedTask, pl_module).position = position
        step_seed = seed_of("model", *position)
        torch.default_generator.manual_seed(step_seed)  # torch.manual_seed also records a stack trace per absent device
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(step_seed)
        if pl_module.device.type == "mps":
            torch.mps.manual_seed(step_seed)
        random.seed(step_seed)
        np.random.seed(step_seed % 2**32)
