"""What tasks with classes share: accuracy, loss and the confusion matrix of a held-out split."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from dltrain.batches import IGNORED_LABEL
from dltrain.tasks.task import Task


class Classes(Task):
    """Metrics: train/, val/ and test/ loss (nats a label) and accuracy, means over what is scored."""

    headline, training_metrics = "val/accuracy", ("loss", "accuracy")
    eval_loss: Tensor
    confusion: MulticlassConfusionMatrix

    def __init__(self, model: Any, num_classes: int, **keys: Any):
        super().__init__(model, **keys)
        self.num_classes = num_classes
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED_LABEL, validate_args=False)
        self.register_buffer("eval_loss", torch.zeros(2), persistent=False)  # summed loss, scored labels

    def tally(self, logits: Tensor, labels: Tensor) -> None:
        """Logits (N, num_classes) and labels (N,) of an evaluation step."""
        self.confusion.update(logits, labels)
        self.eval_loss[0] += F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED_LABEL)
        self.eval_loss[1] += (labels != IGNORED_LABEL).sum()

    def evaluation_end(self, split: str) -> None:
        matrix = self.confusion.compute()
        loss, count = self.summed(self.eval_loss)
        self.log_evaluation(split, {"accuracy": matrix.diag().sum() / matrix.sum(), "loss": loss / count})
        self.last_confusion = matrix.cpu()  # (num_classes, num_classes): row = true class, column = predicted
        self.confusion.reset()
        self.eval_loss.zero_()
