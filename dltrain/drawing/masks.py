"""The class of every pixel as colours, on the image or alone, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from dltrain.batches import IGNORED_PIXEL
from dltrain.drawing.fonts import load_font
from dltrain.drawing.images import arrange, brighten, enlarge

SIDE_PX, OVERLAY_PX = 192, 256  # least longer side of an image in a comparison, and of an overlay
ALPHA = 0.55  # share of the class's colour in an overlay
LEGEND_LINE_PX, SQUARE_PX = 20, 12


def voc_palette() -> Tensor:
    """(256, 3) uint8: PASCAL VOC's colours. Bits 0, 3, 6 of a class number are the high bits of red, bits 1, 4, 7 of
    green, bits 2, 5 of blue. 0 is black, IGNORED_PIXEL nearly white."""
    numbers = torch.arange(256)
    colours = torch.zeros(256, 3, dtype=torch.long)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * place + channel)) & 1) << (7 - place)
    return colours.to(torch.uint8)


def colour_mask(mask: Tensor, least_px: int = SIDE_PX) -> Tensor:
    """A mask (H, W) of class numbers as a picture (3, H', W') uint8."""
    return enlarge(voc_palette()[mask].permute(2, 0, 1), least_px)


def draw_mask(image: Tensor, mask: Tensor, names: Sequence[str]) -> Tensor:
    """The image (C, H, W) uint8, overlaid with the colours of the classes in `mask` (H, W), and a legend below. Class 0
    is left uncoloured."""
    photo, large_mask = enlarge(brighten(image), OVERLAY_PX), enlarge(mask[None], OVERLAY_PX)[0]
    classes = [number for number in mask.unique().tolist() if number > 0]
    if classes:
        palette = voc_palette()
        regions = torch.stack([large_mask == number for number in classes])
        photo = draw_segmentation_masks(photo, regions, ALPHA, [tuple(palette[n].tolist()) for n in classes])
    return torch.cat([photo, draw_legend(mask.unique().tolist(), names, photo.shape[2])], 1)


def compare_masks(samples: Sequence[tuple[Tensor, Tensor, Tensor]], names: Sequence[str]) -> Tensor:
    """Samples of (image, true mask, predicted mask), two samples per row, with a legend below. Ignored pixels are white
    in both masks."""
    pictures: list[Tensor] = []
    for image, truth, predicted in samples:
        scored = predicted.where(truth != IGNORED_PIXEL, IGNORED_PIXEL)
        pictures += [enlarge(brighten(image), SIDE_PX), colour_mask(truth), colour_mask(scored)]
    sheet = arrange(pictures, columns=6)
    present = torch.cat([torch.stack(masks).flatten() for _, *masks in samples]).unique().tolist()
    classes = [number for number in present if number != IGNORED_PIXEL]
    return torch.cat([sheet, draw_legend(classes, names, sheet.shape[2])], 1)


def draw_legend(classes: Sequence[int], names: Sequence[str], width: int) -> Tensor:
    """(3, h, width) uint8: a coloured square and the name of each class, on as many lines as needed."""
    palette = voc_palette()
    places, x, y = [], 6, 4
    for number in classes:
        length = int(load_font(12, names[number]).getlength(names[number])) + 30
        if x + length > width and x > 6:
            x, y = 6, y + LEGEND_LINE_PX
        places.append((x, y, number))
        x += length
    sheet = Image.new("RGB", (width, y + LEGEND_LINE_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for x, y, number in places:
        pen.rectangle((x, y, x + SQUARE_PX, y + SQUARE_PX), fill=tuple(palette[number].tolist()), outline="gray")
        pen.text((x + SQUARE_PX + 5, y - 2), names[number], "black", load_font(12, names[number]))
    return torch.from_numpy(np.asarray(sheet).copy()).permute(2, 0, 1)


def palette_image(mask: Tensor) -> Image.Image:
    """(H, W) as a palette image whose pixel values are the class numbers."""
    picture = Image.fromarray(mask.to(torch.uint8).numpy(), mode="P")
    picture.putpalette(voc_palette().flatten().tolist())
    return picture
