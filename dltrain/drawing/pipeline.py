"""A sheet of pictures: one row per transform, the original first, then its random versions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.drawing.fonts import load_font

SIDE_PX, LABEL_PX, GAP_PX, TOP_PX = 72, 190, 6, 26


def draw_versions(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Image.Image:
    """rows of (name, 1 + N images (C, H, W) uint8), the original first. Small images are enlarged with the
    nearest-neighbour interpolation."""
    font, columns = load_font(13), len(rows[0][1])
    width = LABEL_PX + columns * (SIDE_PX + GAP_PX) + 2 * GAP_PX
    sheet = Image.new("RGB", (width, TOP_PX + len(rows) * (SIDE_PX + GAP_PX)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((LABEL_PX + SIDE_PX / 2, TOP_PX / 2), "original", "black", font, anchor="mm")
    versions = f"{columns - 1} random versions"
    pen.text((LABEL_PX + SIDE_PX + 3 * GAP_PX, TOP_PX / 2), versions, "black", font, anchor="lm")
    for number, (label, images) in enumerate(rows):
        y = TOP_PX + number * (SIDE_PX + GAP_PX)
        pen.text((LABEL_PX - 10, y + SIDE_PX / 2), label, "black", font, anchor="rm")
        for column, image in enumerate(images):
            picture = to_pil_image(image).convert("RGB")
            method = Image.Resampling.NEAREST if picture.width < SIDE_PX else Image.Resampling.BILINEAR
            x = LABEL_PX + column * (SIDE_PX + GAP_PX) + (math.ceil(GAP_PX * 1.5) if column else 0)
            sheet.paste(ImageOps.pad(picture, (SIDE_PX, SIDE_PX), method, "white"), (x, y))
    return sheet
