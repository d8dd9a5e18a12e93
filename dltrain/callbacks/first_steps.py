"""Records how a run began: digests of its first batch and weights, and the losses of its first steps.

They are what `dltrain verify` compares with: where two runs part, and whether by their data, their initial weights or
their arithmetic. The steps only keep the tensors that they have; these are read when a checkpoint is saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dltrain import step_record
from dltrain.checkpoints import Checkpoint
from dltrain.digests import digest, sums_of_bits
from dltrain.disk import write_text
from dltrain.own_code import digests_of_code


class FirstSteps(pl.Callback):
    """Writes `folder`/first_steps.json:

    code      digests of the modules of dltrain and of the user that are loaded, by file
    batch     digest of the first batch of the first process, as it is read, before augmentation
    weights   digest of the weights after a step, by its number; 0: before the first
    losses    of the first `num_steps` optimizer steps; of several batches, their mean"""

    def __init__(self, folder: Path, num_steps: int = step_record.NUM_STEPS):
        self.file, self.num_steps = folder / step_record.FILE, num_steps
        self.is_complete = False
        self.record: dict[str, Any] = {"batch": None, "weights": {}, "losses": []}
        self.losses: list[Tensor] = []  # of the steps that are not in the record yet
        self.pending: Tensor | float = 0.0  # of the batches of a step that is not complete
        self.sums: dict[str, Tensor] = {}  # of the weights, by step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if step == 0:
            self.sums["0"] = sums_of_bits(pl_module.parameters())
        elif self.file.is_file():
            stored = step_record.read(self.file)
            weights = {key: value for key, value in stored["weights"].items() if int(key) <= step}
            self.record = {**stored, "weights": weights, "losses": stored["losses"][:step]}
        self.is_complete = not trainer.is_global_zero or len(self.record["losses"]) != min(step, self.num_steps) or (
            step >= self.num_steps)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
                             ) -> None:
        if self.record["batch"] is None and not self.is_complete:
            tensors = (leaf for leaf in tree_leaves(batch) if torch.is_tensor(leaf))
            self.record["batch"] = digest({str(number): tensor for number, tensor in enumerate(tensors)})

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
                           batch_idx: int) -> None:
        if self.is_complete:
            return
        loss = cast(Mapping[str, Tensor], outputs or {}).get("loss")
        if loss is None:  # a batch that the task skips
            self.is_complete = True
            return
        self.pending = self.pending + loss.detach()
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        self.losses.append(torch.as_tensor(self.pending))
        self.pending = 0.0
        step = len(self.record["losses"]) + len(self.losses)
        if step == self.num_steps:
            self.sums[str(step)] = sums_of_bits(pl_module.parameters())
            self.is_complete = True

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Checkpoint) -> None:
        if trainer.is_global_zero:
            self.write()

    def write(self) -> None:
        """Reads what was kept of the steps, and writes the file."""
        if not self.losses and not self.sums:
            return
        self.record["losses"] += torch.stack(self.losses).tolist() if self.losses else []
        self.record["weights"] |= {step: digest({"sums": sums}) for step, sums in self.sums.items()}
        self.losses, self.sums = [], {}
        write_text(self.file, json.dumps({"code": digests_of_code(), **self.record}, indent=1) + "\n")
