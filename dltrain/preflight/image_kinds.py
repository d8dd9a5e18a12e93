"""What the checks have to know of the kinds of problems on images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, IGNORED_PIXEL, PAD
from dltrain.preflight.features import Association, crops, image_features, one_hot, places, words_of
from dltrain.preflight.kind import Kind, mean_loss, scored


class Images(Kind):
    inputs, content, counts_samples = ("images",), ("images",), True

    def association(self, batch: Any) -> Association | None:
        return Association(image_features(batch.images)[:, None], one_hot(batch.labels)[:, None])

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        output = task.model(task.augment(batch).images)
        logits = output[0] if isinstance(output, tuple) else output
        return float(F.cross_entropy(logits, batch.labels)), (task.num_classes,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task(batch.images)

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.labels, IGNORED_LABEL)


class Boxes(Kind):
    inputs, content = ("images",), ("images",)
    samples_fitted, samples_probed = 4, 300

    def association(self, batch: Any) -> Association | None:
        return crops(batch.images, *([target[name] for target in batch.targets] for name in ("boxes", "labels")))

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        images, targets = task.augment(batch)
        if not task.matches_on_host:
            targets = [{name: value.to(images[0].device) for name, value in target.items()} for target in targets]
        losses = task.model(images, targets)
        if "loss_classifier" not in losses:
            return None
        return float(losses["loss_classifier"]), (task.num_classes, task.num_classes + 1)  # with background or without

    def outputs(self, task: Any, batch: Any) -> Any:
        return [torch.cat([one["boxes"], one["scores"][:, None]], 1) for one in task(batch.images)]


class Masks(Kind):
    inputs, content = ("images",), ("images",)
    samples_fitted, samples_probed = 4, 120

    def association(self, batch: Any) -> Association | None:
        return places(batch.images, batch.masks, IGNORED_PIXEL)

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        logits = task.model(task.augment(batch).images)
        return float(F.cross_entropy(logits, batch.masks, ignore_index=IGNORED_PIXEL)), (task.num_classes,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task(batch.images)

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.masks, IGNORED_PIXEL)


class Captions(Kind):
    inputs, content, symbols = ("images", "captions"), ("images",), "captions"
    samples_fitted, samples_probed = 4, 500

    def association(self, batch: Any) -> Association | None:
        return Association(image_features(batch.images)[:, None], words_of(batch.captions)[:, None])

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        logits = task.model(task.augment(batch).images, batch.captions[:, :, :-1])
        return mean_loss(logits, batch.captions[:, :, 1:], PAD), (task.vocab_size,)

    def outputs(self, task: Any, batch: Any) -> Any:
        logits = task.model(task.augment(batch).images, batch.captions[:, :, :-1])
        return logits.transpose(1, 2)

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.captions[:, :, 1:], PAD)
