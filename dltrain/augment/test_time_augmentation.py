"""Test-time augmentation: the predictions for several views of an image are combined into one. The views should match
the training: crops for a net trained on crops, several sizes for a net trained on several sizes.

`single`: the image. `flip`: the image and its mirror image. `ten_crop`: the four corners, the centre, and their mirror
images (Krizhevsky et al. 2012, section 4.1). `scales_mean`, `scales_max`: the whole image at several sizes, through a
fully convolutional net; the mean or the maximum over the sizes (He et al. 2015, section 3.4: mean; Shakhnarovich 2016:
maximum).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import center_crop, five_crop, hflip, resize

KINDS = ("single", "flip", "ten_crop", "scales_mean", "scales_max")
Model = Callable[[Tensor], Tensor]


class Views:
    """The views of each image that are evaluated, and how their probabilities are combined.

    `short_px`: side to which the square image is resized first, None for no resizing. `padding_px`: zeros added to each
    side before the ten crops, as in training. `crop_px`: side of the crops, None for the whole image; `ten_crop` takes
    the corners, the centre and their mirror images, the other kinds the centre alone. `scales`: sizes as fractions of
    the image's side; these views are not cropped."""

    def __init__(self, kind: str = "single", padding_px: int = 0, crop_px: int | None = None,
                 scales: Sequence[float] = (1.0,), short_px: int | None = None):
        if kind not in KINDS:
            raise ValueError(f"test must be one of {', '.join(KINDS)}, but is {kind}")
        if padding_px < 0 or (crop_px is not None and crop_px < 1) or not scales or min(scales) <= 0:
            raise ValueError("test_padding_px must be >= 0, test_crop_px >= 1 or null and test_scales a list of "
                             f"numbers > 0, but they are {padding_px}, {crop_px} and {list(scales)}")
        self.kind, self.padding_px, self.crop_px, self.scales = kind, padding_px, crop_px, tuple(scales)
        self.short_px = short_px

    def check(self, image_px: int) -> None:
        """Raises ValueError if images of side `image_px` are too small for the crops, or all crops would be equal."""
        image_px = self.short_px or image_px
        side = image_px + 2 * self.padding_px * (self.kind == "ten_crop")
        if self.crop_px is not None and self.crop_px > side:
            padded = "padded " if self.kind == "ten_crop" else ""
            raise ValueError(f"test_crop_px must be at most the {padded}image's {side}, but is {self.crop_px}")
        if self.kind == "ten_crop" and side == (self.crop_px or image_px):
            raise ValueError("test=ten_crop would take the same crop five times; set test_padding_px above 0, or "
                             f"test_crop_px below {image_px}")

    def __call__(self, model: Model, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to the model's logits (B, K) for one view. For several views, returns
        log-probabilities: the logarithm of the mean of the views' softmax, or of their maximum, normalised to sum 1."""
        if self.short_px is not None:
            images = resize(images, [self.short_px, self.short_px])
        if self.kind == "single":
            return model(crop_centre(images, self.crop_px))
        probabilities = torch.stack([model(view).float().softmax(1) for view in self.views(images)])
        if self.kind == "scales_max":
            best = probabilities.amax(0)
            return (best / best.sum(1, keepdim=True)).log()
        return probabilities.mean(0).log()

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Yields the views of (B, C, H, W), each (B, C, H', W')."""
        if self.kind.startswith("scales"):
            side = images.shape[-1]
            for scale in self.scales:
                yield resize(images, [max(1, round(scale * side))] * 2)
            return
        crops = [crop_centre(images, self.crop_px)]
        if self.kind == "ten_crop":
            padded = F.pad(images, (self.padding_px,) * 4)
            crops = list(five_crop(padded, [self.crop_px or side for side in images.shape[2:]]))
        for crop in crops:
            yield crop
            yield hflip(crop)  # torchvision's ten_crop flips first: its two centres differ by 1 px for an odd margin


def crop_centre(images: Tensor, crop_px: int | None) -> Tensor:
    return images if crop_px is None else center_crop(images, [crop_px, crop_px])
