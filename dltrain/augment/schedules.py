"""Transforms that change over the epochs of a run: the alternating flip, and images that grow.

Both are functions of the seed, the epoch and the sample, so a resumed run and several processes see the same images.

Shapes: B batch, C channels, H, W height and width of an image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.augment.geometry import GeometricTransform, affine_matrices
from dltrain.augment.pipeline import BatchT, Transform
from dltrain.batches import seed_of

HASH_FACTOR = 0x9E3779B97F4A7C15 - 2**64  # the odd number nearest to 2^64 / the golden ratio, as an int64


class AlternatingFlip(Transform):
    """Swaps left and right of an image in every second epoch: of a random half of the images in epochs 0, 2, 4, ..., of
    the other half in epochs 1, 3, 5, ... Any two epochs in a row show an image both ways, where a random flip repeats
    itself half of the time (K. Jordan, 2024, arXiv 2404.00498).

    The half is a function of the seed and the pixels, so equal images are flipped alike. It must be the first of
    on_pixels: a crop or other colours would make another image."""

    must_be_first = True

    def __init__(self) -> None:
        self.seed, self.epoch = 0, 0

    def begin(self, seed: int, epoch: int, total_epochs: int) -> None:
        self.seed, self.epoch = seed, epoch

    def __call__(self, batch: BatchT, rng: torch.Generator) -> BatchT:
        """Nothing waits for the device: the decisions stay on it."""
        fields, images = batch._asdict(), batch.images
        if "targets" not in fields:
            flips = self.decide(torch.as_tensor(images))
            return batch._replace(**{name: flip_some(fields[name], flips) for name in ("images", "masks")
                                     if name in fields})
        flipped, targets = [], []
        for image, target in zip(images, fields["targets"], strict=True):
            flip = self.decide(image[None])
            flipped.append(flip_some(image[None], flip)[0])
            boxes = target["boxes"]
            targets.append({**target, "boxes": torch.where(flip, mirror(boxes, image.shape[-1]), boxes)})
        return batch._replace(images=flipped, targets=targets)

    def decide(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B,) bool: which are flipped in this epoch."""
        values = (images * 255).round().to(torch.int64).flatten(1)
        weights = torch.arange(values.shape[1], device=images.device) * HASH_FACTOR + seed_of("flip", self.seed)
        hashes = (values * weights).sum(1) * HASH_FACTOR  # modulo 2^64
        return ((hashes >> 40) + self.epoch) % 2 == 1


def flip_some(images: Tensor, flips: Tensor) -> Tensor:
    """Swaps left and right of those of (B, ..., W) where `flips` (B,) is true."""
    return torch.where(flips.view(-1, *[1] * (images.dim() - 1)), images.flip(-1), images)


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes (N, 4) in the mirror image of one of this width."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


class GrowingSize(GeometricTransform):
    """Scales images down in the first epochs, which makes their steps cheaper: to `first_px` in the first epoch, then
    along a line to their own size, `image_px` of the data, at the fraction `until` of the epochs. Sizes are multiples
    of `multiple_px`. The model must take images of any size. (M. Tan, Q. Le, 2021, arXiv 2104.00298, section 4.)"""

    def __init__(self, first_px: int, until: float = 0.75, multiple_px: int = 4):
        if first_px < 1 or multiple_px < 1 or not 0 < until <= 1:
            raise ValueError("first_px and multiple_px must be >= 1 and until in (0, 1], but they are "
                             f"{first_px}, {multiple_px} and {until}")
        self.first_px, self.until, self.multiple_px = first_px, until, multiple_px
        self.image_px, self.factor = first_px, 1.0

    def check(self, channels: int, image_px: int) -> None:
        if self.first_px > image_px:
            raise ValueError(f"first_px must be at most the image's {image_px}, but is {self.first_px}")
        self.image_px = image_px

    def begin(self, seed: int, epoch: int, total_epochs: int) -> None:
        self.factor = self.side(epoch, total_epochs) / self.image_px

    def side(self, epoch: int, total_epochs: int) -> int:
        """The side in pixels of an image of side `image_px` in an epoch."""
        done = min(1.0, epoch / (self.until * total_epochs))
        if done == 1:
            return self.image_px
        px = self.first_px + done * (self.image_px - self.first_px)
        return min(self.image_px, max(1, round(px / self.multiple_px)) * self.multiple_px)

    def sample_parameters(self, sizes: Tensor, rng: torch.Generator) -> Tensor:
        """(B, 2): the new height and width of each image."""
        return (sizes * self.factor).round().clamp_min(1)

    def transform_images(self, images: Tensor, parameters: Tensor, nearest: bool = False) -> Tensor:
        height, width = (max(1, round(side * self.factor)) for side in images.shape[2:])
        if (height, width) == tuple(images.shape[2:]):
            return images
        if nearest:
            return F.interpolate(images, (height, width), mode="nearest-exact")
        return F.interpolate(images, (height, width), mode="bilinear", antialias=True)

    def make_matrices(self, sizes: Tensor, parameters: Tensor) -> Tensor:
        scale = parameters / sizes
        return affine_matrices(scale[:, 1], 0.0, 0.0, 0.0, scale[:, 0], 0.0)
