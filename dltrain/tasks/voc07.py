"""The average precision of PASCAL VOC 2007 as its development kit has it (M. Everingham et al., 2010, section 4.2).

A detection is a hit if the object of its class and image with which it overlaps most, by an IoU of at least 0.5, was
not hit before by one of a higher score. An object that is taken makes it a false alarm, even if another one is free;
a difficult object makes it neither. VOC counts pixels from 1 and includes the last one: its widths are those of boxes
here, x2 - x1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchvision.ops import box_iou

LEAST_IOU = 0.5
Boxes = dict[str, Tensor]


class Voc07AveragePrecision(Metric):
    """`update` takes detections (boxes (N, 4), labels (N,), scores (N,)) and targets (boxes, labels and iscrowd, which
    is 1 for a difficult object) of images. `compute` returns the mean over the classes that have an object which is not
    difficult, and NaN where there is none."""

    scores: list[Tensor]  # where several processes are joined, `compute` finds a tensor
    labels: list[Tensor]
    hits: list[Tensor]
    num_objects: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        for name in ("scores", "labels", "hits"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("num_objects", torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, detections: Sequence[Boxes], targets: Sequence[Boxes]) -> None:
        for detection, target in zip(detections, targets, strict=True):
            difficult = target.get("iscrowd", torch.zeros_like(target["labels"])).bool()
            self.num_objects += torch.bincount(target["labels"][~difficult], minlength=len(self.num_objects))
            order = detection["scores"].argsort(descending=True, stable=True)
            boxes, labels = detection["boxes"][order].cpu(), detection["labels"][order].cpu()
            hits = match(boxes, labels, {name: value.cpu() for name, value in target.items()}, difficult.cpu())
            counted = hits >= 0
            self.scores.append(detection["scores"][order].cpu()[counted].to(self.device))
            self.labels.append(labels[counted].to(self.device))
            self.hits.append(hits[counted].to(self.device))

    def compute(self) -> Tensor:
        scores, labels, hits = (dim_zero_cat(values) if len(values) else torch.zeros(0, device=self.device)
                                for values in (self.scores, self.labels, self.hits))
        order = scores.argsort(descending=True, stable=True)
        values = [average_precision(hits[order][labels[order] == label], int(count))
                  for label, count in enumerate(self.num_objects.tolist()) if count]
        return torch.stack(values).mean() if values else torch.tensor(torch.nan)


def match(boxes: Tensor, labels: Tensor, target: Boxes, difficult: Tensor) -> Tensor:
    """Of each detection of an image, in the order of falling scores: 1 a hit, 0 a false alarm, -1 neither."""
    hits, taken = torch.zeros(len(boxes), dtype=torch.int64), set()
    overlaps = box_iou(boxes.double(), target["boxes"].double())
    overlaps = overlaps.masked_fill(labels[:, None] != target["labels"][None], -1.0)
    if not len(target["labels"]):
        return hits
    for index, (overlap, best) in enumerate(zip(*(column.tolist() for column in overlaps.max(1)), strict=True)):
        if overlap < LEAST_IOU:
            continue
        if difficult[best]:
            hits[index] = -1
        elif best not in taken:
            hits[index] = 1
            taken.add(best)
    return hits


def average_precision(hits: Tensor, count: int) -> Tensor:
    """The mean over 11 recalls of the highest precision at that recall or above. `hits` in the order of falling scores;
    `count`: how many objects there are."""
    true = hits.cumsum(0)
    precision = true.double() / torch.arange(1, len(hits) + 1, device=hits.device)
    reaching = [precision[10 * true >= tenths * count] for tenths in range(11)]
    return torch.stack([values.max() if len(values) else precision.new_zeros(()) for values in reaching]).mean()
