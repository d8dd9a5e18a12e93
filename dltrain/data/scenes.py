"""Scenes: one to four real handwritten digits, coloured and scaled, on textured ground; boxes, masks and words from one
description. A scene is a pure function of (split, index), and no digit's image is in two splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.functional import to_pil_image

from dltrain.batches import DetectionBatch, generator
from dltrain.data.classification import Split
from dltrain.data.digits import Digits
from dltrain.data.loader import DataModule

COLOURS = {"red": (230, 60, 50), "green": (70, 200, 80), "blue": (80, 130, 250), "yellow": (240, 220, 70),
           "purple": (190, 90, 220), "white": (245, 245, 245)}
EVALUATED = 200  # scenes of the validation and of the test split
LEAST_ALPHA = 0.35  # what of a digit's stroke counts as its own pixel


class Thing(NamedTuple):
    """A digit in a scene; box (x1, y1, x2, y2) in pixels, tight around its stroke."""

    digit: int
    colour: str
    box: tuple[int, int, int, int]


class Scene(NamedTuple):
    """image (3, px, px) uint8; mask (px, px) int64: 0 for the ground, the digit + 1 on its stroke."""

    image: Tensor
    things: list[Thing]
    mask: Tensor


class Scenes:
    """scenes.draw("train", 5) -> Scene. `px`: the side of the square; `sizes_px`: least and most side of a digit;
    `most`: digits of a scene; `among`: the digits that may be in one."""

    def __init__(self, px: int, sizes_px: tuple[int, int], most: int = 4, among: Sequence[int] = range(10)):
        if sizes_px[1] > px:
            raise ValueError(f"sizes_px must be at most px={px}, but is {list(sizes_px)}")
        self.px, self.sizes_px, self.most, self.among = px, sizes_px, most, among

    @cached_property
    def digits(self) -> Digits:
        found = Digits(channels=1, num_classes=10, image_px=8, batch_size=1)
        found.load()
        for split, (images, labels) in found.splits.items():
            kept = torch.isin(labels, torch.tensor(self.among))
            found.splits[split] = Split(images[kept], labels[kept])
        return found

    def draw(self, split: str, index: int) -> Scene:
        draws = generator("scene", split, index)
        image, mask = self.ground(draws), torch.zeros(self.px, self.px, dtype=torch.long)
        things: list[Thing] = []
        images, labels = self.digits.splits[split]
        for _ in range(int(torch.randint(1, self.most + 1, (), generator=draws))):
            number = int(torch.randint(len(labels), (), generator=draws))
            colour = list(COLOURS)[int(torch.randint(len(COLOURS), (), generator=draws))]
            for _ in range(20):  # until there is room
                size = int(torch.randint(self.sizes_px[0], self.sizes_px[1] + 1, (), generator=draws))
                x, y = torch.randint(0, self.px - size + 1, (2,), generator=draws).tolist()
                alpha = F.pad(stroke(images[number], size), (x, self.px - size - x, y, self.px - size - y))
                box = extent(alpha > LEAST_ALPHA)
                if not things or float(box_iou(torch.tensor([box]), torch.tensor([t.box for t in things])).max()) < .05:
                    paint = torch.tensor(COLOURS[colour], dtype=torch.float)[:, None, None]
                    image = image * (1 - alpha) + paint * alpha
                    mask[alpha > LEAST_ALPHA] = int(labels[number]) + 1
                    things.append(Thing(int(labels[number]), colour, box))
                    break
        return Scene(image.round().clamp(0, 255).to(torch.uint8), things, mask)

    def ground(self, draws: torch.Generator) -> Tensor:
        """(3, px, px) float: a dark colour, clouds of it and grain."""
        base = 30 + 60 * torch.rand(3, 1, 1, generator=draws)
        clouds = F.interpolate(torch.randn(1, 3, 5, 5, generator=draws), size=(self.px, self.px), mode="bicubic")[0]
        return (base + 14 * clouds + 6 * torch.randn(3, self.px, self.px, generator=draws)).clamp(0, 255)


def stroke(image: Tensor, size: int) -> Tensor:
    """A digit (1, 8, 8) uint8 as its opacity (size, size) in [0, 1]."""
    larger = F.interpolate(image[None].float() / 255, size=(size, size), mode="bilinear", align_corners=False)[0, 0]
    return ((larger - 0.2) / 0.5).clamp(0, 1)


def extent(inside: Tensor) -> tuple[int, int, int, int]:
    """The tight box (x1, y1, x2, y2) around what is True."""
    rows, columns = inside.any(1).nonzero()[:, 0].tolist(), inside.any(0).nonzero()[:, 0].tolist()
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


class SceneBoxes(DataModule):
    """Scenes with their boxes; the class is the digit. `num_train` scenes, EVALUATED each for validation and test."""

    batch_type: type = DetectionBatch

    def __init__(self, *, image_px: int, channels: int, num_classes: int, sizes_px: list[int], most: int,
                 num_train: int, **keys: Any):
        super().__init__(**keys)
        if len(sizes_px) != 2 or sizes_px[0] > sizes_px[1]:
            raise ValueError(f"sizes_px must be [least, most], but is {sizes_px}")
        self.scenes = Scenes(image_px, (sizes_px[0], sizes_px[1]), most)
        self.num_scenes = {"train": num_train, "val": EVALUATED, "test": EVALUATED}
        self.images: dict[str, Tensor] = {}
        self.targets: dict[str, list[dict[str, Tensor]]] = {}

    def load(self) -> None:
        self.class_names = [str(digit) for digit in range(10)]
        for split, count in self.num_scenes.items():
            drawn = [self.scenes.draw(split, index) for index in range(count)]
            self.images[split] = torch.stack([scene.image for scene in drawn])
            self.targets[split] = [as_target(scene.things) for scene in drawn]

    def num_samples(self, split: str) -> int:
        return len(self.targets[split])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[Any]:
        for indices in batches:
            known = indices[indices >= 0].tolist()  # -1 fills the last batch among several processes
            yield DetectionBatch([self.images[split][i] for i in known],
                                 [dict(self.targets[split][i]) for i in known])

    def write_samples(self, folder: Path) -> str:
        for number, image in enumerate(self.images["test"][:8]):
            to_pil_image(image).save(folder / f"{number:02d}.png")
        return f"input={folder}"

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, 3, px, px) uint8 of the training split, for statistics."""
        return self.images["train"][:at_most]


def as_target(things: list[Thing]) -> dict[str, Tensor]:
    boxes = torch.tensor([thing.box for thing in things], dtype=torch.float).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([thing.digit for thing in things], dtype=torch.long)}
