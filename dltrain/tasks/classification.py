"""Turns a ClassificationBatch into a loss using any model from images to class logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.augment.pipeline import STATISTICS_IMAGES, Augment
from dltrain.batches import ClassificationBatch, generator
from dltrain.errors import UserError
from dltrain.tasks.freezing import Freezing, FreezingKeys
from dltrain.tasks.multiclass import Classes


class Classification(Classes):
    """Cross-entropy over one label an image; the training metrics are of augmented images, as trained on.

    In training a model may return (logits, logits of an auxiliary classifier, ...): the cross-entropies of the latter
    count `model.auxiliary_weight` times in the loss (C. Szegedy et al., 2014, arXiv 1409.4842, section 5). `freezing`:
    see freezing.py."""

    batch_type = ClassificationBatch
    augment: Augment
    freezing: Freezing

    def __init__(self, model: nn.Module, augment: Augment, num_classes: int, label_smoothing: float = 0.0,
                 freezing: FreezingKeys | None = None, **keys: Any):
        super().__init__(model, num_classes, **keys)
        self.freezing = Freezing(model, **freezing or {})
        self.augment, self.label_smoothing = augment, label_smoothing

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
        if self.freezing.stages:
            self.freezing.apply(self.current_epoch)
        draws = generator("augment", self.seed, self.current_epoch, batch_idx, self.global_rank)
        images, labels = self.augment(batch, draws)
        given = self.model(images)
        logits, *auxiliary = given if isinstance(given, tuple) else (given,)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        for other in auxiliary:
            loss = loss + self.model.auxiliary_weight * F.cross_entropy(other, labels,
                                                                        label_smoothing=self.label_smoothing)
        with torch.no_grad():
            correct = scored(logits.argmax(1), labels)
            self.sums += torch.stack([loss.detach() * len(labels), correct, correct.new_full((), len(labels))])
        return loss

    def evaluation_step(self, batch: ClassificationBatch, batch_idx: int = 0) -> None:
        self.tally(self(batch.images), batch.labels)


def scored(predicted: Tensor, labels: Tensor) -> Tensor:
    """How many are right; of mixed labels (B, num_classes), the share that the predicted class has in the mixture."""
    if labels.dim() == 2:
        return labels.gather(1, predicted[:, None]).sum()
    return (predicted == labels).sum()
