"""Scenes with the class of every pixel: 0 for the ground, the digit + 1 on its stroke."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dltrain.batches import SegmentationBatch
from dltrain.data.scenes import SceneBoxes


class SceneMasks(SceneBoxes):
    """The scenes of SceneBoxes, with masks in the place of boxes; the ground is a class."""

    batch_type: type = SegmentationBatch

    def __init__(self, **keys: Any):
        super().__init__(**keys)
        self.masks: dict[str, Tensor] = {}

    def load(self) -> None:
        self.class_names = ["ground", *(str(digit) for digit in range(10))]
        for split, count in self.num_scenes.items():
            drawn = [self.scenes.draw(split, index) for index in range(count)]
            self.images[split] = torch.stack([scene.image for scene in drawn])
            self.masks[split] = torch.stack([scene.mask for scene in drawn])

    def num_samples(self, split: str) -> int:
        return len(self.masks[split])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[Any]:
        for indices in batches:
            known = indices[indices >= 0]  # -1 fills the last batch among several processes
            yield SegmentationBatch(self.images[split][known], self.masks[split][known])
