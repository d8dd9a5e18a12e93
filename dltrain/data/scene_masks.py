"""Scenes with the class of every pixel: 0 for the ground, the digit + 1 on its stroke."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.batches import SegmentationBatch
from dltrain.data import scenes
from dltrain.data.loader import DataModule
from dltrain.data.scenes import Scenes


class SceneMasks(DataModule):
    """`num_train` scenes and EVALUATED each for validation and test; the other keys as SceneBoxes."""

    batch_type = SegmentationBatch

    def __init__(self, *, image_px: int, channels: int, num_classes: int, sizes_px: list[int], most: int,
                 num_train: int, **keys: Any):
        super().__init__(**keys)
        if len(sizes_px) != 2 or sizes_px[0] > sizes_px[1]:
            raise ValueError(f"sizes_px must be [least, most], but is {sizes_px}")
        self.scenes = Scenes(image_px, (sizes_px[0], sizes_px[1]), most)
        self.num_scenes = {"train": num_train, "val": scenes.EVALUATED, "test": scenes.EVALUATED}
        self.images: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}

    def load(self) -> None:
        self.class_names = ["ground", *(str(digit) for digit in range(10))]
        for part, count in self.num_scenes.items():
            drawn = [self.scenes.draw(part, index) for index in range(count)]
            self.images[part] = torch.stack([scene.image for scene in drawn])
            self.masks[part] = torch.stack([scene.mask for scene in drawn])

    def num_samples(self, part: str) -> int:
        return len(self.images[part])

    def read(self, part: str, batches: list[Tensor]) -> Iterator[SegmentationBatch]:
        for indices in batches:
            known = indices[indices >= 0]  # -1 fills the last batch among several processes
            yield SegmentationBatch(self.images[part][known], self.masks[part][known])

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, 3, px, px) uint8 of the training part, for statistics."""
        return self.images["train"][:at_most]

    def write_samples(self, folder: Path) -> str:
        for number, image in enumerate(self.images["test"][:8]):
            to_pil_image(image).save(folder / f"{number:02d}.png")
        return f"input={folder}"
