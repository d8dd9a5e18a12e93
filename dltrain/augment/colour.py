"""Transforms of colour, blur and noise, for pixels in [0, 1]. Each sample has its own random parameters.

Brightness, contrast, saturation and hue are defined as in torchvision's `adjust_*`, here with one factor per sample.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.augment.geometry import sample_uniform, to_device
from dltrain.augment.pipeline import BatchT, Transform, map_images
from dltrain.augment.statistics import PixelSums

LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue: ITU-R BT.601, rounded as in torchvision


class ColorJitter(Transform):
    """Changes brightness, contrast, saturation and hue, in this order (torchvision shuffles the order). The factors are
    uniform in [max(0, 1 - x), 1 + x] for the given x >= 0; the shift of the hue is uniform in [-hue, hue]
    of the colour circle, for a `hue` in [0, 0.5]."""

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0):
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if value < 0:
                raise ValueError(f"{name} must be >= 0, but is {value}")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue must be in [0, 0.5], but is {hue}")
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def check(self, channels: int, image_px: int) -> None:
        if channels == 1 and (self.hue or self.saturation):
            raise ValueError("hue and saturation must be 0 for grey images")

    def __call__(self, batch: BatchT, rng: torch.Generator) -> BatchT:
        images = batch.images
        for adjust, width in ((adjust_brightness, self.brightness), (adjust_contrast, self.contrast),
                              (adjust_saturation, self.saturation)):
            factors = sample_uniform(max(0.0, 1 - width), 1 + width, batch.size, rng)
            if width:
                images = map_images(adjust, images, to_device(factors, images)[:, None, None, None])
        shifts = sample_uniform(-self.hue, self.hue, batch.size, rng)
        if self.hue:
            images = map_images(adjust_hue, images, to_device(shifts, images)[:, None, None])
        return batch._replace(images=images)


def to_grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 1, H, W); grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    weights = to_device(torch.tensor(LUMA, dtype=images.dtype), images)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = to_grey(images).mean((1, 2, 3), keepdim=True)
    return (images - mean).mul_(factor).add_(mean).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    grey = to_grey(images)
    return (images - grey).mul_(factor).add_(grey).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Moves the hue of (B, 3, H, W) by `shift` (B, 1, 1) of the colour circle, through HSV; value and chroma stay."""
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    divisor = (value - low).clamp_min(1e-12)
    sector = torch.where(value == red, (green - blue) / divisor,
                         torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor))
    hue = 6 * ((sector / 6 + shift) % 1)
    chroma = value - low
    channels = []
    for n in (5.0, 3.0, 1.0):  # HSV to RGB: f(n) = value - chroma * max(0, min(k, 4 - k, 1)) with k = (n + hue) mod 6
        k = (n + hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


class Lighting(nn.Module, Transform):
    """PCA colour noise: adds one colour to all pixels of an image, the sum of the principal components of the training
    pixels' colours in [0, 1], each times its eigenvalue, the variance along it, and a normal random number with
    standard deviation `std` (Krizhevsky et al. 2012, section 4.1: 0.1)."""

    axes: Tensor
    sums = frozenset({"histograms", "products"})

    def __init__(self, std: float = 0.1):
        super().__init__()
        if std < 0:
            raise ValueError(f"std must be >= 0, but is {std}")
        self.std = std
        self.register_buffer("axes", torch.zeros(3, 3))  # column k: eigenvector k times its eigenvalue

    def check(self, channels: int, image_px: int) -> None:
        if channels != 3:
            raise ValueError(f"Lighting needs images with 3 channels, but they have {channels}")

    def fit_sums(self, sums: PixelSums) -> None:
        values, vectors = torch.linalg.eigh(sums.covariance())
        self.axes.copy_(vectors * values.clamp_min(0))

    def forward(self, batch: BatchT, rng: torch.Generator) -> BatchT:
        weights = to_device(self.std * torch.randn(batch.size, 3, generator=rng), batch.images)
        return batch._replace(images=map_images(add_and_clip, batch.images, (weights @ self.axes.T)[:, :, None, None]))


def add_and_clip(images: Tensor, noise: Tensor) -> Tensor:
    return (images + noise).clamp_(0, 1)


class GaussianBlur(Transform):
    """Blurs with a Gaussian kernel of `kernel_px` (odd) pixels; its standard deviation is uniform in `sigma_px`. The
    image is continued by reflection at its borders."""

    def __init__(self, kernel_px: int = 3, sigma_px: tuple[float, float] = (0.1, 2.0)):
        if kernel_px < 1 or kernel_px % 2 == 0:
            raise ValueError(f"kernel_px must be odd and >= 1, but is {kernel_px}")
        if not 0 < sigma_px[0] <= sigma_px[1]:
            raise ValueError(f"sigma_px must be [low, high] with 0 < low <= high, but is {sigma_px}")
        self.kernel_px, self.sigma_px = kernel_px, sigma_px

    def check(self, channels: int, image_px: int) -> None:
        if self.kernel_px // 2 >= image_px:
            raise ValueError(f"kernel_px must be less than twice the image's {image_px} px, but is {self.kernel_px}")

    def __call__(self, batch: BatchT, rng: torch.Generator) -> BatchT:
        sigma = to_device(sample_uniform(*self.sigma_px, batch.size, rng), batch.images)
        return batch._replace(images=map_images(partial(blur, kernel_px=self.kernel_px), batch.images, sigma))


def blur(images: Tensor, sigma: Tensor, kernel_px: int) -> Tensor:
    """Blurs each image with its own sigma (B,), as one grouped convolution along each axis."""
    b, c, h, w = images.shape
    positions = torch.arange(kernel_px, device=images.device) - kernel_px // 2
    weights = (-0.5 * (positions / sigma[:, None]).square()).exp()
    weights = (weights / weights.sum(1, keepdim=True)).to(images.dtype).repeat_interleave(c, 0)  # (B * C, kernel_px)
    planes = F.pad(images, (kernel_px // 2,) * 4, mode="reflect").reshape(1, b * c, h + kernel_px - 1, -1)
    planes = F.conv2d(planes, weights[:, None, :, None], groups=b * c)
    return F.conv2d(planes, weights[:, None, None, :], groups=b * c).reshape(b, c, h, w)


class GaussianNoise(Transform):
    """Adds normal noise with standard deviation `std` to each value and clips to [0, 1]."""

    def __init__(self, std: float):
        if std < 0:
            raise ValueError(f"std must be >= 0, but is {std}")
        self.std = std

    def __call__(self, batch: BatchT, rng: torch.Generator) -> BatchT:
        def add_noise(images: Tensor) -> Tensor:
            return add_and_clip(images, self.std * to_device(torch.randn(images.shape, generator=rng), images))

        return batch._replace(images=map_images(add_noise, batch.images, together=False))
