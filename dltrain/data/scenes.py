"""Scenes: real handwritten digits, coloured and scaled, on a textured background. One description gives the boxes, the
masks, the labels and (scene_captions.py) the captions. A scene is a pure function of (split, index), and no image of a
digit is in two splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dltrain.batches import DetectionBatch, SegmentationBatch, generator
from dltrain.data.classification import ImageKeys, InMemoryImages, Split
from dltrain.data.datamodule import SPLITS, DataKeys, DataModule
from dltrain.data.detection import without_boxes
from dltrain.data.digits import read_digits
from dltrain.data.images import read_image, write_images
from dltrain.data.segmentation import without_masks
from dltrain.image_files import ImageSource

COLOURS = {"red": (230, 60, 50), "green": (70, 200, 80), "blue": (80, 130, 250), "yellow": (240, 220, 70),
           "purple": (190, 90, 220), "white": (245, 245, 245)}
NUM_EVAL_IMAGES = 200  # scenes of the validation and of the test split
MIN_ALPHA = 0.35  # opacity from which on a pixel belongs to a digit's stroke


class SceneObject(NamedTuple):
    """A digit of a scene; box (x1, y1, x2, y2) in pixels, tight around its stroke."""

    digit: int
    colour: str
    box: tuple[int, int, int, int]


class Scene(NamedTuple):
    """image (3, px, px) uint8; mask (px, px) int64: 0 for the background, digit + 1 on its stroke."""

    image: Tensor
    objects: list[SceneObject]
    mask: Tensor


class Scenes:
    """Draws scenes: Scenes(64, [14, 32]).draw("train", 5) -> Scene. `px`: the side of the square; `sizes_px`: [min,
    max] of a digit's side; `max_objects`: of a scene, which has at least one; `digits`: those that occur. Raises
    ValueError."""

    def __init__(self, px: int, sizes_px: Sequence[int], max_objects: int = 4, digits: Sequence[int] = range(10)):
        if len(sizes_px) != 2 or sizes_px[0] > sizes_px[1]:
            raise ValueError(f"sizes_px must be [min, max], but is {list(sizes_px)}")
        if sizes_px[1] > px:
            raise ValueError(f"sizes_px must be at most px={px}, but is {list(sizes_px)}")
        self.px, self.sizes_px, self.max_objects, self.digits = px, sizes_px, max_objects, digits

    @cached_property
    def sources(self) -> dict[str, Split]:
        """The images of `digits` that the scenes of each split are made of."""
        splits = {}
        for split, (images, labels) in read_digits().items():
            kept = torch.isin(labels, torch.tensor(self.digits))
            splits[split] = Split(images[kept], labels[kept])
        return splits

    def draw(self, split: str, index: int) -> Scene:
        rng = generator("scene", split, index)
        image, mask = self.draw_background(rng), torch.zeros(self.px, self.px, dtype=torch.long)
        objects: list[SceneObject] = []
        images, labels = self.sources[split]
        for _ in range(int(torch.randint(1, self.max_objects + 1, (), generator=rng))):
            source = int(torch.randint(len(labels), (), generator=rng))
            digit = int(labels[source])
            colour = list(COLOURS)[int(torch.randint(len(COLOURS), (), generator=rng))]
            for _ in range(20):  # until there is a free place
                size = int(torch.randint(self.sizes_px[0], self.sizes_px[1] + 1, (), generator=rng))
                x, y = torch.randint(0, self.px - size + 1, (2,), generator=rng).tolist()
                stroke = stroke_alpha(images[source], size)
                x1, y1, x2, y2 = tight_box(stroke > MIN_ALPHA)
                box = x1 + x, y1 + y, x2 + x, y2 + y
                if all(overlap(box, other.box) < 0.05 for other in objects):
                    alpha = F.pad(stroke, (x, self.px - size - x, y, self.px - size - y))
                    paint = torch.tensor(COLOURS[colour], dtype=torch.float)[:, None, None]
                    image = image * (1 - alpha) + paint * alpha
                    mask[alpha > MIN_ALPHA] = digit + 1
                    objects.append(SceneObject(digit, colour, box))
                    break
        return Scene(image.round().clamp(0, 255).to(torch.uint8), objects, mask)

    def draw_background(self, rng: torch.Generator) -> Tensor:
        """Draws (3, px, px) float: a dark colour with clouds and Gaussian noise."""
        base = 30 + 60 * torch.rand(3, 1, 1, generator=rng)
        clouds = F.interpolate(torch.randn(1, 3, 5, 5, generator=rng), size=(self.px, self.px), mode="bicubic")[0]
        return (base + 14 * clouds + 6 * torch.randn(3, self.px, self.px, generator=rng)).clamp(0, 255)

    def draw_split(self, split: str, count: int) -> tuple[Tensor, list[Scene]]:
        """Returns the images (N, 3, px, px) uint8 of the first `count` scenes, and the scenes."""
        scenes = [self.draw(split, index) for index in range(count)]
        return torch.stack([scene.image for scene in scenes]), scenes


def stroke_alpha(image: Tensor, size: int) -> Tensor:
    """Returns the opacity (size, size) in [0, 1] of a digit (1, 8, 8) uint8."""
    larger = F.interpolate(image[None].float() / 255, size=(size, size), mode="bilinear", align_corners=False)[0, 0]
    return ((larger - 0.2) / 0.5).clamp(0, 1)


def tight_box(inside: Tensor) -> tuple[int, int, int, int]:
    """Returns (x1, y1, x2, y2) around the pixels of (H, W) that are True."""
    marked: NDArray[np.bool_] = inside.numpy()  # whose operations on a few values take a tenth of the time of torch's
    rows, columns = np.flatnonzero(marked.any(1)).tolist(), np.flatnonzero(marked.any(0)).tolist()
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """The IoU of two boxes (x1, y1, x2, y2)."""
    width, height = (
        max(0, min(one[end], other[end]) - max(one[start], other[start])) for start, end in [(0, 2), (1, 3)])
    shared = width * height
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    return shared / (sum(areas) - shared)


def counts_by_split(num_train: int) -> dict[str, int]:
    """The number of scenes of each split."""
    return {"train": num_train, "val": NUM_EVAL_IMAGES, "test": NUM_EVAL_IMAGES}


class SceneBoxes(DataModule[DetectionBatch, Tensor]):
    """Scenes with boxes: `num_train` to train on, NUM_EVAL_IMAGES each for validation and test; the other keys as for
    Scenes."""

    batch_type = DetectionBatch
    input_kind = "image"

    def __init__(self, *, channels: int, num_classes: int, image_px: int, sizes_px: list[int], max_objects: int,
                 num_train: int, **keys: Unpack[DataKeys]):
        super().__init__(**keys)
        self.scenes, self.num_scenes = Scenes(image_px, sizes_px, max_objects), counts_by_split(num_train)
        self.channels = channels
        self.images: dict[str, Tensor] = {}
        self.targets: dict[str, list[dict[str, Tensor]]] = {}

    def load(self) -> None:
        self.class_names = [str(digit) for digit in range(10)]
        for split in SPLITS:
            self.images[split], scenes = self.scenes.draw_split(split, self.num_scenes[split])
            self.targets[split] = [{"boxes": torch.tensor([obj.box for obj in scene.objects]).float().reshape(-1, 4),
                                    "labels": torch.tensor([obj.digit for obj in scene.objects]).long()}
                                   for scene in scenes]

    def num_samples(self, split: str) -> int:
        return len(self.targets[split])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[DetectionBatch]:
        """An index of -1 gives no sample."""
        for batch in batches:
            indices = batch[batch >= 0].tolist()
            yield DetectionBatch([self.images[split][i] for i in indices],
                                 [dict(self.targets[split][i]) for i in indices])

    def training_pixels(self, at_most: int) -> Tensor:
        return self.images["train"][:at_most]

    def training_boxes(self) -> Tensor:
        boxes = torch.cat([target["boxes"] for target in self.targets["train"]])
        return torch.cat([boxes[:, 2:] - boxes[:, :2], torch.full_like(boxes[:, :2], self.scenes.px)], 1)

    def read_input(self, source: ImageSource) -> Tensor:
        return read_image(source, self.channels)

    def encode_inputs(self, inputs: list[Tensor]) -> DetectionBatch:
        return without_boxes(inputs)

    def write_samples(self, folder: Path) -> str:
        return write_images(self.images["test"][:8], folder)


class SceneMasks(DataModule[SegmentationBatch, Tensor]):
    """Scenes with the class of every pixel, the background being one; the keys as for SceneBoxes."""

    batch_type = SegmentationBatch
    input_kind = "image"

    def __init__(self, *, channels: int, num_classes: int, image_px: int, sizes_px: list[int], max_objects: int,
                 num_train: int, **keys: Unpack[DataKeys]):
        super().__init__(**keys)
        self.scenes, self.num_scenes = Scenes(image_px, sizes_px, max_objects), counts_by_split(num_train)
        self.channels, self.image_px = channels, image_px
        self.images: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}

    def load(self) -> None:
        self.class_names = ["background", *(str(digit) for digit in range(10))]
        for split in SPLITS:
            self.images[split], scenes = self.scenes.draw_split(split, self.num_scenes[split])
            self.masks[split] = torch.stack([scene.mask for scene in scenes])

    def num_samples(self, split: str) -> int:
        return len(self.masks[split])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[SegmentationBatch]:
        """An index of -1 gives no sample."""
        for batch in batches:
            indices = batch[batch >= 0]
            yield SegmentationBatch(self.images[split][indices], self.masks[split][indices])

    def training_pixels(self, at_most: int) -> Tensor:
        return self.images["train"][:at_most]

    def read_input(self, source: ImageSource) -> Tensor:
        return read_image(source, self.channels)

    def encode_inputs(self, inputs: list[Tensor]) -> SegmentationBatch:
        return without_masks(inputs, self.image_px)

    def write_samples(self, folder: Path) -> str:
        return write_images(self.images["test"][:8], folder)


class SceneDigits(InMemoryImages):
    """Scenes of one digit each, which is the label. `digits`: the classes, two or more of 0 to 9, each once; a
    classifier of these is a pretrained backbone for models of other scenes. Raises ValueError."""

    def __init__(self, *, sizes_px: list[int], num_train: int, digits: Sequence[int] = range(10),
                 **keys: Unpack[ImageKeys]):
        super().__init__(**keys)
        if len({*digits}) != len(digits) or len(digits) < 2 or not {*digits} <= {*range(10)}:
            raise ValueError(f"digits must be two or more of 0 to 9, each once, but are {list(digits)}")
        self.digits = sorted(digits)
        self.num_classes = len(digits)
        self.scenes, self.num_scenes = Scenes(self.image_px, sizes_px, 1, digits), counts_by_split(num_train)

    def load(self) -> None:
        self.class_names = [str(digit) for digit in self.digits]
        for split in SPLITS:
            images, scenes = self.scenes.draw_split(split, self.num_scenes[split])
            labels = torch.tensor([self.digits.index(scene.objects[0].digit) for scene in scenes])
            self.splits[split] = Split(images, labels)
