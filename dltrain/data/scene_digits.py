"""Scenes of one digit each, with the digit as the label: a classifier of them is a backbone for models of scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dltrain.data import scenes
from dltrain.data.classification import ResidentImages, Split
from dltrain.data.scenes import Scenes


class SceneDigits(ResidentImages):
    """`num_train` scenes and EVALUATED each for validation and test; `sizes_px` as SceneBoxes; `digits`: the classes.
    Raises ValueError for digits that are not 0 to 9, two at least, each once."""

    def __init__(self, *, sizes_px: list[int], num_train: int, digits: Sequence[int] = range(10), **keys: Any):
        super().__init__(**keys)
        if len({*digits}) != len(digits) or len(digits) < 2 or not {*digits} <= {*range(10)}:
            raise ValueError(f"digits must be two or more of 0 to 9, each once, but are {list(digits)}")
        self.digits = sorted(digits)
        self.num_classes = len(digits)
        if len(sizes_px) != 2 or sizes_px[0] > sizes_px[1]:
            raise ValueError(f"sizes_px must be [least, most], but is {sizes_px}")
        self.scenes, self.num_train = Scenes(self.image_px, (sizes_px[0], sizes_px[1]), 1, digits), num_train

    def load(self) -> None:
        self.class_names = [str(digit) for digit in self.digits]
        for split, count in (("train", self.num_train), ("val", scenes.EVALUATED), ("test", scenes.EVALUATED)):
            drawn = [self.scenes.draw(split, index) for index in range(count)]
            self.splits[split] = Split(torch.stack([scene.image for scene in drawn]),
                                    torch.tensor([self.digits.index(scene.things[0].digit)
                                                  for scene in drawn]))
