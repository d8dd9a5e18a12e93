"""Turns SegmentationBatches into a loss using any model from images to the class logits of every pixel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from dltrain.augment.geometry import to_device
from dltrain.augment.pipeline import STATISTICS_IMAGES, Augment
from dltrain.batches import IGNORED_PIXEL, SegmentationBatch, generator
from dltrain.errors import UserError
from dltrain.tasks.freezing import Freezing, FreezingKeys
from dltrain.tasks.task import Task


class Segmentation(Task):
    """Cross-entropy over the class of every pixel that is scored. `pixels`: so many of each image, drawn anew in each
    step, in the place of all; the model then classifies these alone (`at`). `freezing`: see freezing.py.

    Metrics: train/, val/ and test/ loss (nats a pixel) and pixel_accuracy; val/ and test/ mean_iou: the mean over the
    classes, of those that occur in truth or prediction, of the intersection over the union of their pixels in the whole
    split (M. Everingham et al., 2010); at the test also iou of each class, as test/iou/NAME.
    """

    batch_type = SegmentationBatch
    headline, training_metrics = "val/mean_iou", ("loss", "pixel_accuracy")
    augment: Augment
    freezing: Freezing
    eval_loss: Tensor

    def __init__(self, model: Any, augment: Augment, num_classes: int, pixels: int | None,
                 freezing: FreezingKeys | None = None, **keys: Any):
        super().__init__(model, **keys)
        if augment.test_views.kind != "single" or augment.test_views.crop_px or augment.test_views.short_px:
            raise ValueError("augment.test must be single, without test_crop_px and test_short_px: a mask has one view")
        if pixels is not None and not hasattr(model, "at"):
            raise ValueError(f"pixels must be null: {type(model).__name__} classifies all pixels at once")
        self.augment, self.num_classes, self.pixels = augment, num_classes, pixels
        self.freezing = Freezing(model, **freezing or {})
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED_PIXEL, validate_args=False)
        self.register_buffer("eval_loss", torch.zeros(2), persistent=False)  # summed loss, scored pixels
        self.shown: list[tuple[Tensor, Tensor, Tensor]] = []  # image, truth, prediction

    def fit_statistics(self, data: Any) -> None:
        self.augment.fit(data.training_pixels(STATISTICS_IMAGES))

    def check(self, batch: SegmentationBatch) -> None:
        batch.check(self.num_classes)
        out, wanted = self(batch.images), (batch.size, self.num_classes, *batch.masks.shape[1:])
        if tuple(out.shape) != wanted:
            raise UserError(f"it must give logits {wanted}, but gives {tuple(out.shape)}")

    def forward(self, images: Tensor) -> Tensor:
        """uint8 pixels (B, C, H, W) to logits (B, num_classes, H, W)."""
        logits: Tensor = self.model(self.augment.normalize(images))
        return logits

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        if self.freezing.stages:
            self.freezing.apply(self.current_epoch)
        draws = generator("augment", self.seed, self.current_epoch, batch_idx, self.global_rank)
        images, masks = self.augment(batch, draws)
        if self.pixels is None:
            logits = self.model(images)
        else:
            places = drawn_places(masks, self.pixels, draws)
            logits = self.model.at(images, places).transpose(1, 2)
            masks = masks.flatten(1).gather(1, places[..., 0] * masks.shape[2] + places[..., 1])
        total = F.cross_entropy(logits, masks, reduction="sum", ignore_index=IGNORED_PIXEL)
        with torch.no_grad():
            count = (masks != IGNORED_PIXEL).sum()
            self.sums += torch.stack([total, (logits.argmax(1) == masks).sum(), count])
        return total / count.clamp_min(1)

    def evaluation_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        logits = self(batch.images)
        predicted = logits.argmax(1)
        self.confusion.update(predicted, batch.masks)
        self.eval_loss[0] += F.cross_entropy(logits, batch.masks, reduction="sum", ignore_index=IGNORED_PIXEL)
        self.eval_loss[1] += (batch.masks != IGNORED_PIXEL).sum()
        if batch_idx == 0:
            self.shown = list(zip(batch.images[:16].cpu(), batch.masks[:16].cpu(), predicted[:16].cpu(), strict=True))

    def evaluation_end(self, split: str) -> None:
        matrix = self.confusion.compute().double()
        loss, count = self.summed(self.eval_loss)
        each = iou(matrix)
        values = {"mean_iou": each.nanmean(), "pixel_accuracy": matrix.diag().sum() / matrix.sum(),
                  "loss": loss / count}
        if split == "test":
            names = self.trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it
            values |= {f"iou/{name}": value for name, value in zip(names, each, strict=True) if not value.isnan()}
        self.log_evaluation(split, {name: value.float() for name, value in values.items()})
        self.confusion.reset()
        self.eval_loss.zero_()


def iou(matrix: Tensor) -> Tensor:
    """Counts (K, K), row = true class, to the intersection over union of each class; nan for one that has no pixel."""
    right = matrix.diag()
    return right / (matrix.sum(0) + matrix.sum(1) - right)


def drawn_places(masks: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """(B, count, 2): row and column of pixels of each mask (B, H, W), each as likely as another."""
    b, h, w = masks.shape
    flat = torch.randint(0, h * w, (b, count), generator=draws)
    return to_device(torch.stack([flat // w, flat % w], 2), masks)
