"""The graph of detectors: one image in, boxes, labels and scores after suppression out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dltrain.tasks.graphs import Attempt, Axis, Call, Form, Graph, Port, largest_difference
from dltrain.tasks.image_forms import IMAGES_RESIZED, PIXEL_VALUES, WithPixels, resize_pixels, take_raw_pixels

OUTPUTS = ("boxes", "labels", "scores")
NEAR_PX = 1e-2  # boxes of one label whose corners all lie nearer are the same
Target = dict[str, Tensor]


class CallsDetector(nn.Module):
    """A detector that is an exported graph."""

    def __init__(self, call: Call, losses: tuple[str, ...]):
        super().__init__()
        self.call, self.losses = call, losses

    def detect(self, images: list[Tensor]) -> list[Target]:
        return [dict(zip(OUTPUTS, self.call(image), strict=True)) for image in images]


class DetectionForm(Form):
    """Torchvision's Faster R-CNN is traced and takes any size; the sizes of windows and grids of boxes are fixed.

    Compared are the boxes that both have: to each box of the run, in the order of scores, belongs the nearest one of
    its label, with all four corners within NEAR_PX. One box of a thousand may have no counterpart, as where an overlap
    is equal to a threshold up to the last bit, so that one of both suppresses or merges a box and the other does not.
    """

    reads_pixels = True
    attempts = (Attempt(True, True), Attempt(False, False), Attempt(True, False))
    tolerances: ClassVar[Mapping[str, float]] = {"boxes_px": NEAR_PX, "boxes_without_counterpart": 1e-3}

    def connect(self, calls: Mapping[str, Call]) -> None:
        take_raw_pixels(self.task, CallsDetector(calls["model"], self.task.model.losses))

    def outputs(self, batch: Any) -> list[Target]:
        with torch.inference_mode():
            return [self.task([image])[0] for image in batch.images]

    def differences(self, own: Sequence[Target], exported: Sequence[Target]) -> dict[str, float]:
        boxes, scores, alone, count = 0.0, 0.0, 0, 0
        for one, other in zip(own, exported, strict=True):
            pairs = matched_boxes(one, other)
            rows = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
            boxes = max(boxes, largest_difference(one["boxes"][rows[0]], other["boxes"][rows[1]]))
            scores = max(scores, largest_difference(one["scores"][rows[0]], other["scores"][rows[1]]))
            count += max(len(one["scores"]), len(other["scores"]))
            alone += max(len(one["scores"]), len(other["scores"])) - len(pairs)
        return {"boxes_px": boxes, "scores": scores, "boxes_without_counterpart": alone / max(1, count)}

    def resized(self, batch: Any) -> Any:
        images = [resize_pixels(image[None])[0] for image in batch.images[:IMAGES_RESIZED]]
        return type(batch)(images, batch.targets[:IMAGES_RESIZED])

    def graphs(self, batch: Any, any_size: bool, pixels: torch.dtype) -> list[Graph]:
        image: Tensor = batch.images[0]
        self.outputs(type(batch)([image], batch.targets[:1]))  # what a model keeps for a size is then a constant
        sides: tuple[Axis, ...] = ("height", "width") if any_size else tuple(image.shape[1:])
        return [Graph("model", WithPixels(self.task, self.detect), (image.to(pixels),),
                      (Port("image", (image.shape[0], *sides), pixels, PIXEL_VALUES),),
                      (Port("boxes", ("boxes", 4), torch.float32, "x1, y1, x2, y2 in pixels of the image"),
                       Port("labels", ("boxes",), torch.int64, f"classes from 0 to {self.task.num_classes - 1}"),
                       Port("scores", ("boxes",), torch.float32, "from 0 to 1, best first")))]

    def detect(self, image: Tensor) -> list[Tensor]:
        (detections,) = self.task([image])
        return [detections[name] for name in OUTPUTS]


def matched_boxes(one: Target, other: Target) -> list[tuple[int, int]]:
    """Pairs of the boxes of two detectors for an image; each box is in one pair at most."""
    if not len(one["scores"]) or not len(other["scores"]):
        return []
    distance = (one["boxes"][:, None] - other["boxes"]).abs().amax(2)
    distance += (one["scores"][:, None] - other["scores"]).abs()  # of equal boxes the one of the nearest score
    distance = distance.masked_fill(one["labels"][:, None] != other["labels"], torch.inf)
    pairs = []
    for row in range(len(distance)):
        nearest, column = distance[row].min(0)
        if nearest < NEAR_PX:
            pairs.append((row, int(column)))
            distance[:, column] = torch.inf
    return pairs
