"""Turns a ClassificationBatch into a loss using any model from images to class logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from dltrain.augment.pipeline import STATISTICS_IMAGES, Augment
from dltrain.batches import NOT_SCORED, ClassificationBatch, generator
from dltrain.errors import UserError
from dltrain.tasks.task import Task


class Classification(Task):
    """Cross-entropy over one label an image.

    Metrics: train/loss, train/accuracy (running, as trained, augmented), val/ and test/ loss and accuracy (means over
    samples).
    """

    batch_type = ClassificationBatch
    headline, running = "val/accuracy", ("loss", "accuracy")
    eval_loss: Tensor
    confusion: MulticlassConfusionMatrix
    augment: Augment

    def __init__(self, model: nn.Module, augment: Augment, num_classes: int, label_smoothing: float = 0.0, **keys: Any):
        super().__init__(model, **keys)
        self.augment, self.num_classes, self.label_smoothing = augment, num_classes, label_smoothing
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=NOT_SCORED, validate_args=False)
        self.register_buffer("eval_loss", torch.zeros(2), persistent=False)  # summed loss, scored samples

    def fit_statistics(self, data: Any) -> None:
        self.augment.fit(data.training_pixels(STATISTICS_IMAGES))

    def check(self, batch: ClassificationBatch) -> None:
        batch.check(self.num_classes)
        out, wanted = self(batch.images), (batch.size, self.num_classes)
        if tuple(out.shape) != wanted:
            raise UserError(f"it must give logits {wanted} for {batch.size} images, but gives {tuple(out.shape)}")

    def forward(self, images: Tensor) -> Tensor:
        """uint8 pixels (B, C, H, W) to logits, or log-probabilities, (B, num_classes), as in evaluation."""
        return self.augment.test_views(self.model, self.augment.normalize(images))

    def training_step(self, batch: ClassificationBatch, batch_idx: int) -> Tensor:
        draws = generator("augment", self.seed, self.current_epoch, batch_idx, self.global_rank)
        images, labels = self.augment(batch, draws)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            correct = scored(logits.argmax(1), labels)
            self.sums += torch.stack([loss.detach() * len(labels), correct, correct.new_full((), len(labels))])
        return loss

    def evaluation_step(self, batch: ClassificationBatch, batch_idx: int = 0) -> None:
        labels = batch.labels
        logits = self(batch.images)
        self.confusion.update(logits, labels)
        self.eval_loss[0] += F.cross_entropy(logits, labels, reduction="sum", ignore_index=NOT_SCORED)
        self.eval_loss[1] += (labels != NOT_SCORED).sum()

    def evaluation_end(self, part: str) -> None:
        matrix = self.confusion.compute()
        loss, count = self.summed(self.eval_loss)
        self.log_evaluation(part, {"accuracy": matrix.diag().sum() / matrix.sum(), "loss": loss / count})
        self.last_confusion = matrix.cpu()  # (num_classes, num_classes): row = true class, column = predicted
        self.confusion.reset()
        self.eval_loss.zero_()


def scored(predicted: Tensor, labels: Tensor) -> Tensor:
    """How many are right; of mixed labels (B, num_classes), the share that the predicted class has in the mixture."""
    if labels.dim() == 2:
        return labels.gather(1, predicted[:, None]).sum()
    return (predicted == labels).sum()
