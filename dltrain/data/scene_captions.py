"""Scenes with captions: five sentences of digit, colour, size and position for each scene, and a check whether a
sentence is true of a scene.

The size is stated only where it is obvious: a digit of up to SMALL_PX is small, one from LARGE_PX on large. The
relation of two digits is left, right, above or below, along the axis on which their centres are further apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Unpack

from torch import Tensor

from dltrain.data.captioning import CaptionedImages, CaptionKeys
from dltrain.data.datamodule import SPLITS
from dltrain.data.images import write_images
from dltrain.data.scenes import COLOURS, SceneObject, Scenes, counts_by_split

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SMALL_PX, LARGE_PX = 16, 23  # of the longer side
MIDDLE_PX = (SMALL_PX + LARGE_PX) / 2  # between the two, `small` is true below this and `large` above it
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class SceneCaptions(CaptionedImages):
    """Scenes with their captions; the keys are those of scenes.SceneBoxes and of captioning.CaptionedImages."""

    def __init__(self, *, sizes_px: list[int], max_objects: int, num_train: int, **keys: Unpack[CaptionKeys]):
        super().__init__(**keys)
        self.scenes, self.num_scenes = Scenes(self.image_px, sizes_px, max_objects), counts_by_split(num_train)
        self.images: dict[str, Tensor] = {}
        self.objects: dict[str, list[list[SceneObject]]] = {}

    def captions_by_split(self) -> dict[str, list[list[str]]]:
        for split in SPLITS:
            self.images[split], scenes = self.scenes.draw_split(split, self.num_scenes[split])
            self.objects[split] = [scene.objects for scene in scenes]
        return {split: [write_captions(objects) for objects in self.objects[split]] for split in SPLITS}

    def read_images(self, split: str, batches: list[Tensor]) -> Iterator[Tensor]:
        for indices in batches:
            yield self.images[split][indices]

    def is_true(self, split: str, index: int, sentence: str) -> bool:
        return is_true(sentence, self.objects[split][index])

    def write_samples(self, folder: Path) -> str:
        return write_images(self.images["test"][:8], folder)


def longer_side(obj: SceneObject) -> int:
    x1, y1, x2, y2 = obj.box
    return max(x2 - x1, y2 - y1)


def centre(obj: SceneObject) -> tuple[float, float]:
    x1, y1, x2, y2 = obj.box
    return (x1 + x2) / 2, (y1 + y2) / 2


def name_object(obj: SceneObject, sized: bool = True, article: str = "a") -> str:
    """Names an object, as `a small red three`; with its size only if it is obvious and `sized`."""
    side = longer_side(obj)
    size = ["small"] if side <= SMALL_PX else ["large"] if side >= LARGE_PX else []
    return " ".join([article, *(size if sized else []), obj.colour, DIGITS[obj.digit]])


def relate(first: SceneObject, second: SceneObject) -> str:
    """Returns the relation of the first object to the second, such as `left of`."""
    (x1, y1), (x2, y2) = centre(first), centre(second)
    if abs(x2 - x1) >= abs(y2 - y1):
        return "left of" if x1 < x2 else "right of"
    return "above" if y1 < y2 else "below"


def write_captions(objects: Sequence[SceneObject]) -> list[str]:
    """Writes five captions, in a fixed order of forms; the object on the left, or above, is named first."""
    if len(objects) == 1:
        (obj,) = objects
        return [name_object(obj), f"there is {name_object(obj)}", f"{name_object(obj, sized=False)} on dark ground",
                f"the digit {DIGITS[obj.digit]} in {obj.colour}", f"{name_object(obj)} alone"]
    if len(objects) == 2:
        first, second = objects if relate(*objects) in ("left of", "above") else reversed(objects)
        relation = relate(first, second)
        return [f"{name_object(first)} {relation} {name_object(second)}",
                f"{OPPOSITE[relation]} {name_object(first)} is {name_object(second)}",
                f"{name_object(first, False)} and {name_object(second, False)}",
                f"there is {name_object(first, False)} {relation} {name_object(second, False)}",
                f"{name_object(first, False, 'the')} is {relation} {name_object(second, False, 'the')}"]
    in_order = sorted(objects, key=centre)
    sized, plain = [name_object(obj) for obj in in_order], [name_object(obj, False) for obj in in_order]
    return [join_names(sized), join_names(plain), f"there are {join_names(sized)}", f"there are {join_names(plain)}",
            f"from left to right {join_names(plain)}"]


def join_names(names: list[str]) -> str:
    return f"{' , '.join(names[:-1])} and {names[-1]}"


NAME = re.compile(rf"(?:a|the) (?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(DIGITS)})"
                  rf"|the digit ({'|'.join(DIGITS)}) in ({'|'.join(COLOURS)})")
SEPARATOR = re.compile(rf" (?:is )?({'|'.join(OPPOSITE)}) | and | , ")
INVERSION = re.compile(rf"({'|'.join(OPPOSITE)}) (.*) is (.*)")
FRAME = re.compile(r"(?:there (?:is|are) |from left to right )?(.*?)(?: on dark ground| alone)?")


def is_true(sentence: str, objects: Sequence[SceneObject]) -> bool:
    """Returns whether the sentence names each object of the scene once, with its digit and colour, and nothing else,
    and all sizes and relations that it states hold."""
    inverted = INVERSION.fullmatch(sentence)
    framed = FRAME.fullmatch(f"{inverted[3]} {inverted[1]} {inverted[2]}" if inverted else sentence)
    assert framed is not None
    remaining, names, relations = framed[1], [], []
    while (match := NAME.match(remaining)) is not None:
        size, colour, digit = match[1], match[2] or match[5], match[3] or match[4]
        names.append((size, colour, DIGITS.index(digit)))
        remaining = remaining[match.end() :]
        separator = SEPARATOR.match(remaining)
        if separator is None:
            break
        relations.append(separator[1])
        remaining = remaining[separator.end() :]
    if remaining or len(names) != len(objects) or len(relations) != len(names) - 1:
        return False
    return any(all(name_fits(name, obj) for name, obj in zip(names, order, strict=True))
               and all(relation is None or relation_holds(relation, *order[n : n + 2])
                       for n, relation in enumerate(relations))
               and (not sentence.startswith("from left") or list(order) == sorted(order, key=centre))
               for order in permutations(objects))


def name_fits(name: tuple[str | None, str, int], obj: SceneObject) -> bool:
    size, colour, digit = name
    side = longer_side(obj)
    return colour == obj.colour and digit == obj.digit and (
        size is None or (size == "small" and side < MIDDLE_PX) or (size == "large" and side > MIDDLE_PX))


def relation_holds(relation: str, first: SceneObject, second: SceneObject) -> bool:
    (x1, y1), (x2, y2) = centre(first), centre(second)
    return {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}[relation]
