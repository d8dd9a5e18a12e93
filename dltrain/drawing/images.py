"""Enlarging images and arranging several of them in one picture. All are (C, H, W) uint8."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch.nn.functional as F
import torchvision.utils
from torch import Tensor

COLUMNS = 4
LEAST_LIGHT, LEAST_GAMMA = 0.34, 0.4  # of 1, which is white: of a picture's median pixel; of the curve that lifts it


def brighten(image: Tensor) -> Tensor:
    """For pictures of results, not of batches as the model sees them. An image (C, H, W) uint8 whose median lightness,
    the mean over the channels, is below LEAST_LIGHT is lifted to it by a gamma curve of the lightness; another one is
    returned as it is. The channels of a pixel have one factor, at most that which makes the largest of them white, so
    the hues stay."""
    values = image.float() / 255
    light = values.mean(0).clamp_min(1e-3)
    median = light.median().item()
    if median >= LEAST_LIGHT:
        return image
    gamma = max(LEAST_GAMMA, math.log(LEAST_LIGHT) / math.log(median))
    factors = (light ** (gamma - 1)).minimum(1 / values.amax(0).clamp_min(1e-3))
    return (values * factors * 255).round().clamp(0, 255).to(image.dtype)


def enlarge(image: Tensor, least_px: int) -> Tensor:
    """To (3, s H, s W): every pixel repeated s times along each side, where s is the least integer for which the longer
    side has at least `least_px` pixels."""
    scale = max(1, math.ceil(least_px / max(image.shape[-2:])))
    return image.expand(3, -1, -1).repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def make_grid(images: Iterable[Tensor], least_px: int = 48) -> Tensor:
    """Images (C, H, W) to one (3, H', W') picture in a square grid, of which the last places may be empty."""
    pictures = [enlarge(image, least_px) for image in images]
    return arrange(pictures, math.ceil(math.sqrt(len(pictures))), padding_px=2)


def arrange(pictures: Sequence[Tensor], columns: int = COLUMNS, padding_px: int = 6) -> Tensor:
    """`columns` pictures per row on white. Smaller pictures are padded to the largest height and width."""
    h, w = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
    padded = [F.pad(p, (0, w - p.shape[2], 0, h - p.shape[1]), value=255) for p in pictures]
    return torchvision.utils.make_grid(padded, nrow=columns, padding=padding_px, pad_value=255)
