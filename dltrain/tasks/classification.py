"""Turns a ClassificationBatch into a loss using any model from images to class logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from dltrain import optim
from dltrain.augment.pipeline import Augment
from dltrain.batches import NOT_SCORED, ClassificationBatch, generator


class Classification(pl.LightningModule):
    """Cross-entropy over one label an image.

    Metrics: train/loss, train/accuracy (running, as trained, augmented), val/ and test/ loss and accuracy (means over
    samples). The headline metric decides which checkpoint is `best`.
    """

    batch_type = ClassificationBatch
    headline, headline_mode = "val/accuracy", "max"
    sums: Tensor
    eval_loss: Tensor
    confusion: MulticlassConfusionMatrix
    augment: Augment

    def __init__(self, model: nn.Module, augment: Augment, num_classes: int, seed: int, optimizer: Mapping[str, Any],
                 schedule: Mapping[str, Any], label_smoothing: float = 0.0):
        super().__init__()
        self.model, self.augment = model, augment
        self.seed, self.label_smoothing = seed, label_smoothing
        self.optimizer_keys, self.schedule_keys = optimizer, schedule
        self.total_steps, self.total_epochs = 1, 1  # of the whole run, set before fit
        self.register_buffer("sums", torch.zeros(3))  # loss * B, correct, B since the last reading; never synced
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=NOT_SCORED, validate_args=False)
        self.register_buffer("eval_loss", torch.zeros(2), persistent=False)  # summed loss, scored samples

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

    def read_training_metrics(self) -> dict[str, float]:
        """The means since the last reading: a host sync."""
        loss, correct, count = self.sums.tolist()
        self.sums.zero_()
        return {"train/loss": loss / count, "train/accuracy": correct / count} if count else {}

    def evaluation_step(self, batch: ClassificationBatch) -> None:
        labels = batch.labels
        logits = self(batch.images)
        self.confusion.update(logits, labels)
        self.eval_loss[0] += F.cross_entropy(logits, labels, reduction="sum", ignore_index=NOT_SCORED)
        self.eval_loss[1] += (labels != NOT_SCORED).sum()

    def evaluation_end(self, part: str) -> None:
        matrix = self.confusion.compute()
        loss, count = self.trainer.strategy.reduce(self.eval_loss, reduce_op="sum")
        self.log_dict({f"{part}/accuracy": matrix.diag().sum() / matrix.sum(), f"{part}/loss": loss / count},
                      logger=False)  # the callback that reads the training metrics writes these too
        self.last_confusion = matrix.cpu()  # (num_classes, num_classes): row = true class, column = predicted
        self.confusion.reset()
        self.eval_loss.zero_()

    def validation_step(self, batch: ClassificationBatch, batch_idx: int) -> None:
        self.evaluation_step(batch)

    def test_step(self, batch: ClassificationBatch, batch_idx: int) -> None:
        self.evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        self.evaluation_end("val")

    def on_test_epoch_end(self) -> None:
        self.evaluation_end("test")

    def configure_optimizers(self) -> Any:
        built = optim.optimizer(self.model, **self.optimizer_keys)
        lr = optim.schedule(built, self.total_steps, self.schedule_keys)
        return {"optimizer": built, "lr_scheduler": {"scheduler": lr, "interval": "step"}}


def scored(predicted: Tensor, labels: Tensor) -> Tensor:
    """How many are right; of mixed labels (B, num_classes), the share that the predicted class has in the mixture."""
    if labels.dim() == 2:
        return labels.gather(1, predicted[:, None]).sum()
    return (predicted == labels).sum()
