"""Turns SegmentationBatches into a loss using any model from images to the class logits of every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.augment.geometry import to_device
from dltrain.augment.pipeline import Augment
from dltrain.batches import IGNORED_PIXEL, SegmentationBatch, generator
from dltrain.contracts import InputEncoder, PixelSegmenter, Segmenter
from dltrain.drawing.images import arrange, enlarge
from dltrain.drawing.masks import SIDE_PX, colour_mask, compare_masks, draw_legend, draw_mask, palette_image
from dltrain.errors import UserError
from dltrain.tasks.classification import ClassLoss
from dltrain.tasks.freezing import FreezingKeys
from dltrain.tasks.image_forms import SegmentationForm
from dltrain.tasks.images import ImageTask
from dltrain.tasks.multiclass import ConfusionMatrix, accuracy
from dltrain.tasks.task import Figure, Input, Prediction, TaskKeys

IMAGES_SHOWN = 8
CLASSES_PRINTED = 6


class Segmentation(ImageTask[Segmenter, SegmentationBatch]):
    """Cross-entropy over the class of every scored pixel. `pixels`: the loss is over so many random pixels of each
    image, chosen anew in each step, instead of all; the model then classifies these alone (`classify_pixels`).

    Metrics: train/, val/ and test/ loss (nats per pixel) and pixel_accuracy; val/ and test/ mean_iou: the intersection
    over the union of the pixels of a class in the whole split, averaged over the classes that occur in the truth or in
    the predictions (M. Everingham et al., 2010); test/ also the IoU of each class, as test/iou/NAME.
    """

    batch_type = SegmentationBatch
    headline, training_metrics = "val/mean_iou", ("loss", "pixel_accuracy")

    def __init__(self, model: Segmenter, augment: Augment, num_classes: int, pixels: int | None,
                 label_smoothing: float = 0.0, balance_classes: bool = False,
                 class_weights: Mapping[str, float] | None = None, freezing: FreezingKeys | None = None,
                 **keys: Unpack[TaskKeys]):
        super().__init__(model, augment, freezing, **keys)
        views = augment.test_views
        if views.kind != "single" or views.crop_px or views.short_px:
            raise ValueError("augment.test must be single, without test_crop_px and test_short_px: a mask has one view")
        if pixels is not None and not isinstance(model, PixelSegmenter):
            raise ValueError(f"pixels must be null: {type(model).__name__} classifies all pixels at once")
        self.num_classes, self.pixels = num_classes, pixels
        self.metrics = ConfusionMatrix(num_classes, IGNORED_PIXEL)
        self.class_loss = ClassLoss(num_classes, label_smoothing, balance_classes, class_weights, IGNORED_PIXEL)

    def fit_statistics(self, data: Any) -> None:
        super().fit_statistics(data)
        self.class_loss.fit(data, lambda batch: batch.masks)

    def check(self, batch: SegmentationBatch) -> None:
        batch.check(self.num_classes)
        logits, expected = self(batch.images), (batch.size, self.num_classes, *batch.masks.shape[1:])
        if tuple(logits.shape) != expected:
            raise UserError(f"it must return logits {expected}, but returns {tuple(logits.shape)}")

    def check_training(self, batch: SegmentationBatch) -> None:
        self.model(self.augment.normalize(batch.images))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 pixels (B, C, H, W) to logits (B, num_classes, H, W), as in evaluation."""
        logits: Tensor = self.model(self.augment.normalize(images))
        return logits

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        rng = generator("augment", *self.position)
        images, masks = self.augment(batch, rng)
        if self.pixels is None:
            logits = self.model(images)
        else:
            places = random_places(masks, self.pixels, rng)
            logits = cast(PixelSegmenter, self.model).classify_pixels(images, places).transpose(1, 2)
            masks = masks.flatten(1).gather(1, places[..., 0] * masks.shape[2] + places[..., 1])
        total = self.class_loss.total(logits, masks)
        count = (masks != IGNORED_PIXEL).sum()
        self.step_sums.append((total.detach(), (logits.argmax(1) == masks).sum(), count))
        return total / count.clamp_min(1)

    def evaluation_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        predictions: Tensor = logits.argmax(1)
        self.metrics.update(predictions, batch.masks)
        if self.own_metrics:
            kept = batch.masks != IGNORED_PIXEL
            self.update_own_metrics(predictions[kept], batch.masks[kept])
        self.add_loss(loss_sum(logits, batch.masks), (batch.masks != IGNORED_PIXEL).sum())
        return predictions

    def evaluation_end(self, split: str) -> None:
        matrix = self.metrics.compute(self.reduce_sum).double()
        iou = intersection_over_union(matrix)
        values = {"mean_iou": iou.nanmean().float(), "pixel_accuracy": accuracy(matrix).float(),
                  "loss": self.mean_loss()}
        if split == "test":
            values |= {f"iou/{name}": value.float() for name, value in zip(self.class_names, iou, strict=True)
                       if not value.isnan()}
        self.log_metrics(split, values)

    def training_figures(self, batch: SegmentationBatch) -> dict[str, Figure]:
        images, masks = self.augmented(batch)
        images = self.augment.normalize.invert(images[:IMAGES_SHOWN]).cpu()
        shown = masks[:IMAGES_SHOWN].cpu()
        sheet = arrange([picture for image, mask in zip(images, shown, strict=True)
                         for picture in (enlarge(image, SIDE_PX), colour_mask(mask))])
        classes = [number for number in shown.unique().tolist() if number != IGNORED_PIXEL]
        return {"augmented_batch": torch.cat([sheet, draw_legend(classes, self.class_names, sheet.shape[2])], 1)}

    def figures(self, batch: SegmentationBatch, outputs: Tensor) -> dict[str, Figure]:
        first = [values[:IMAGES_SHOWN].cpu() for values in (batch.images, batch.masks, outputs)]
        samples = list(zip(first[0], first[1], first[2], strict=True))
        return {"image_truth_prediction": compare_masks(samples, self.class_names)}

    def export_form(self) -> SegmentationForm:
        return SegmentationForm(self)

    def predict(self, inputs: Sequence[Input], data: InputEncoder[Tensor, SegmentationBatch], **options: object
                ) -> Iterator[Prediction]:
        """The class of every pixel of each image: on a picture, as a palette image, and the share of each class."""
        for item in inputs:
            image: Tensor = item.load()
            with torch.inference_mode():
                logits = self(data.encode_inputs([image]).images.to(self.device))
                full = F.interpolate(logits, size=image.shape[1:], mode="bilinear", align_corners=False)
                mask = full[0].argmax(0).cpu()
            fractions = torch.bincount(mask.flatten(), minlength=len(self.class_names)) / mask.numel()
            order = fractions.argsort(descending=True).tolist()
            shares = {self.class_names[i]: round(float(fractions[i]), 4) for i in order if fractions[i]}
            path = Path(item.name)
            listed = "  ".join(f"{name} {share:.1%}" for name, share in list(shares.items())[:CLASSES_PRINTED])
            yield Prediction(item.name, [f"{path.name}  {listed}"],
                             records=[{"file": item.name, "mask": f"{item.output or path.stem}_mask.png",
                                       "shares": shares}],
                             pictures={"": to_pil_image(draw_mask(image, mask, self.class_names)),
                                       "_mask": palette_image(mask)})


def loss_sum(logits: Tensor, masks: Tensor) -> Tensor:
    """The cross-entropy of (B, K, ...) summed over the scored pixels (B, ...). On a GPU the kernel that adds them up by
    itself has no fixed order, which a deterministic run refuses."""
    if logits.is_cpu:
        return F.cross_entropy(logits, masks, reduction="sum", ignore_index=IGNORED_PIXEL)
    return F.cross_entropy(logits, masks, reduction="none", ignore_index=IGNORED_PIXEL).sum()


def intersection_over_union(matrix: Tensor) -> Tensor:
    """Counts (K, K), row = true class, to the IoU of each class; nan for a class without any pixel."""
    intersection = matrix.diag()
    return intersection / (matrix.sum(0) + matrix.sum(1) - intersection)


def random_places(masks: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """(B, count, 2): row and column of uniformly chosen pixels of each mask (B, H, W)."""
    b, h, w = masks.shape
    flat = torch.randint(0, h * w, (b, count), generator=rng)
    return to_device(torch.stack([flat // w, flat % w], 2), masks)
