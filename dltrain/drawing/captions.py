"""An image with sentences below it, and where a captioner attended before each word."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.drawing.fonts import load_font
from dltrain.drawing.images import arrange, brighten, enlarge

SIDE_PX, WORD_PX, LINE_PX = 256, 144, 15  # least side of an image, of an attention map; height of a line of text
GLOW = (255, 120, 0)  # the colour of attention, orange
STRONGEST = 0.7  # its share where attention is highest


def draw_caption(image: Tensor, sentences: Sequence[str], references: Sequence[str] = (), least_px: int = SIDE_PX,
                 colour: str = "black") -> Tensor:
    """The image (C, H, W) uint8 above the sentences in a colour and the references in grey: (3, H', W') uint8."""
    photo = to_pil_image(enlarge(image, least_px))
    coloured = [(sentence or "(empty)", colour) for sentence in sentences] + [(text, "gray") for text in references]
    lines = [(line, tint, load_font(11, sentence)) for sentence, tint in coloured
             for line in wrap(sentence, photo.width)]
    sheet = Image.new("RGB", (photo.width, photo.height + LINE_PX * len(lines) + 6), "white")
    sheet.paste(photo)
    pen = ImageDraw.Draw(sheet)
    for row, (line, tint, font) in enumerate(lines):
        pen.text((2, photo.height + 2 + LINE_PX * row), line, tint, font)
    return torch.from_numpy(np.asarray(sheet).copy()).permute(2, 0, 1)


def wrap(sentence: str, width_px: int) -> list[str]:
    """The lines of a sentence, by the width of "e" or of its widest letter beyond ASCII."""
    font = load_font(11, sentence)
    widest = max(font.getlength(letter) for letter in ("e", *sentence) if letter == "e" or not letter.isascii())
    return textwrap.wrap(sentence, max(1, int(width_px / widest)))


def draw_attention(image: Tensor, words: Sequence[str], weights: Tensor) -> Tensor:
    """The image (C, H, W) uint8 once per word, under an orange glow where the attention weights (T, h, w) before it are
    high, in relation to their largest."""
    glow = torch.tensor(GLOW, dtype=torch.float32)[:, None, None]
    large, pictures = enlarge(brighten(image), WORD_PX).float(), []
    for word, weight in zip(words, weights, strict=True):
        light = F.interpolate(weight[None, None], size=large.shape[1:], mode="bilinear")[0]
        share = STRONGEST * light / light.max().clamp_min(1e-9)
        lit = (1 - share) * large + share * glow
        pictures.append(draw_caption(lit.to(torch.uint8), [word], least_px=WORD_PX))
    return arrange(pictures)
