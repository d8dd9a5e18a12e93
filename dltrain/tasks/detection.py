"""Turns DetectionBatches into a loss using any model that returns its losses, and its boxes from `detect`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Unpack

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.transforms.functional import to_pil_image

from dltrain.augment.pipeline import Augment
from dltrain.batches import DetectionBatch, generator, to_device
from dltrain.contracts import Detector, ProposalDetector, class_heads, matches_on_host
from dltrain.drawing.boxes import draw_boxes
from dltrain.drawing.images import arrange, brighten
from dltrain.errors import UserError
from dltrain.parallel.as_one import AsOne
from dltrain.parallel.sampling import SamplerOfAll, share_samplers
from dltrain.tasks.classification import ClassLoss
from dltrain.tasks.detection_forms import DetectionForm
from dltrain.tasks.freezing import FreezingKeys
from dltrain.tasks.images import ImageTask
from dltrain.tasks.task import Figure, Input, Prediction, TaskKeys
from dltrain.tasks.voc07 import Voc07AveragePrecision

Target = dict[str, Tensor]

IMAGES_SHOWN, PROPOSAL_IMAGES_SHOWN, PROPOSALS_SHOWN = 8, 4, 10
LEAST_SCORE = 0.5  # of a box in a figure


class Detection(ImageTask[Detector, DetectionBatch]):
    """The sum of the model's losses, which it names in `losses`. Its loss of classes may be weighted and smoothed; the
    regions or windows of the background have the weight 1.

    Metrics: train/loss and its terms. val/ and test/: map (AP averaged over IoU 0.50 to 0.95), map_50 and map_75 as
    COCO defines them (pycocotools, by torchmetrics), with at most 100 boxes per image. test/ also: map of each class,
    as test/map/NAME, and map_voc07, VOC 2007's mean over the classes of the AP at IoU 0.5, the precision read at 11
    recalls, with the matching of its development kit (voc07.py).

    Raises ValueError for weighted or smoothed classes of a model that has no `class_loss`."""

    batch_type = DetectionBatch
    headline = "val/map"

    def __init__(self, model: Detector, augment: Augment, num_classes: int, label_smoothing: float = 0.0,
                 balance_classes: bool = False, class_weights: Mapping[str, float] | None = None,
                 freezing: FreezingKeys | None = None, **keys: Unpack[TaskKeys]):
        self.training_metrics = ("loss", *model.losses)
        super().__init__(model, augment, freezing, **keys)
        heads = class_heads(model)
        self.class_loss = ClassLoss(num_classes, label_smoothing, balance_classes, class_weights,
                                    background=heads[0].background if heads else None)
        if not self.class_loss.is_plain:
            if not heads:
                raise ValueError(f"class_weights, balance_classes and label_smoothing need a model with the attribute "
                                 f"class_loss, which {type(model).__name__} does not have")
            for head in heads:
                head.class_loss = self.class_loss.mean
        self.num_classes, self.matches_on_host = num_classes, matches_on_host(model)
        self.samplers: list[SamplerOfAll] = []  # of the regions that a loss is a mean of
        self.coco_metric = MeanAveragePrecision()
        self.voc07_metric = Voc07AveragePrecision(num_classes)

    def fit_statistics(self, data: Any) -> None:
        super().fit_statistics(data)
        self.class_loss.fit(data, lambda batch: torch.cat([target["labels"] for target in batch.targets]))

    def train_as_one(self, as_one: AsOne) -> None:
        super().train_as_one(as_one)
        self.samplers = share_samplers(self, as_one)

    def check(self, batch: DetectionBatch) -> None:
        batch.check(self.num_classes)
        detections = self(batch.images)
        if len(detections) != batch.size or not all({"boxes", "labels", "scores"} <= one.keys() for one in detections):
            raise UserError("its detect must return boxes, labels and scores of each image")

    def forward(self, images: list[Tensor]) -> list[Target]:
        """uint8 images to boxes, labels and scores, as in evaluation."""
        if not images:  # the last batch of a process may have none
            return []
        try:
            return self.model.detect(self.augment(DetectionBatch(images, [])).images)
        except ValueError as error:
            raise UserError(str(error)) from error

    def copy_to(self, device: torch.device, batch: DetectionBatch) -> DetectionBatch:
        """In training the boxes stay on the host: how many are left of them decides shapes, for which the host would
        wait for the device."""
        if not self.training:
            return super().copy_to(device, batch)
        return batch._replace(images=[to_device(image, device) for image in batch.images])

    def transfer_batch_to_device(self, batch: DetectionBatch, device: torch.device, dataloader_idx: int
                                 ) -> DetectionBatch:
        return self.copy_to(device, batch)

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        images, targets = self.augment(batch, generator("augment", *self.position))
        if not self.matches_on_host:
            targets = move_targets(targets, images[0].device)
        try:
            losses = self.model(images, targets)
        except ValueError as error:
            raise UserError(str(error)) from None
        for name, weight in (pair for sampler in self.samplers for pair in sampler.weights.items()):
            losses[name] = losses[name] * weight
        terms = torch.stack([losses[name] for name in self.model.losses])
        total = terms.sum()
        self.step_sums.append((total.detach() * batch.size, *(terms.detach() * batch.size), batch.size))
        return total

    def evaluation_step(self, batch: DetectionBatch, batch_idx: int) -> list[Target]:
        detections = self(batch.images)
        if not detections:
            return detections
        self.coco_metric.update(detections, batch.targets)
        self.update_own_metrics(detections, batch.targets)
        if self.trainer.testing:
            self.voc07_metric.update(detections, batch.targets)
        return detections

    def fill_up(self) -> None:
        """The metrics of several processes are joined image by image, so those that have fewer get images without
        boxes, which change nothing."""
        own = len(self.coco_metric.detection_box)
        most = int(self.trainer.strategy.reduce(torch.tensor(own, device=self.device), reduce_op="max"))
        empty = torch.zeros(0, 4, dtype=next(self.parameters()).dtype, device=self.device)
        boxes = [*self.coco_metric.detection_box, empty][0]
        scores = [*self.coco_metric.detection_scores, empty[:, 0]][0]
        none = {"boxes": boxes[:0], "scores": scores[:0], "labels": scores[:0].long()}
        self.coco_metric.update([none] * (most - own), [none] * (most - own))
        if self.trainer.testing:
            self.voc07_metric.update([none] * (most - own), [none] * (most - own))

    def evaluation_end(self, split: str) -> None:
        if self.trainer.world_size > 1:
            self.fill_up()
        self.coco_metric.class_metrics = split == "test"
        result = self.coco_metric.compute()
        values = {name: result[name] for name in ("map", "map_50", "map_75")}
        self.coco_metric.reset()
        if split == "test":
            values["map_voc07"] = self.voc07_metric.compute()
            self.voc07_metric.reset()
            of_classes = zip(result["classes"].flatten().tolist(), result["map_per_class"].flatten(), strict=True)
            values |= {f"map/{self.class_names[label]}": value for label, value in of_classes
                       if label >= 0 and value >= 0}  # -1: no object of the class in this split
        self.log_metrics(split, values)

    def training_figures(self, batch: DetectionBatch) -> dict[str, Figure]:
        images, targets = self.augment(batch, generator("augment", *self.position))
        pictures = [self.draw(self.augment.normalize.invert(image[None])[0], target)
                    for image, target in zip(images[:IMAGES_SHOWN], targets, strict=False)]
        return {"augmented_batch": arrange(pictures)}

    def figures(self, batch: DetectionBatch, outputs: list[Target]) -> dict[str, Figure]:
        pairs = []
        for image, target, detections in list(zip(batch.images, batch.targets, outputs, strict=True))[:IMAGES_SHOWN]:
            bright = brighten(image)
            pairs += [self.draw(bright, target), self.draw(bright, keep_above(detections, LEAST_SCORE))]
        figures: dict[str, Figure] = {"truth_and_predictions": arrange(pairs)}
        if isinstance(self.model, ProposalDetector):
            images = batch.images[:PROPOSAL_IMAGES_SHOWN]
            with torch.inference_mode():
                proposals, anchors = self.model.proposals(self.augment(DetectionBatch(images, [])).images)
            figures["proposals_and_anchors"] = draw_proposals(images, proposals, anchors)
        return figures

    def draw(self, image: Tensor, target: Target) -> Tensor:
        """The image with boxes and class names, and scores where `target` has them."""
        return draw_boxes(image, target["boxes"], target["labels"], self.describe(target))

    def describe(self, target: Target) -> list[str]:
        names = [self.class_names[label] for label in target["labels"].tolist()]
        if "scores" not in target:
            return names
        return [f"{name} {score:.2f}" for name, score in zip(names, target["scores"].tolist(), strict=True)]

    def export_form(self) -> DetectionForm:
        return DetectionForm(self)

    def predict(self, inputs: Sequence[Input], data: CocoNames, score: float = 0.5, **options: object
                ) -> Iterator[Prediction]:
        """The boxes of at least `score` in each image, as COCO's results and on a picture."""
        for number, item in enumerate(inputs):
            image = item.load()
            with torch.inference_mode():
                (detections,) = self([image.to(self.device)])
            kept = {name: value.cpu() for name, value in keep_above(detections, score).items()}
            image_id = data.image_id(item.name, number)
            records = [{"image_id": image_id, "file_name": item.name, "category_id": data.category_id(label),
                        "category": self.class_names[label],
                        "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)], "score": round(s, 6)}
                       for (x1, y1, x2, y2), label, s in zip(
                           *(kept[name].tolist() for name in ("boxes", "labels", "scores")), strict=True)]
            line = f"{Path(item.name).name}  {'  '.join(self.describe(kept)) or 'no object'}"
            picture = to_pil_image(self.draw(brighten(image), kept))
            yield Prediction(item.name, [line], records=records, pictures={"": picture})


def move_targets(targets: list[Target], device: torch.device) -> list[Target]:
    """The targets on the device; each of their tensors goes there in one copy for the whole batch."""
    counts = [len(target["labels"]) for target in targets]
    moved = {name: to_device(torch.cat([target[name] for target in targets]), device).split(counts)
             for name in targets[0]}
    return [{name: values[index] for name, values in moved.items()} for index in range(len(targets))]


class CocoNames(Protocol):
    """What `predict` asks the data for: the ids of an image and of a class in COCO's results."""

    def image_id(self, file: str, number: int) -> int | None: ...

    def category_id(self, label: int) -> int: ...


def keep_above(detections: Target, score: float) -> Target:
    kept = detections["scores"] >= score
    return {name: detections[name][kept] for name in ("boxes", "labels", "scores")}


def draw_proposals(images: list[Tensor], proposals: list[Tensor], anchors: list[Tensor]) -> Tensor:
    """Each image with its best proposals, and with the anchors of the position nearest to its centre."""
    pictures = []
    for image, boxes, all_anchors in zip(images, proposals, anchors, strict=True):
        centres = (all_anchors[:, :2] + all_anchors[:, 2:]) / 2
        middle = centres.new_tensor([image.shape[2] / 2, image.shape[1] / 2])
        distance = (centres - middle).norm(dim=1)
        nearest = all_anchors[distance <= distance.min() + 1e-3]
        for chosen in (boxes[:PROPOSALS_SHOWN], nearest):
            pictures.append(draw_boxes(brighten(image), chosen, torch.zeros(len(chosen), dtype=torch.long)))
    return arrange(pictures)
