"""What a net says of every pixel: image, truth and prediction side by side, on TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dltrain.batches import IGNORED_PIXEL, SegmentationBatch
from dltrain.callbacks.boxes import side_by_side
from dltrain.callbacks.pictures import Shown, add, boards, first_batch

SHOWN, SIDE_PX = 8, 192  # images; least side of each in the picture
LIGHT = 0.55  # of a class's colour on the photograph below it


def voc_palette() -> Tensor:
    """(256, 3) uint8, PASCAL VOC's colours: bits 0, 3, 6 of the number are the high bits of red, 1, 4, 7 of green and
    2, 5 of blue. 0 is black, IGNORED_PIXEL is nearly white."""
    numbers = torch.arange(256)
    colours = torch.zeros(256, 3, dtype=torch.long)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * place + channel)) & 1) << (7 - place)
    return colours.to(torch.uint8)


class Masks(Shown):
    """The first batch as it is trained on; image, truth and prediction after each validation and at the end of the
    test, with the names of the classes below."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > 0 or batch_idx > 0 or not boards(trainer) or not isinstance(batch, SegmentationBatch):
            return
        seen = first_batch(trainer, pl_module, batch)
        images = pl_module.augment.normalize.invert(seen.images[:SHOWN])
        add(trainer, "train/augmented_masks", side_by_side([picture for image, mask in zip(
            images.cpu(), seen.masks[:SHOWN].cpu(), strict=True) for picture in (large(image), coloured(mask))]), 0)

    def show(self, trainer: pl.Trainer, pl_module: Any, split: str) -> None:
        shown, data = getattr(pl_module, "shown", None), getattr(trainer, "datamodule", None)
        if boards(trainer) and shown and data is not None and isinstance(shown[0][1], Tensor):
            add(trainer, f"{split}/image_truth_prediction", compared(shown[:SHOWN], data.class_names),
                trainer.fit_loop.epoch_loop.global_step)


def compared(shown: Sequence[tuple[Tensor, Tensor, Tensor]], names: Sequence[str]) -> Tensor:
    """Two of image, truth and prediction a row; what is not scored is white in both."""
    pictures = []
    for image, truth, predicted in shown:
        pictures += [large(image), coloured(truth), coloured(predicted.where(truth != IGNORED_PIXEL, IGNORED_PIXEL))]
    sheet = side_by_side(pictures, across=6)
    present = torch.cat([torch.stack(pair).flatten() for _, *pair in shown]).unique().tolist()
    return torch.cat([sheet, legend([n for n in present if n != IGNORED_PIXEL], names, sheet.shape[2])], 1)


def large(image: Tensor, least_px: int = SIDE_PX) -> Tensor:
    """(C, H, W) uint8 to (3, H', W'), small ones enlarged without smoothing."""
    scale = max(1, -(-least_px // max(image.shape[-2:])))
    return image.expand(3, -1, -1).repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def coloured(mask: Tensor, least_px: int = SIDE_PX) -> Tensor:
    """A mask (H, W) in colours, (3, H', W') uint8."""
    return large(voc_palette()[mask].permute(2, 0, 1), least_px)


def overlaid(image: Tensor, mask: Tensor, names: Sequence[str]) -> Tensor:
    """The photograph (C, H, W) uint8 with the colours of its classes on it, those of number 0 left as they are, and the
    classes' names below."""
    photo, colours = large(image, 256).float(), coloured(mask, 256).float()
    light = LIGHT * (large(mask[None], 256) > 0)
    lit = (photo * (1 - light) + colours * light).round().to(torch.uint8)
    return torch.cat([lit, legend(mask.unique().tolist(), names, lit.shape[2])], 1)


def legend(numbers: Sequence[int], names: Sequence[str], width: int) -> Tensor:
    """(3, h, width) uint8: a coloured square and the name of each class, in as many lines as it takes."""
    font, palette, line = ImageFont.load_default(size=13), voc_palette(), 20
    places, x, y = [], 6, 4
    for number in numbers:
        wide = int(font.getlength(names[number])) + 30
        if x + wide > width and x > 6:
            x, y = 6, y + line
        places.append((x, y, number))
        x += wide
    sheet = Image.new("RGB", (width, y + line), "white")
    pen = ImageDraw.Draw(sheet)
    for x, y, number in places:
        pen.rectangle((x, y, x + 12, y + 12), fill=tuple(palette[number].tolist()), outline="gray")
        pen.text((x + 17, y - 2), names[number], "black", font)
    return torch.from_numpy(np.asarray(sheet).copy()).permute(2, 0, 1)


def as_palette_png(mask: Tensor) -> Image.Image:
    """(H, W) as a palette image whose numbers are the classes."""
    picture = Image.fromarray(mask.to(torch.uint8).numpy(), mode="P")
    picture.putpalette(voc_palette().flatten().tolist())
    return picture
