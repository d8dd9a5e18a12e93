"""What people would rather look at: one augmented batch and the confusion matrix, on TensorBoard."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from dltrain.batches import generator

SHOWN = 64  # images of the batch


class Pictures(pl.Callback):
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The run's first batch as the model sees it."""
        if trainer.global_step > 0 or batch_idx > 0 or not boards(trainer) or not isinstance(
                getattr(batch, "images", None), Tensor):  # lists of them come with boxes (boxes.py)
            return
        seen = first_batch(trainer, pl_module, batch).images[:SHOWN]
        add(trainer, "train/augmented_batch", grid(pl_module.augment.normalize.invert(seen).cpu()), 0)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.draw_confusion(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.draw_confusion(trainer, pl_module, "test")

    def draw_confusion(self, trainer: pl.Trainer, pl_module: Any, split: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if boards(trainer) and hasattr(pl_module, "last_confusion") and data is not None:
            drawn = confusion(pl_module.last_confusion, data.class_names)
            add(trainer, f"{split}/confusion", drawn, trainer.fit_loop.epoch_loop.global_step)


class Shown(pl.Callback):
    """A subclass's `show` is called after each validation of a training, and at the end of the test."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self.show(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.show(trainer, pl_module, "test")

    def show(self, trainer: pl.Trainer, pl_module: Any, split: str) -> None:
        raise NotImplementedError


def first_batch(trainer: pl.Trainer, pl_module: Any, batch: Any) -> Any:
    """As the first training step augments it."""
    draws = generator("augment", pl_module.seed, trainer.current_epoch, 0, trainer.global_rank)
    with torch.no_grad():
        return pl_module.augment(batch, draws)


def boards(trainer: pl.Trainer) -> list[Any]:
    return [one for one in trainer.loggers if isinstance(one, pl.loggers.TensorBoardLogger)]


def add(trainer: pl.Trainer, tag: str, picture: Tensor, step: int) -> None:
    for board in boards(trainer):
        try:
            board.experiment.add_image(tag, picture, step)
        except OSError as error:
            board.warn_once(error)


def grid(images: Tensor, at_least_px: int = 48) -> Tensor:
    """(B, C, H, W) uint8 to one (3, H', W') picture, small images enlarged without smoothing."""
    scale = max(1, math.ceil(at_least_px / images.shape[-1]))
    larger = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return make_grid(larger, nrow=math.ceil(math.sqrt(len(larger))), padding=2, pad_value=255)


def confusion(matrix: Tensor, names: list[str], at_most: int = 30) -> Tensor:
    """(K, K) counts, row = true class, to a (3, H, W) uint8 picture with counts and names; up to `at_most` classes are
    labelled, more are drawn as plain cells. Colour is the share of the row."""
    counts = matrix.numpy()
    k = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labelled = k <= at_most
    font = ImageFont.load_default(size=13)
    cell = 38 if labelled else max(4, 600 // k)
    margin = 20 + max((int(font.getlength(name)) for name in names), default=0) if labelled else 30
    top = 44
    picture = Image.new("RGB", (margin + k * cell + 16, top + k * cell + 16), "white")
    draw = ImageDraw.Draw(picture)
    right = int(counts.trace())
    draw.text((8, 6), f"true class down, predicted across; {right} of {int(counts.sum())} right", "black", font)
    for row in range(k):
        for column in range(k):
            share = float(shares[row, column])
            hue = (8, 81, 156) if row == column else (165, 15, 21)
            # a square root, so that a single mistake can be seen
            colour = tuple(round(255 - (255 - channel) * math.sqrt(share)) for channel in hue)
            x, y = margin + column * cell, top + row * cell
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=colour)
            if labelled and counts[row, column]:
                ink = "white" if share > 0.3 else "black"
                draw.text((x + cell / 2 - 1, y + cell / 2 - 1), str(counts[row, column]), ink, font, anchor="mm")
        if labelled:
            draw.text((margin - 6, top + row * cell + cell / 2), names[row], "black", font, anchor="rm")
            short = names[row] if font.getlength(names[row]) < cell else names[row][:4]
            draw.text((margin + row * cell + cell / 2, top - 4), short, "black", font, anchor="ms")
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
