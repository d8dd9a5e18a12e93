"""Drawn patterns whose kind is the class: images that have nothing to do with digits. An image is a pure function of
(split, index)."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from dltrain.batches import generator
from dltrain.data.classification import ImageKeys, InMemoryImages, Split

KINDS = ("rows", "columns", "rising", "falling", "checks", "dots", "rings", "rays")
NUM_EVAL_IMAGES = 200  # images of the validation and of the test split


class Patterns(InMemoryImages):
    """`num_train` images to train on, NUM_EVAL_IMAGES each for validation and test. Each kind is equally frequent; an
    image has two colours, 3 to 6 periods, a random phase and Gaussian noise."""

    def __init__(self, *, num_train: int, **keys: Unpack[ImageKeys]):
        super().__init__(**keys)
        self.counts = {"train": num_train, "val": NUM_EVAL_IMAGES, "test": NUM_EVAL_IMAGES}

    def load(self) -> None:
        self.class_names = list(KINDS)
        for split, count in self.counts.items():
            labels = torch.arange(count) % len(KINDS)
            images = [draw_pattern(KINDS[int(label)], self.image_px, generator("pattern", split, index))
                      for index, label in enumerate(labels)]
            self.splits[split] = Split(torch.stack(images), labels)


def draw_pattern(kind: str, px: int, rng: torch.Generator) -> Tensor:
    """Draws a pattern (3, px, px) uint8."""
    periods, a, b, *centre = torch.rand(5, generator=rng).tolist()
    periods, a, b = 3 + 3 * periods, 2 * math.pi * a, 2 * math.pi * b  # a, b: phases
    y, x = torch.meshgrid(*(2 * [torch.linspace(0, 2 * math.pi * periods, px)]), indexing="ij")
    offsets = torch.stack([axis - 2 * math.pi * periods * (0.25 + 0.5 * at)
                           for axis, at in zip((x, y), centre, strict=True)])
    wave = {"rows": lambda: torch.sin(y + a), "columns": lambda: torch.sin(x + a),
            "rising": lambda: torch.sin((x + y) / math.sqrt(2) + a),
            "falling": lambda: torch.sin((x - y) / math.sqrt(2) + a),
            "checks": lambda: torch.sign(torch.sin(x + a) * torch.sin(y + b)),
            "dots": lambda: 2 * (torch.cos(x + a) * torch.cos(y + b)).clamp_min(0) - 1,
            "rings": lambda: torch.sin(offsets.norm(dim=0) + a),
            "rays": lambda: torch.sin(round(2 * periods) * torch.atan2(offsets[1], offsets[0]) + a)}[kind]()
    colour, contrast = torch.rand(2, 3, 1, 1, generator=rng).unbind()
    colour = 30 + 200 * colour
    second_colour = colour + (50 + 50 * contrast) * torch.where(colour < 130, 1, -1)
    image = colour + (second_colour - colour) * (wave + 1) / 2 + 14 * torch.randn(3, px, px, generator=rng)
    return image.round().clamp(0, 255).to(torch.uint8)
