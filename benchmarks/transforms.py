"""Images per second of each transform: ours on the batch, torchvision v2 sample by sample, and kornia on the batch
where it is installed (`pip install kornia`; not a dependency). Floats, one core, 128 images of 32x32, 16 of 224x224."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.timing import Row, cores, measure, seconds
from dltrain.augment import colour, erasing, geometry, mixing, resampling
from dltrain.batches import ClassificationBatch

# ours on a batch with a generator; torchvision's on an image; kornia's on images
Transform = tuple[Callable[..., Any], Callable[[Tensor], Tensor] | None, Callable[[Tensor], Tensor] | None]


def run() -> list[Row]:
    try:
        kornia = importlib.import_module("kornia.augmentation")
    except ImportError:
        kornia = None
    with cores(1):
        return [measure_transform(f"{name}, {px} px", row, px, count) for px, count in ((32, 128), (224, 16))
                for name, row in transforms_at(px, kornia).items()]


def measure_transform(what: str, transform: Transform, px: int, count: int) -> Row:
    ours, torchvisions, kornias = transform
    images, labels = torch.rand(count, 3, px, px), torch.arange(count) % 10
    rng = torch.Generator().manual_seed(0)
    sides = {"dltrain": lambda: ours(ClassificationBatch(images, labels), rng)}
    if torchvisions is not None:
        sides["torchvision v2"] = lambda: [torchvisions(image) for image in images]
    if kornias is not None:
        sides["kornia"] = lambda: kornias(images)
    with torch.no_grad():
        return measure(what, "images/s", {name: lambda work=work: count / seconds(work)  # type: ignore[misc]
                                          for name, work in sides.items()})


def transforms_at(px: int, kornia: Any) -> dict[str, Transform]:
    """`kornia`: its module of augmentations, or None."""
    padding, cropped, hole = px // 8, px - px // 8, px // 4
    lighting = colour.Lighting(0.1)
    lighting.axes.copy_(torch.eye(3) * 0.2)

    def of_kornia(name: str, *arguments: Any, **keys: Any) -> Callable[[Tensor], Tensor] | None:
        return getattr(kornia, name)(*arguments, **keys) if kornia is not None else None

    return {
        "PadCrop": (geometry.PadCrop(padding), v2.RandomCrop(px, padding=padding),
                    of_kornia("RandomCrop", (px, px), padding=padding)),
        "HorizontalFlip": (geometry.HorizontalFlip(0.5), v2.RandomHorizontalFlip(0.5),
                           of_kornia("RandomHorizontalFlip", p=0.5)),
        "ResizedCrop": (resampling.ResizedCrop(cropped), v2.RandomResizedCrop(cropped, antialias=False),
                        of_kornia("RandomResizedCrop", (cropped, cropped))),
        "Affine": (resampling.Affine(15, 0.1, (0.9, 1.1)),
                   v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
                   of_kornia("RandomAffine", 15.0, (0.1, 0.1), (0.9, 1.1), p=1.0)),
        "Cutout": (erasing.Cutout(hole), v2.RandomErasing(1.0, (1 / 16, 1 / 16), (1.0, 1.0)),
                   of_kornia("RandomErasing", (1 / 16, 1 / 16), (1.0, 1.0), p=1.0)),
        "ColorJitter": (colour.ColorJitter(0.3, 0.3, 0.3, 0.1), v2.ColorJitter(0.3, 0.3, 0.3, 0.1),
                        of_kornia("ColorJitter", 0.3, 0.3, 0.3, 0.1, p=1.0)),
        "Lighting": (lighting, None, None),
        "GaussianBlur": (colour.GaussianBlur(5), v2.GaussianBlur(5, (0.1, 2.0)),
                         of_kornia("RandomGaussianBlur", (5, 5), (0.1, 2.0), p=1.0)),
        "GaussianNoise": (colour.GaussianNoise(0.1), v2.GaussianNoise(sigma=0.1),
                          of_kornia("RandomGaussianNoise", std=0.1, p=1.0)),
        "Mixup": (mixing.Mixup(0.2, 10), None, None),
    }
