"""Test-time regimes: several views of an image, one answer. They must match the training: crops for a net trained on
crops, several sizes for one trained on several.

`single`: the image. `flip`: it and its mirror. `ten_crop`: the four corners and the centre, and their mirrors
(Krizhevsky et al. 2012, section 4.1). `scales_mean`, `scales_max`: the whole image at several sizes through a fully
convolutional net, the mean or the maximum over them (He et al. 2015, section 3.4: average; the tutorial: max).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("single", "flip", "ten_crop", "scales_mean", "scales_max")
Model = Callable[[Tensor], Tensor]


class Views:
    """`short_px`: the image's side is first scaled to it, None to leave it. `padding_px`: zeros added to each side
    before the ten crops, as in training. `crop_px`: side of the crop, central but for the ten, None for the image's
    own. `scales`: the sizes, as shares of the image's side; nothing is cropped then."""

    def __init__(self, kind: str = "single", padding_px: int = 0, crop_px: int | None = None,
                 scales: Sequence[float] = (1.0,), short_px: int | None = None):
        if kind not in KINDS:
            raise ValueError(f"test must be one of {', '.join(KINDS)}, but is {kind}")
        if padding_px < 0 or (crop_px is not None and crop_px < 1) or not scales or min(scales) <= 0:
            raise ValueError("test_padding_px must be >= 0, test_crop_px >= 1 or null, test_scales above 0, but are "
                             f"{padding_px}, {crop_px}, {list(scales)}")
        self.kind, self.padding_px, self.crop_px, self.scales = kind, padding_px, crop_px, tuple(scales)
        self.short_px = short_px

    def check(self, image_px: int) -> None:
        image_px = self.short_px or image_px
        side = image_px + 2 * self.padding_px * (self.kind == "ten_crop")
        if self.crop_px is not None and self.crop_px > side:
            padded = "padded " if self.kind == "ten_crop" else ""
            raise ValueError(f"test_crop_px must be at most the {padded}image's {side}, but is {self.crop_px}")
        if self.kind == "ten_crop" and side == (self.crop_px or image_px):
            raise ValueError("test=ten_crop would take the same crop five times; set test_padding_px above 0, or "
                             f"test_crop_px below {image_px}")

    def __call__(self, model: Model, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K) for one view, to log-probabilities for several: the logarithm
        of the mean, or of the normalised maximum, of the views' softmax."""
        if self.short_px is not None:
            images = scaled(images, self.short_px)
        if self.kind == "single":
            return model(centre(images, self.crop_px))
        chances = torch.stack([model(view).float().softmax(1) for view in self.views(images)])
        if self.kind == "scales_max":
            best = chances.amax(0)
            return (best / best.sum(1, keepdim=True)).log()
        return chances.mean(0).log()

    def views(self, images: Tensor) -> Iterator[Tensor]:
        if self.kind.startswith("scales"):
            side = images.shape[-1]
            for scale in self.scales:
                yield scaled(images, max(1, round(scale * side)))
            return
        flip = self.kind == "flip"
        for view in [centre(images, self.crop_px)] if flip else corners(images, self.padding_px, self.crop_px):
            yield view
            yield view.flip(3)


def scaled(images: Tensor, px: int) -> Tensor:
    """Square images to a side of `px`, smoothed before they are made smaller."""
    return images if images.shape[3] == px else F.interpolate(images, size=(px, px), mode="bilinear", antialias=True)


def centre(images: Tensor, crop_px: int | None) -> Tensor:
    return images if crop_px is None else corners(images, 0, crop_px)[4]


def corners(images: Tensor, padding_px: int, crop_px: int | None) -> list[Tensor]:
    """Upper left, upper right, lower left, lower right, centre."""
    h, w = (crop_px or side for side in images.shape[2:])
    padded = F.pad(images, (padding_px,) * 4)
    down, right = padded.shape[2] - h, padded.shape[3] - w
    places = [(0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))]
    return [padded[:, :, y : y + h, x : x + w] for y, x in places]
