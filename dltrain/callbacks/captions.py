"""What a captioner says: images with its sentence and the references below, on TensorBoard."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.callbacks.boxes import side_by_side
from dltrain.callbacks.pictures import Shown, add, boards

SHOWN, SIDE_PX, WORD_PX, LINE_PX = 8, 256, 144, 15


class Sentences(Shown):
    def show(self, trainer: pl.Trainer, pl_module: Any, split: str) -> None:
        said = getattr(pl_module, "said", [])
        if said and boards(trainer):
            pictures = [captioned(image, [sentence], references) for image, sentence, references in said[:SHOWN]]
            add(trainer, f"{split}/captions", side_by_side(pictures), trainer.fit_loop.epoch_loop.global_step)


def captioned(image: Tensor, sentences: list[str], references: list[str], side_px: int = SIDE_PX) -> Tensor:
    """The image (3, H, W) uint8 with what was written below it in black, and the references in grey."""
    scale = max(1, -(-side_px // max(image.shape[1:])))
    photo = to_pil_image(image.expand(3, -1, -1).repeat_interleave(scale, 1).repeat_interleave(scale, 2))
    font = ImageFont.load_default(size=12)
    letters = int(photo.width / font.getlength("e"))
    lines = [(line, "black") for sentence in sentences for line in textwrap.wrap(sentence or "(nothing)", letters)]
    lines += [(line, "gray") for sentence in references for line in textwrap.wrap(sentence, letters)]
    sheet = Image.new("RGB", (photo.width, photo.height + LINE_PX * len(lines) + 6), "white")
    sheet.paste(photo)
    pen = ImageDraw.Draw(sheet)
    for row, (line, colour) in enumerate(lines):
        pen.text((2, photo.height + 2 + LINE_PX * row), line, colour, font)
    return torch.from_numpy(np.asarray(sheet).copy()).permute(2, 0, 1)


def looked_at(image: Tensor, words: list[str], weights: Tensor) -> Tensor:
    """The image once for each word, lit where the model looked before it: weights (T, h, w)."""
    pictures = []
    for word, weight in zip(words, weights, strict=True):
        scale = max(1, -(-WORD_PX // max(image.shape[1:])))
        large = image.expand(3, -1, -1).repeat_interleave(scale, 1).repeat_interleave(scale, 2).float()
        light = torch.nn.functional.interpolate(weight[None, None], size=large.shape[1:], mode="bilinear")[0]
        lit = large * (0.25 + 0.75 * light / light.max().clamp_min(1e-9))
        pictures.append(captioned(lit.to(torch.uint8), [word], [], WORD_PX))
    return side_by_side(pictures)
