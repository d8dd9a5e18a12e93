"""Turns LabelledBatches and TaggedBatches into a loss using any model from a sequence to class logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from dltrain.batches import NOT_SCORED, LabelledBatch, TaggedBatch
from dltrain.errors import UserError
from dltrain.tasks.task import Task


class SequenceClassification(Task):
    """Cross-entropy over one label a sequence.

    Metrics: train/, val/ and test/ loss (nats a label) and accuracy.
    """

    batch_type: type = LabelledBatch
    headline, running, unit = "val/accuracy", ("loss", "accuracy"), "sequences"
    confusion: MulticlassConfusionMatrix
    eval_loss: Tensor

    def __init__(self, model: Any, num_classes: int, **keys: Any):
        super().__init__(model, **keys)
        self.num_classes = num_classes
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=NOT_SCORED, validate_args=False)
        self.register_buffer("eval_loss", torch.zeros(2), persistent=False)  # summed loss, scored labels

    def labels(self, batch: Any) -> Tensor:
        return batch.labels

    def check(self, batch: Any) -> None:
        batch.check(self.num_classes)
        out, wanted = self(batch), (*self.labels(batch).shape, self.num_classes)
        if tuple(out.shape) != wanted:
            raise UserError(f"it must give logits {wanted}, but gives {tuple(out.shape)}")

    def forward(self, batch: Any) -> Tensor:
        return self.model(batch.tokens, batch.lengths)

    def loss_sum(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Over all scored labels; the logits (N, K) and labels (N,) that it was taken from."""
        logits, labels = self(batch).flatten(0, -2), self.labels(batch).flatten()
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=NOT_SCORED), logits, labels

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total, logits, labels = self.loss_sum(batch)
        count = (labels != NOT_SCORED).sum()
        with torch.no_grad():
            right = (logits.argmax(1) == labels).sum()
            self.sums += torch.stack([total.detach(), right.to(total), count.to(total)])
        return total / count

    def evaluation_step(self, batch: Any, batch_idx: int) -> None:
        total, logits, labels = self.loss_sum(batch)
        self.confusion.update(logits, labels)
        self.eval_loss += torch.stack([total, (labels != NOT_SCORED).sum().to(total)])

    def evaluation_end(self, part: str) -> None:
        matrix = self.confusion.compute()
        loss, count = self.summed(self.eval_loss)
        self.log_evaluation(part, {"accuracy": matrix.diag().sum() / matrix.sum(), "loss": loss / count})
        self.last_confusion = matrix.cpu()  # (num_classes, num_classes): row = true class, column = predicted
        self.confusion.reset()
        self.eval_loss.zero_()


class Tagging(SequenceClassification):
    """Cross-entropy over one label a symbol."""

    batch_type = TaggedBatch
    unit = "symbols"

    def labels(self, batch: Any) -> Tensor:
        return batch.tags

    def count(self, batch: Any) -> int:
        return sum(batch.lengths)
