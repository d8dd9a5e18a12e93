"""Turns a ClassificationBatch into a loss using any model from images to class logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.augment.pipeline import Augment
from dltrain.batches import IGNORED_LABEL, ClassificationBatch, generator
from dltrain.contracts import Classifier, auxiliary_weight
from dltrain.drawing.captions import draw_caption
from dltrain.drawing.images import arrange
from dltrain.errors import UserError
from dltrain.tasks.freezing import FreezingKeys
from dltrain.tasks.image_forms import ClassificationForm
from dltrain.tasks.images import AUGMENTED_SHOWN, ImageTask
from dltrain.tasks.multiclass import ConfusionMatrix, accuracy, predict_labels, scored
from dltrain.tasks.task import Figure, Input, Prediction, TaskKeys

LABELLED_PX = 72  # least side of an image above its label


class Classification(ImageTask[Classifier, ClassificationBatch]):
    """Cross-entropy over one label per image.

    In training a model may return (logits, logits of an auxiliary classifier, ...): the cross-entropies of the latter
    count `model.auxiliary_weight` times in the loss (C. Szegedy et al., 2014, arXiv 1409.4842, section 5).

    Metrics: train/, val/ and test/ loss (nats per image) and accuracy. The training metrics are of augmented images.

    Raises ValueError for a transform that mixes labels of another number of classes."""

    batch_type = ClassificationBatch
    headline, training_metrics = "val/accuracy", ("loss", "accuracy")

    def __init__(self, model: Classifier, augment: Augment, num_classes: int, label_smoothing: float = 0.0,
                 freezing: FreezingKeys | None = None, **keys: Unpack[TaskKeys]):
        super().__init__(model, augment, freezing, **keys)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.metrics = ConfusionMatrix(num_classes)
        for name, transform in augment.transforms.items():
            if transform.num_classes not in (None, num_classes):
                raise ValueError(f"augment.{name}: num_classes must be {num_classes}, that of the data, but is "
                                 f"{transform.num_classes}; write ${{data.num_classes}}")

    def check(self, batch: ClassificationBatch) -> None:
        batch.check(self.num_classes)
        logits, expected = self(batch.images), (batch.size, self.num_classes)
        if tuple(logits.shape) != expected:
            raise UserError(f"it must return logits {expected} for {batch.size} images, but returns "
                            f"{tuple(logits.shape)}")

    def check_training(self, batch: ClassificationBatch) -> None:
        self.model(self.augment.normalize(batch.images))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 pixels (B, C, H, W) to logits, or log-probabilities, (B, num_classes), as in evaluation."""
        classify = cast(Callable[[Tensor], Tensor], self.model)  # no auxiliary logits in evaluation mode
        return self.augment.test_views(classify, self.augment.normalize(images))

    def training_step(self, batch: ClassificationBatch, batch_idx: int) -> Tensor:
        images, labels = self.augment(batch, generator("augment", *self.position))
        output = self.model(images)
        logits, *auxiliary = output if isinstance(output, tuple) else (output,)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        for other in auxiliary:
            term = F.cross_entropy(other, labels, label_smoothing=self.label_smoothing)
            loss = loss + auxiliary_weight(self.model) * term
        count = len(labels)
        self.step_sums.append((loss.detach() * count, num_correct(logits.argmax(1), labels), count))
        return loss

    def evaluation_step(self, batch: ClassificationBatch, batch_idx: int = 0) -> Tensor:
        logits = self(batch.images)
        self.metrics.update(logits, batch.labels)
        if self.own_metrics:
            self.update_own_metrics(*scored(logits, batch.labels))
        self.add_loss(F.cross_entropy(logits, batch.labels, reduction="sum", ignore_index=IGNORED_LABEL),
                      (batch.labels != IGNORED_LABEL).sum())
        return logits

    def evaluation_end(self, split: str) -> None:
        self.log_metrics(split, {"accuracy": accuracy(self.metrics.compute(self.reduce_sum)), "loss": self.mean_loss()})

    def training_figures(self, batch: ClassificationBatch) -> dict[str, Figure]:
        """Images as the model sees them, above their labels; of mixed samples above the two largest shares."""
        images, labels = self.augmented(batch)
        pictures = []
        for image, label in zip(images[:AUGMENTED_SHOWN], labels, strict=False):
            pixels = self.augment.normalize.invert(image[None])[0].cpu()
            pictures.append(draw_caption(pixels, [self.describe(label)], least_px=LABELLED_PX))
        return {"augmented_batch": arrange(pictures, columns=8)}

    def describe(self, label: Tensor) -> str:
        if label.dim() == 0:
            return self.class_name(int(label))
        shares, classes = label.topk(min(2, len(label)))
        return ", ".join(f"{self.class_name(index)} {share:.2f}" for share, index in
                         zip(shares.tolist(), classes.tolist(), strict=True) if share > 0)

    def summary_figures(self) -> dict[str, Figure]:
        return self.metrics.figures(self.class_names)

    def export_form(self) -> ClassificationForm:
        return ClassificationForm(self)

    def predict(self, inputs: Sequence[Input], data: object, **options: object) -> Iterator[Prediction]:
        """The five most probable labels of each image."""
        return predict_labels(inputs, self.class_names, "file",
                              lambda images: self(torch.stack(images).to(self.device)))


def num_correct(predictions: Tensor, labels: Tensor) -> Tensor:
    """How many predicted classes are right; of mixed labels (B, num_classes), the share of the predicted class."""
    if labels.dim() == 2:
        return labels.gather(1, predictions[:, None]).sum()
    return (predictions == labels).count_nonzero()
