"""The graphs of tasks on images that return one tensor: classification and segmentation.

The graph takes pixels as they are read and holds the run's normalisation and, of a classifier, the views of its
test-time augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.augment.pipeline import Augment
from dltrain.batches import Batch
from dltrain.tasks.graphs import Axis, Call, Form, Graph, Port, first_rows

OTHER_SIZE = 1.25  # of the images, for the sides of those that try whether any size is taken
IMAGES_RESIZED = 2
PIXEL_VALUES = "pixels from 0 to 255, RGB or grey"


class RawPixels(nn.Module):
    """In the place of a task's Augment where the exported graph does all of its work."""

    def normalize(self, images: Tensor) -> Tensor:
        return images

    def test_views(self, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return model(images)

    def forward(self, batch: Batch, rng: None = None) -> Batch:
        return batch


class CallsImageGraph(nn.Module):
    """A model that is an exported graph with one output."""

    def __init__(self, call: Call):
        super().__init__()
        self.call = call

    def forward(self, images: Tensor) -> Tensor:
        return self.call(images)[0]


class WithPixels(nn.Module):
    """A function of uint8 images, or of floats in [0, 1], of pixels in [0, 255] of either type."""

    def __init__(self, owner: nn.Module, function: Callable[[Tensor], Any]):
        super().__init__()
        self.owner, self.function = owner, function  # the module whose parameters it uses

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        values = images if images.dtype == torch.uint8 else images / 255
        out = self.function(values)
        return tuple(out) if isinstance(out, tuple | list) else (out,)


class ImageForm(Form):
    """`logits`: the name of the output; `axes` of it after (batch, num_classes)."""

    reads_pixels = True
    output_axes: tuple[Axis, ...] = ()

    def connect(self, calls: Mapping[str, Call]) -> None:
        take_raw_pixels(self.task, CallsImageGraph(calls["model"]))

    def outputs(self, batch: Any) -> list[Tensor]:
        with torch.inference_mode():
            return [self.task(batch.images)]

    def resized(self, batch: Any) -> Any:
        images = resize_pixels(batch.images[:IMAGES_RESIZED])
        return first_rows(batch, IMAGES_RESIZED)._replace(images=images)

    def takes_any_size(self, images: Tensor) -> bool:
        try:
            with torch.inference_mode():
                self.task(resize_pixels(images))
        except (RuntimeError, ValueError):
            return False
        return True

    def output(self) -> tuple[str, str]:
        """The name of the output, and what it is."""
        return "logits", "any; their softmax over the classes is the probabilities"

    def graphs(self, batch: Any, any_size: bool, pixels: torch.dtype) -> list[Graph]:
        images = batch.images[:IMAGES_RESIZED]
        sides: tuple[Axis, ...] = ("height", "width") if any_size and self.takes_any_size(images) else (
            tuple(images.shape[2:]))
        name, values = self.output()
        return [Graph("model", WithPixels(self.task, self.task), (images.to(pixels),),
                      (Port("images", ("batch", images.shape[1], *sides), pixels, PIXEL_VALUES),),
                      (Port(name, ("batch", self.task.num_classes, *(sides if self.output_axes else ())),
                            torch.float32, values),))]


class ClassificationForm(ImageForm):
    def output(self) -> tuple[str, str]:
        if cast(Augment, self.task.augment).test_views.kind == "single":
            return super().output()
        return "log_probabilities", "at most 0; of the views of test-time augmentation together"

    def takes_any_size(self, images: Tensor) -> bool:
        """Crops and further views have sizes of their own."""
        views = cast(Augment, self.task.augment).test_views
        return views.kind == "single" and not views.crop_px and not views.short_px and super().takes_any_size(images)


class SegmentationForm(ImageForm):
    output_axes = ("height", "width")


def take_raw_pixels(task: Any, model: nn.Module) -> None:
    """`model` takes uint8 pixels."""
    task.augment, task.model = RawPixels(), model


def resize_pixels(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 in another size, whose sides differ by one of the strides that nets have."""
    height, width = (round(side * OTHER_SIZE) for side in images.shape[2:])
    return F.interpolate(images.float(), size=(height, width + 8), mode="nearest").to(torch.uint8)
