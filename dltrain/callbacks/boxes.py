"""What a detector sees: truth beside what was found, and what its proposals and anchors are, on TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from dltrain.batches import DetectionBatch
from dltrain.callbacks.pictures import Shown, add, boards, first_batch

SHOWN = 8  # images
LEAST_SCORE = 0.5  # of a box that is drawn
COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#469990")


class Boxes(Shown):
    """The first batch as it is trained on; truth and findings after each validation and at the end of the test."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > 0 or batch_idx > 0 or not boards(trainer) or not isinstance(batch, DetectionBatch):
            return
        seen = first_batch(trainer, pl_module, batch)
        names = trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it in fit
        pictures = [drawn(pl_module.augment.normalize.invert(image[None])[0], target["boxes"], target["labels"],
                          [names[i] for i in target["labels"].tolist()])
                    for image, target in zip(seen.images[:SHOWN], seen.targets[:SHOWN], strict=True)]
        add(trainer, "train/augmented_batch", side_by_side(pictures), 0)

    def show(self, trainer: pl.Trainer, pl_module: Any, split: str) -> None:
        shown, data = getattr(pl_module, "shown", None), getattr(trainer, "datamodule", None)
        if not boards(trainer) or not shown or data is None or not isinstance(shown[0][1], dict):
            return
        names = data.class_names
        step = trainer.fit_loop.epoch_loop.global_step
        pairs = []
        for image, truth, found in shown[:SHOWN]:
            sure = found["scores"] >= LEAST_SCORE
            words = [f"{names[label]} {score:.2f}" for label, score in zip(
                found["labels"][sure].tolist(), found["scores"][sure].tolist(), strict=True)]
            pairs += [drawn(image, truth["boxes"], truth["labels"], [names[i] for i in truth["labels"].tolist()]),
                      drawn(image, found["boxes"][sure], found["labels"][sure], words)]
        add(trainer, f"{split}/truth_and_found", side_by_side(pairs), step)
        if split == "val" and hasattr(pl_module.model, "proposals"):
            add(trainer, "val/proposals_and_anchors", self.first_thoughts(pl_module, [s[0] for s in shown[:4]]), step)

    def first_thoughts(self, pl_module: Any, images: list[Tensor]) -> Tensor:
        """Each image with its ten best proposals, and with the anchors of the place in its middle."""
        with torch.inference_mode():
            seen = pl_module.augment(pl_module.batch_type(images, [])).images
            proposals, anchors = pl_module.model.proposals(seen)
        pictures = []
        for image, boxes, every in zip(images, proposals, anchors, strict=True):
            centres = (every[:, :2] + every[:, 2:]) / 2
            middle = centres.new_tensor([image.shape[2] / 2, image.shape[1] / 2])
            distance = (centres - middle).norm(dim=1)
            near = every[distance <= distance.min() + 1e-3]
            for some in (boxes[:10], near):
                pictures.append(drawn(image, some, torch.zeros(len(some), dtype=torch.long), [""] * len(some)))
        return side_by_side(pictures)


def drawn(image: Tensor, boxes: Tensor, labels: Tensor, words: Sequence[str], at_least_px: int = 256) -> Tensor:
    """A picture (3, H, W) uint8 with boxes and words, small images enlarged; a colour for each label."""
    scale = max(1, -(-at_least_px // min(image.shape[1:])))
    large = image.cpu().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    if not len(boxes):
        return large.expand(3, -1, -1)
    picture, font = to_pil_image(large.expand(3, -1, -1)), ImageFont.load_default(size=15)
    pen = ImageDraw.Draw(picture)
    for box, label, word in zip((boxes.cpu() * scale).tolist(), labels.tolist(), words, strict=True):
        colour = COLOURS[label % len(COLOURS)]
        pen.rectangle(box, outline=colour, width=2)
        if word:
            left, top = box[0], max(0.0, box[1] - 17)
            pen.rectangle((left, top, left + font.getlength(word) + 4, top + 17), fill=colour)
            pen.text((left + 2, top), word, "black", font)
    return pil_to_tensor(picture)


def side_by_side(pictures: list[Tensor], across: int = 4) -> Tensor:
    """`across` a row, on white; smaller pictures are filled up."""
    h, w = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
    return make_grid([F.pad(p, (0, w - p.shape[2], 0, h - p.shape[1]), value=255) for p in pictures], nrow=across,
                     padding=6, pad_value=255)
