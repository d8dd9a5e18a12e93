"""What tasks on images share: the augmentation pipeline with its statistics, and freezing of the backbone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, Unpack

import torch
from torch import Tensor

from dltrain.augment.pipeline import STATISTICS_IMAGES, Augment, BatchT, Images, map_images
from dltrain.batches import ClassificationBatch, generator
from dltrain.contracts import layers_to_fit
from dltrain.drawing.images import make_grid
from dltrain.tasks.freezing import Freezing, FreezingKeys
from dltrain.tasks.task import Figure, ModelT, Task, TaskKeys

AUGMENTED_SHOWN = 64  # images of the first training batch
WHITENING_IMAGES = 5_000  # at most so many, chosen at random, set the filters of a whitening layer


class TrainingPixels(Protocol):
    def pixel_batches(self, at_most: int) -> Iterable[Tensor]:
        """(N, C, H, W) uint8 of the training split, some at a time."""
        ...


class ImageTask(Task[ModelT, BatchT]):
    """Base class of the tasks on images. `augment` turns uint8 pixels into normalised floats, with random transforms in
    training. `freezing`: see freezing.py. Raises ValueError for a transform that mixes labels where there are none."""

    augment: Augment

    def __init__(self, model: ModelT, augment: Augment, freezing: FreezingKeys | None = None,
                 **keys: Unpack[TaskKeys]):
        super().__init__(model, **keys)
        self.augment, self.freezing = augment, Freezing(model, **freezing or {})
        self.scheduled = augment.scheduled
        for name, transform in augment.transforms.items():
            if transform.num_classes is not None and self.batch_type is not ClassificationBatch:
                raise ValueError(f"augment.{name} mixes the labels of images, which {self.batch_type.__name__} does "
                                 "not have; leave it out")

    def fit_statistics(self, data: TrainingPixels) -> None:
        self.augment.fit(data.pixel_batches(STATISTICS_IMAGES))
        if layers := layers_to_fit(self.model):
            pixels = torch.cat(list(data.pixel_batches(WHITENING_IMAGES)))
            for layer in layers:
                layer.fit_patches(self.augment.normalize(pixels))

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.freezing.stages:
            self.freezing.apply(self.current_epoch)
        if self.scheduled:
            self.augment.begin(self.seed, self.current_epoch, self.paced[1])

    @property
    def has_unused_parameters(self) -> bool:
        return self.freezing.unfreezes or super().has_unused_parameters

    def augmented(self, batch: BatchT) -> BatchT:
        """A training batch as the model sees it in the step at `position`."""
        return self.augment(batch, generator("augment", *self.position))

    def encode(self, examples: list[Tensor], data: object) -> Images:
        """(C, H, W) uint8 each, to normalised floats: (B, C, H, W), or a list of (C, Hi, Wi) if sizes differ."""
        images = [self.augment.normalize(image[None].to(self.device))[0] for image in examples]
        return torch.stack(images) if len({image.shape for image in images}) == 1 else images

    def training_figures(self, batch: BatchT) -> dict[str, Figure]:
        images = map_images(self.augment.normalize.invert, self.augmented(batch).images[:AUGMENTED_SHOWN])
        return {"augmented_batch": make_grid(image.cpu() for image in images)}
