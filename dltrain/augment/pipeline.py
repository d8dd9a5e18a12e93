"""The stage between data and model: a batch of uint8 pixels becomes a batch of normalised floats, on the device.

In training: transforms of pixels as floats in [0, 1], normalisation, transforms of normalised values, each sample with
its own draw. In evaluation: normalisation, then one or several views (views.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.augment.geometry import each
from dltrain.augment.test_time_augmentation import Views

Transform = Callable[[Any, torch.Generator], Any]  # a batch with images, in [0, 1] or normalised, and its own draws
STATISTICS_IMAGES = 50_000  # more images do not move the statistics
KINDS = ("mean_pixel", "per_pixel", "standard", "box", "imagenet", "whiten")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that torchvision's weights expect
WHITEN_AT_MOST = 3072  # values an image: a covariance of 3,072 x 3,072 doubles takes 75 MB, its eigenvectors seconds
WHITEN_EPSILON = 1e-3  # added to the eigenvalues of values in [0, 1]: directions of less variance are not blown up


class Normalize(nn.Module):
    """Pixels in [0, 1], made to suit a net by statistics of the training split.

    `mean_pixel`: less one mean per channel for all places. `per_pixel`: less one mean per channel and place (the mean
    image of He et al. 2015). `standard`: less the mean and divided by the standard deviation per channel. `box`: to
    [-1, 1]. `imagenet`: by ImageNet's mean and deviation. `whiten`: ZCA, the mean image taken off and the covariance of
    the values made the identity, but for WHITEN_EPSILON. All can be inverted. The statistics are buffers: saved with
    the weights, they travel with the run.
    """

    mean: Tensor
    std: Tensor
    whitening: Tensor
    colouring: Tensor

    def __init__(self, kind: str, channels: int, image_px: int):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"normalize must be one of {', '.join(KINDS)}, but is {kind}")
        size = channels * image_px**2
        if kind == "whiten" and size > WHITEN_AT_MOST:
            raise ValueError(f"normalize=whiten takes the covariance of all {size:,} values of an image, at most "
                             f"{WHITEN_AT_MOST:,}; normalize=standard suits large images")
        if kind == "imagenet" and channels != 3:
            raise ValueError(f"normalize=imagenet needs 3 channels, but has {channels}")
        self.kind = kind
        side = image_px if kind in ("per_pixel", "whiten") else 1
        self.register_buffer("mean", torch.full((1, channels, side, side), 0.5 if kind == "box" else 0.0))
        self.register_buffer("std", torch.full((1, channels, 1, 1), 0.5 if kind == "box" else 1.0))
        if kind == "imagenet":
            self.mean.copy_(torch.tensor(IMAGENET[0]).view(1, 3, 1, 1))
            self.std.copy_(torch.tensor(IMAGENET[1]).view(1, 3, 1, 1))
        if kind == "whiten":
            self.register_buffer("whitening", torch.eye(size))
            self.register_buffer("colouring", torch.eye(size))  # its inverse

    def fit(self, pixels: Tensor) -> None:
        """Takes the statistics from (N, C, H, W) uint8, in double precision, a thousand images at a time."""
        if self.kind in ("box", "imagenet"):
            return
        chunks = pixels.split(1000)
        places = (0,) if self.kind in ("per_pixel", "whiten") else (0, 2, 3)
        count = len(pixels) * (1 if len(places) == 1 else pixels[0, 0].numel())
        mean = sum(chunk.double().sum(places, keepdim=True) for chunk in chunks) / (255 * count)
        self.mean.copy_(mean)
        if self.kind == "standard":
            square = sum(chunk.double().square().sum(places, keepdim=True) for chunk in chunks)
            self.std.copy_((square / (255**2 * count) - mean.square()).sqrt().clamp_min(1e-8))
        if self.kind == "whiten":
            centred = ((chunk.double() / 255 - mean).flatten(1) for chunk in chunks)
            values, vectors = torch.linalg.eigh(sum(flat.T @ flat for flat in centred) / count)
            scale = (values.clamp_min(0) + WHITEN_EPSILON).sqrt()
            self.whitening.copy_(vectors / scale @ vectors.T)
            self.colouring.copy_(vectors * scale @ vectors.T)

    def forward(self, images: Tensor) -> Tensor:
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        out = (values - self.mean) / self.std
        return (out.flatten(1) @ self.whitening).view_as(out) if self.kind == "whiten" else out

    def invert(self, images: Tensor) -> Tensor:
        """Back to uint8 pixels, for people to look at."""
        if self.kind == "whiten":
            images = (images.flatten(1) @ self.colouring).view_as(images)
        return ((images * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)


class Augment(nn.Module):
    """See the module. `channels` and `image_px` are the data's; the transforms are called in the order given.

    A transform may have `check(channels, image_px)`, which raises ValueError before the first step, and
    `fit(pixels)`, which takes statistics of the training split; those that are modules save their buffers with the run.
    """

    def __init__(self, normalize: str, channels: int, image_px: int, on_pixels: Sequence[Transform] = (),
                 on_normalized: Sequence[Transform] = (), test: str = "single", test_padding_px: int = 0,
                 test_crop_px: int | None = None, test_scales: Sequence[float] = (1.0,),
                 test_short_px: int | None = None):
        super().__init__()
        self.normalize = Normalize(normalize, channels, image_px)
        self.test_views = Views(test, test_padding_px, test_crop_px, test_scales, test_short_px)
        self.test_views.check(image_px)
        self.on_pixels, self.on_normalized = list(on_pixels), list(on_normalized)
        self.with_buffers = nn.ModuleList(stage for _, stage in self.stages() if isinstance(stage, nn.Module))
        for name, stage in self.stages():
            if hasattr(stage, "check"):
                try:
                    stage.check(channels, image_px)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None

    def stages(self) -> list[tuple[str, Any]]:
        """Every transform with its place in the config."""
        return [(f"{key}.{place} ({type(stage).__name__})", stage) for key, stages in (
            ("on_pixels", self.on_pixels), ("on_normalized", self.on_normalized)) for place, stage in enumerate(stages)]

    def fit(self, pixels: Tensor) -> None:
        """Every statistic, from (N, C, H, W) uint8 of the training split."""
        self.normalize.fit(pixels)
        for _, stage in self.stages():
            if hasattr(stage, "fit"):
                stage.fit(pixels)

    def forward(self, batch: Any, draws: torch.Generator | None = None) -> Any:
        """Any batch with images; `draws` is its own generator on the CPU, without one nothing random happens."""
        if draws is not None and self.on_pixels:
            batch = batch._replace(images=each(lambda pixels: pixels.float() / 255, batch.images))
            for transform in self.on_pixels:
                batch = transform(batch, draws)
        batch = batch._replace(images=each(self.normalize, batch.images))
        if draws is not None:
            for transform in self.on_normalized:
                batch = transform(batch, draws)
        return batch
