"""The augmentation pipeline: turns a batch of uint8 pixels into normalised floats, on the device of the model.

Training: random transforms of pixels in [0, 1], then normalisation, then random transforms of normalised values; each
sample gets its own random parameters. Evaluation: normalisation only, then one or several views of each image
(test_time_augmentation.py).

Shapes: B batch, N images of the training split, C channels, H, W height and width in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from dltrain.augment.statistics import PixelSums
from dltrain.augment.test_time_augmentation import Views
from dltrain.batches import Batch

STATISTICS_IMAGES = 50_000  # at most so many images are read for the statistics; more hardly change them
NORMALIZATIONS = ("mean_pixel", "per_pixel", "standard", "box", "imagenet", "whiten")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation for torchvision's weights
WHITEN_MAX_VALUES = 3072  # of an image: a covariance of 3,072 x 3,072 doubles takes 75 MB, its eigenvectors seconds
WHITEN_EPSILON = 1e-3  # added to the eigenvalues (pixels in [0, 1]) so that low-variance directions are not amplified

Images = Tensor | list[Tensor]  # (B, C, H, W), or B images (C, Hi, Wi) of different sizes


class ImageBatch(Batch, Protocol):
    """Any NamedTuple of batches.py that has images."""

    @property
    def images(self) -> Images: ...

    @property
    def _replace(self) -> Callable[..., Self]: ...


BatchT = TypeVar("BatchT", bound=ImageBatch)


class BatchTransform(Protocol):
    """What on_pixels and on_normalized accept: any callable from a batch and a CPU generator to a changed batch."""

    def __call__(self, batch: BatchT, rng: torch.Generator, /) -> BatchT: ...


class Transform(ABC):
    """Base class of the transforms here. A transform from outside needs it only for `check` and `fit`; the buffers of
    a transform that is also an nn.Module are saved with the run."""

    num_classes: int | None = None  # of the labels that it mixes
    sums: ClassVar[frozenset[str]] = frozenset()  # the kinds of PixelSums that it needs
    must_be_first = False  # of on_pixels

    def check(self, channels: int, image_px: int) -> None:  # noqa: B027  # optional for a subclass
        """Raises ValueError if images (C, image_px, image_px) do not fit. Called once, before the first step."""

    def fit_sums(self, sums: PixelSums) -> None:  # noqa: B027  # optional for a subclass
        """Computes statistics from sums over the images of the training split. Called once, before the first step."""

    def fit(self, pixels: Tensor) -> None:  # noqa: B027  # optional for a subclass
        """Computes statistics of (N, C, H, W) uint8 images of the training split, all in memory. Called once, before
        the first step."""

    def begin(self, seed: int, epoch: int, total_epochs: int) -> None:  # noqa: B027  # optional for a subclass
        """Called before each training step, with the seed of the run, the epoch from 0 on, and how many there are."""

    @abstractmethod
    def __call__(self, batch: BatchT, rng: torch.Generator) -> BatchT:
        """Transforms each sample with its own random parameters, all taken from `rng`, a generator on the CPU."""


class Normalize(nn.Module):
    """Normalises pixels by statistics of the training split, or by constants.

    `mean_pixel`: subtracts the mean of each channel. `per_pixel`: subtracts the mean image, one mean per channel and
    position (He et al. 2015). `standard`: subtracts the mean and divides by the standard deviation of each channel.
    `box`: maps [0, 1] to [-1, 1]. `imagenet`: uses ImageNet's mean and standard deviation. `whiten`: ZCA, subtracts the
    mean image and makes the covariance of all values the identity, up to WHITEN_EPSILON. `invert` undoes each of them.
    The statistics are buffers, so they are saved with the weights.
    """

    mean: Tensor
    std: Tensor
    whitening: Tensor
    colouring: Tensor

    def __init__(self, kind: str, channels: int, image_px: int):
        super().__init__()
        if kind not in NORMALIZATIONS:
            raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, but is {kind}")
        num_values = channels * image_px**2
        if kind == "whiten" and num_values > WHITEN_MAX_VALUES:
            raise ValueError(f"normalize=whiten needs the covariance of all {num_values:,} values of an image, but can "
                             f"handle at most {WHITEN_MAX_VALUES:,}; use normalize=standard for large images")
        if kind == "imagenet" and channels != 3:
            raise ValueError(f"normalize=imagenet needs images with 3 channels, but they have {channels}")
        self.kind = kind
        self.sums = {"mean_pixel": {"histograms"}, "standard": {"histograms"}, "per_pixel": {"image"}}.get(kind, set())
        side = image_px if kind in ("per_pixel", "whiten") else 1
        self.register_buffer("mean", torch.full((1, channels, side, side), 0.5 if kind == "box" else 0.0))
        self.register_buffer("std", torch.full((1, channels, 1, 1), 0.5 if kind == "box" else 1.0))
        if kind == "imagenet":
            self.mean.copy_(torch.tensor(IMAGENET[0]).view(1, 3, 1, 1))
            self.std.copy_(torch.tensor(IMAGENET[1]).view(1, 3, 1, 1))
        if kind == "whiten":
            self.register_buffer("whitening", torch.eye(num_values))
            self.register_buffer("colouring", torch.eye(num_values))  # the inverse of `whitening`

    def fit(self, pixels: Tensor) -> None:
        """Computes the statistics of (N, C, H, W) uint8 images."""
        sums = PixelSums({"image"} if self.kind == "whiten" else self.sums)
        sums.add(pixels)
        self.fit_sums(sums)
        if self.kind == "whiten":
            mean = sums.mean_image()
            self.mean.copy_(mean)
            centred = ((chunk.double() / 255 - mean).flatten(1) for chunk in pixels.split(1000))
            values, vectors = torch.linalg.eigh(sum(flat.T @ flat for flat in centred) / len(pixels))
            scale = (values.clamp_min(0) + WHITEN_EPSILON).sqrt()
            self.whitening.copy_(vectors / scale @ vectors.T)
            self.colouring.copy_(vectors * scale @ vectors.T)

    def fit_sums(self, sums: PixelSums) -> None:
        """Computes the statistics of all kinds but `whiten`, which needs the images themselves."""
        if self.kind == "per_pixel":
            self.mean.copy_(sums.mean_image())
        if self.kind in ("mean_pixel", "standard"):
            mean, std = sums.mean_and_std()
            self.mean.copy_(mean.view(1, -1, 1, 1))
            if self.kind == "standard":
                self.std.copy_(std.clamp_min(1e-8).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 in [0, 255] or float in [0, 1], to normalised floats of the same shape."""
        values = to_unit_range(images) if images.dtype == torch.uint8 else images
        out = (values - self.mean).div_(self.std)
        return (out.flatten(1) @ self.whitening).view_as(out) if self.kind == "whiten" else out

    def invert(self, images: Tensor) -> Tensor:
        """Normalised floats (B, C, H, W) back to uint8 pixels in [0, 255]."""
        if self.kind == "whiten":
            images = (images.flatten(1) @ self.colouring).view_as(images)
        return ((images * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)


class Augment(nn.Module):
    """The whole stage. `channels` and `image_px` describe the data's images; `on_pixels` and `on_normalized` are called
    in the order of the config. The keys are explained in configs/augment/none.yaml."""

    def __init__(self, normalize: str, channels: int, image_px: int, on_pixels: Sequence[BatchTransform] = (),
                 on_normalized: Sequence[BatchTransform] = (), test: str = "single", test_padding_px: int = 0,
                 test_crop_px: int | None = None, test_scales: Sequence[float] = (1.0,),
                 test_short_px: int | None = None):
        super().__init__()
        self.normalize = Normalize(normalize, channels, image_px)
        self.test_views = Views(test, test_padding_px, test_crop_px, test_scales, test_short_px)
        self.test_views.check(image_px)
        self.on_pixels, self.on_normalized = list(on_pixels), list(on_normalized)
        named = [(f"{key}.{index} ({type(transform).__name__})", transform) for key, transforms in (
            ("on_pixels", self.on_pixels), ("on_normalized", self.on_normalized))
            for index, transform in enumerate(transforms)]
        self.transform_modules = nn.ModuleList(transform for _, transform in named if isinstance(transform, nn.Module))
        self.transforms = {name: transform for name, transform in named if isinstance(transform, Transform)}
        self.scheduled = [one for one in self.transforms.values() if type(one).begin is not Transform.begin]
        for name, transform in self.transforms.items():
            try:
                if transform.must_be_first and transform not in self.on_pixels[:1]:
                    raise ValueError("must be the first of on_pixels")
                transform.check(channels, image_px)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    def fit(self, batches: Tensor | Iterable[Tensor]) -> None:
        """Computes all statistics from (N, C, H, W) uint8 images of the training split, or from such batches, which are
        read once, if there is anything to compute, and kept only if something needs all of them at once."""
        transforms = self.transforms.values()
        whole = [transform.fit for transform in transforms if type(transform).fit is not Transform.fit]
        whole += [self.normalize.fit] if self.normalize.kind == "whiten" else []
        sums = PixelSums({*self.normalize.sums}.union(*(transform.sums for transform in transforms)))
        kept = []
        for pixels in ([batches] if type(batches) is Tensor else batches) if sums.kinds or whole else ():
            sums.add(pixels)
            kept += [pixels] if whole else []
        self.normalize.fit_sums(sums)
        for transform in transforms:
            transform.fit_sums(sums)
        for fit in whole:
            fit(torch.cat(kept))

    def begin(self, seed: int, epoch: int, total_epochs: int) -> None:
        """Tells the transforms the epoch of the coming training step."""
        for transform in self.scheduled:
            transform.begin(seed, epoch, total_epochs)

    def forward(self, batch: BatchT, rng: torch.Generator | None = None) -> BatchT:
        """With `rng`, a generator on the CPU: random transforms and normalisation, as in training. Without it, as in
        evaluation: normalisation only."""
        if rng is not None and self.on_pixels:
            batch = batch._replace(images=map_images(to_unit_range, batch.images))
            for transform in self.on_pixels:
                batch = transform(batch, rng)
        batch = batch._replace(images=map_images(self.normalize, batch.images))
        if rng is not None:
            for transform in self.on_normalized:
                batch = transform(batch, rng)
        return batch


def map_images(function: Callable[..., Tensor], images: Images, *parameters: Tensor, together: bool = True) -> Images:
    """Calls function((B, C, H, W), *parameters), where each tensor of parameters has one row per sample. Images in a
    list go through it one by one; on a GPU those of one size `together`, unless the function samples random numbers.
    On a CPU a large batch leaves the cache: four images of 320 px took 1.7 times as long."""
    if isinstance(images, Tensor):
        return function(images, *parameters)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape if together and image.is_cuda else (index,), []).append(index)
    changed: dict[int, Tensor] = {}
    for indices in groups.values():
        rows = parameters if len(groups) == 1 else [torch.stack([row[i] for i in indices]) for row in parameters]
        changed |= dict(zip(indices, function(torch.stack([images[i] for i in indices]), *rows), strict=True))
    return [changed[index] for index in range(len(images))]


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] to float in [0, 1]."""
    return pixels.float().div_(255)  # faster than with another type for the result, and the same bits
