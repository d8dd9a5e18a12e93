"""Boxes with labels on an image, by torchvision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from dltrain.drawing.fonts import font_for
from dltrain.drawing.images import enlarge

SIDE_PX = 256  # the longer side of the picture has at least so many pixels
COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#469990")


def draw_boxes(image: Tensor, boxes: Tensor, labels: Tensor, texts: Sequence[str] | None = None) -> Tensor:
    """image (C, H, W) uint8, boxes (N, 4) in its pixels, labels (N,) that choose the colours, texts N strings, to a
    picture (3, H', W') uint8. Small images are enlarged."""
    picture = enlarge(image.cpu(), SIDE_PX)
    if not len(boxes):
        return picture
    scaled = boxes.cpu() * (picture.shape[2] / image.shape[2])
    colours = [COLOURS[label % len(COLOURS)] for label in labels.tolist()]
    fonts = [font_for(text) for text in texts or [""] * len(boxes)]
    for font in dict.fromkeys(fonts):
        chosen = [number for number, other in enumerate(fonts) if other == font]
        shades = [colours[number] for number in chosen]
        picture = draw_bounding_boxes(picture, scaled[chosen], None if texts is None else [texts[n] for n in chosen],
                                      shades, width=2, font=font, font_size=13, label_colors="black",
                                      label_background_colors=list(shades), fill_labels=True)
    return picture
