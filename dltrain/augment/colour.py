"""Transforms of colour, blur and noise, on floats in [0, 1]; each sample with its own draw.

Brightness, contrast, saturation and hue mean what torchvision's `adjust_*` mean.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.augment.geometry import each, to_device, uniform

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as in torchvision


def grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 1, H, W); a grey image is its own."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)


class ColorJitter:
    """Factors of brightness, contrast and saturation uniform in [max(0, 1 - x), 1 + x], hue turned by up to `hue` of
    the circle, in [0, 0.5], in this order (torchvision draws the order too)."""

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

    def __call__(self, batch: Any, draws: torch.Generator) -> Any:
        images = batch.images
        for adjust, width in ((brightness, self.brightness), (contrast, self.contrast), (saturation, self.saturation)):
            factors = uniform(max(0.0, 1 - width), 1 + width, batch.size, draws)
            if width:
                images = each(adjust, images, to_device(factors, images)[:, None, None, None])
        turns = uniform(-self.hue, self.hue, batch.size, draws)
        if self.hue:
            images = each(turned, images, to_device(turns, images)[:, None, None])
        return batch._replace(images=images)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = grey(images).mean((1, 2, 3), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    base = grey(images)
    return (base + factor * (images - base)).clamp(0, 1)


def turned(images: Tensor, turn: Tensor) -> Tensor:
    """Hue turned by `turn` of the circle, through HSV: value and chroma stay."""
    red, green, blue = images.unbind(1)
    top, low = images.amax(1), images.amin(1)
    chroma = (top - low).clamp_min(1e-12)
    sector = torch.where(top == red, (green - blue) / chroma,
                         torch.where(top == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma))
    hue = 6 * ((sector / 6 + turn) % 1)
    spread = top - low
    channels = []
    for shift in (5.0, 3.0, 1.0):  # the formula of HSV to RGB, n = 5, 3, 1
        k = (shift + hue) % 6
        channels.append(top - spread * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


class Lighting(nn.Module):
    """Adds to every pixel of an image the eigenvectors of the training pixels' colour covariance, each times its
    standard deviation and a normal draw of `std` (Krizhevsky et al. 2012, section 4.1: 0.1)."""

    axes: Tensor

    def __init__(self, std: float = 0.1):
        super().__init__()
        if std < 0:
            raise ValueError(f"std must be >= 0, but is {std}")
        self.std = std
        self.register_buffer("axes", torch.zeros(3, 3))  # column k: eigenvector k times its standard deviation

    def check(self, channels: int, image_px: int) -> None:
        if channels != 3:
            raise ValueError(f"Lighting needs images of 3 channels, but they have {channels}")

    def fit(self, pixels: Tensor) -> None:
        """From (N, 3, H, W) uint8."""
        colours = pixels.permute(0, 2, 3, 1).reshape(-1, 3).double() / 255
        values, vectors = torch.linalg.eigh(torch.cov(colours.T, correction=0))
        self.axes.copy_(vectors * values.clamp_min(0).sqrt())

    def forward(self, batch: Any, draws: torch.Generator) -> Any:
        drawn = to_device(self.std * torch.randn(batch.size, 3, generator=draws), batch.images)
        return batch._replace(images=each(shifted, batch.images, (drawn @ self.axes.T)[:, :, None, None]))


def shifted(images: Tensor, shift: Tensor) -> Tensor:
    return (images + shift).clamp(0, 1)


class GaussianBlur:
    """A Gaussian of standard deviation uniform in `sigma_px`, cut off at `kernel_px` (odd), borders reflected."""

    def __init__(self, kernel_px: int = 3, sigma_px: tuple[float, float] = (0.1, 2.0)):
        if kernel_px < 1 or kernel_px % 2 == 0:
            raise ValueError(f"kernel_px must be odd, but is {kernel_px}")
        if not 0 < sigma_px[0] <= sigma_px[1]:
            raise ValueError(f"sigma_px must be above 0, low before high, but is {sigma_px}")
        self.kernel_px, self.sigma_px = kernel_px, sigma_px

    def check(self, channels: int, image_px: int) -> None:
        if self.kernel_px // 2 >= image_px:
            raise ValueError(f"kernel_px must be below twice the image's {image_px} px, but is {self.kernel_px}")

    def __call__(self, batch: Any, draws: torch.Generator) -> Any:
        sigma = to_device(uniform(*self.sigma_px, batch.size, draws), batch.images)
        return batch._replace(images=each(partial(blurred, kernel_px=self.kernel_px), batch.images, sigma))


def blurred(images: Tensor, sigma: Tensor, kernel_px: int) -> Tensor:
    """Each image with its own sigma (B,), as one grouped convolution along each axis."""
    b, c, h, w = images.shape
    places = torch.arange(kernel_px, device=images.device) - kernel_px // 2
    weights = (-0.5 * (places / sigma[:, None]).square()).exp()
    weights = (weights / weights.sum(1, keepdim=True)).to(images.dtype).repeat_interleave(c, 0)  # (B * C, K)
    planes = F.pad(images, (kernel_px // 2,) * 4, mode="reflect").reshape(1, b * c, h + kernel_px - 1, -1)
    planes = F.conv2d(planes, weights[:, None, :, None], groups=b * c)
    return F.conv2d(planes, weights[:, None, None, :], groups=b * c).reshape(b, c, h, w)


class GaussianNoise:
    """Adds normal noise of standard deviation `std` (of the range [0, 1]) to each value, and clips."""

    def __init__(self, std: float):
        if std < 0:
            raise ValueError(f"std must be >= 0, but is {std}")
        self.std = std

    def __call__(self, batch: Any, draws: torch.Generator) -> Any:
        def noisy(images: Tensor) -> Tensor:
            return shifted(images, self.std * to_device(torch.randn(images.shape, generator=draws), images))

        return batch._replace(images=each(noisy, batch.images))
