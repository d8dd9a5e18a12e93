"""Turns DetectionBatches into a loss using any model that returns its losses, and its boxes from `detect`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from dltrain.augment.pipeline import STATISTICS_IMAGES, Augment
from dltrain.batches import DetectionBatch, generator
from dltrain.errors import UserError
from dltrain.tasks.freezing import Freezing, FreezingKeys
from dltrain.tasks.task import Task


class Detection(Task):
    """The sum of the model's losses, which it names in `losses`.

    Metrics: train/loss and its terms; val/ and test/ map (AP averaged over IoU 0.50 to 0.95), map_50 and map_75 as COCO
    defines them (pycocotools, by torchmetrics), with at most 100 boxes an image. At the test also map of each class, as
    test/map/NAME, and map_voc07: VOC 2007's mean over the classes of the AP at IoU 0.5 whose curve is read at 11 places
    (M. Everingham et al., 2010, section 4.2); pycocotools' matching differs from VOC's own in that IoU counts no extra
    pixel, and a box that found a taken object may still take another that it overlaps.
    """

    batch_type = DetectionBatch
    headline = "val/map"
    augment: Augment
    freezing: Freezing

    def __init__(self, model: Any, augment: Augment, num_classes: int, freezing: FreezingKeys | None = None,
                 **keys: Any):
        self.training_metrics = ("loss", *model.losses)
        super().__init__(model, **keys)
        self.augment, self.num_classes = augment, num_classes
        self.freezing = Freezing(model, **freezing or {})
        self.precision_metric = MeanAveragePrecision()
        self.voc07_metric = MeanAveragePrecision(iou_thresholds=[0.5], rec_thresholds=[i / 10 for i in range(11)])
        self.shown: list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]] = []  # image, truth and boxes found

    def fit_statistics(self, data: Any) -> None:
        self.augment.fit(data.training_pixels(STATISTICS_IMAGES))

    def check(self, batch: DetectionBatch) -> None:
        batch.check(self.num_classes)
        found = self(batch.images)
        if len(found) != batch.size or not all({"boxes", "labels", "scores"} <= one.keys() for one in found):
            raise UserError("its detect must give boxes, labels and scores of each image")

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """uint8 images to boxes, labels and scores."""
        return self.model.detect(self.augment(DetectionBatch(images, [])).images)

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        if self.freezing.stages:
            self.freezing.apply(self.current_epoch)
        draws = generator("augment", self.seed, self.current_epoch, batch_idx, self.global_rank)
        images, targets = self.augment(batch, draws)
        try:
            losses = self.model(images, targets)
        except ValueError as error:
            raise UserError(str(error)) from None
        total = torch.stack([losses[name] for name in self.model.losses])
        with torch.no_grad():
            count = total.new_full((1,), batch.size)
            self.sums += torch.cat([torch.cat([total.sum()[None], total]).detach() * count, count])
        return total.sum()

    def evaluation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        found = self(batch.images)
        self.precision_metric.update(found, batch.targets)
        if self.trainer.testing:
            self.voc07_metric.update(found, batch.targets)
        if batch_idx == 0:
            self.shown = list(zip(batch.images, batch.targets, found, strict=True))[:16]

    def evaluation_end(self, split: str) -> None:
        self.precision_metric.class_metrics = split == "test"
        found = self.precision_metric.compute()
        values = {name: found[name] for name in ("map", "map_50", "map_75")}
        self.precision_metric.reset()
        if split == "test":
            values["map_voc07"] = self.voc07_metric.compute()["map"]
            self.voc07_metric.reset()
            names = self.trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it
            each = zip(found["classes"].flatten().tolist(), found["map_per_class"].flatten(), strict=True)
            values |= {f"map/{names[label]}": value for label, value in each if label >= 0}
        self.log_evaluation(split, values)
