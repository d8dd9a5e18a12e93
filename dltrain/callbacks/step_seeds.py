"""Every step begins from a seed of its own, so that what the model draws (dropout, stochastic depth) is a function of
(seed, epoch, step, process): nothing that validation or a resume drew before can change it, and no generator's state
has to be saved."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from dltrain.batches import seed_of


class StepSeeds(pl.Callback):
    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
                             ) -> None:
        fresh = seed_of("model", self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.default_generator.manual_seed(fresh)  # torch.manual_seed also notes a stack trace for each absent device
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(fresh)
        if pl_module.device.type == "mps":
            torch.mps.manual_seed(fresh)
        random.seed(fresh)
        np.random.seed(fresh % 2**32)
