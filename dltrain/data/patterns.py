"""Drawn patterns, the kind of each its class: images that have nothing to do with digits. An image is a pure function
of (split, index)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dltrain.batches import generator
from dltrain.data import scenes
from dltrain.data.classification import ResidentImages, Split

KINDS = ("rows", "columns", "rising", "falling", "checks", "dots", "rings", "rays")


class Patterns(ResidentImages):
    """`num_train` images and EVALUATED each for validation and test, all kinds alike often. Two colours, 3 to 6 periods
    an image, any phase, grain."""

    def __init__(self, *, num_train: int, **keys: Any):
        super().__init__(**keys)
        self.counts = {"train": num_train, "val": scenes.EVALUATED, "test": scenes.EVALUATED}

    def load(self) -> None:
        self.class_names = list(KINDS)
        for split, count in self.counts.items():
            labels = torch.arange(count) % len(KINDS)
            images = [drawn(KINDS[int(label)], self.image_px, generator("pattern", split, index))
                      for index, label in enumerate(labels)]
            self.splits[split] = Split(torch.stack(images), labels)


def drawn(kind: str, px: int, draws: torch.Generator) -> Tensor:
    """(3, px, px) uint8."""
    periods, a, b, *middle = torch.rand(5, generator=draws).tolist()
    periods, a, b = 3 + 3 * periods, 2 * math.pi * a, 2 * math.pi * b
    y, x = torch.meshgrid(*(2 * [torch.linspace(0, 2 * math.pi * periods, px)]), indexing="ij")
    from_middle = torch.stack([one - 2 * math.pi * periods * (0.25 + 0.5 * at)
                               for one, at in zip((x, y), middle, strict=True)])
    wave = {"rows": lambda: torch.sin(y + a), "columns": lambda: torch.sin(x + a),
            "rising": lambda: torch.sin((x + y) / math.sqrt(2) + a),
            "falling": lambda: torch.sin((x - y) / math.sqrt(2) + a),
            "checks": lambda: torch.sign(torch.sin(x + a) * torch.sin(y + b)),
            "dots": lambda: 2 * (torch.cos(x + a) * torch.cos(y + b)).clamp_min(0) - 1,
            "rings": lambda: torch.sin(from_middle.norm(dim=0) + a),
            "rays": lambda: torch.sin(round(2 * periods) * torch.atan2(from_middle[1], from_middle[0]) + a)}[kind]()
    one, apart = torch.rand(2, 3, 1, 1, generator=draws).unbind()
    one = 30 + 200 * one
    other = one + (50 + 50 * apart) * torch.where(one < 130, 1, -1)
    image = one + (other - one) * (wave + 1) / 2 + 14 * torch.randn(3, px, px, generator=draws)
    return image.round().clamp(0, 255).to(torch.uint8)
