"""Turns LabelledBatches and TaggedBatches into a loss using any model from a sequence to class logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, LabelledBatch, TaggedBatch
from dltrain.errors import UserError
from dltrain.tasks.multiclass import Classes


class SequenceClassification(Classes):
    """Cross-entropy over one label a sequence."""

    batch_type: type = LabelledBatch
    unit = "sequences"

    def labels(self, batch: Any) -> Tensor:
        return batch.labels

    def check(self, batch: Any) -> None:
        batch.check(self.num_classes)
        out, wanted = self(batch), (*self.labels(batch).shape, self.num_classes)
        if tuple(out.shape) != wanted:
            raise UserError(f"it must give logits {wanted}, but gives {tuple(out.shape)}")

    def forward(self, batch: Any) -> Tensor:
        return self.model(batch.tokens, batch.lengths)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits, labels = self(batch).flatten(0, -2), self.labels(batch).flatten()
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL)
        with torch.no_grad():
            right, count = (logits.argmax(1) == labels).sum(), (labels != IGNORED_LABEL).sum()
            self.sums += torch.stack([loss.detach() * count, right, count])
        return loss

    def evaluation_step(self, batch: Any, batch_idx: int) -> None:
        self.tally(self(batch).flatten(0, -2), self.labels(batch).flatten())


class Tagging(SequenceClassification):
    """Cross-entropy over one label a symbol."""

    batch_type = TaggedBatch
    unit = "symbols"

    def labels(self, batch: Any) -> Tensor:
        return batch.tags

    def count(self, batch: Any) -> int:
        return sum(batch.lengths)
