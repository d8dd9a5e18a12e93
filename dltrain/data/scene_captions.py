"""Scenes in words: five sentences of each, of digit, colour, size and place; and whether a sentence is true of one.

Sizes are said only where they are plain, as people do: a digit of up to SMALL_PX is small, from LARGE_PX on large. Of
two digits the place of one to the other is left, right, above or below, along the longer way between their centres.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.data import scenes
from dltrain.data.captioning import Captions
from dltrain.data.scenes import COLOURS, Scenes, Thing
from dltrain.data.sequences import SPLITS

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SMALL_PX, LARGE_PX = 16, 23  # of the longer side; between them no size is said, and in between of both is the middle
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class SceneCaptions(Captions):
    """`num_train` scenes and EVALUATED each for validation and test; the other keys as SceneBoxes."""

    def __init__(self, *, sizes_px: list[int], most: int, num_train: int, **keys: Any):
        super().__init__(**keys)
        if len(sizes_px) != 2 or sizes_px[0] > sizes_px[1]:
            raise ValueError(f"sizes_px must be [least, most], but is {sizes_px}")
        self.scenes = Scenes(self.image_px, (sizes_px[0], sizes_px[1]), most)
        self.num_scenes = {"train": num_train, "val": scenes.EVALUATED, "test": scenes.EVALUATED}
        self.images: dict[str, Tensor] = {}
        self.things: dict[str, list[list[Thing]]] = {}

    def described(self) -> dict[str, list[list[str]]]:
        for split in SPLITS:
            drawn = [self.scenes.draw(split, index) for index in range(self.num_scenes[split])]
            self.images[split] = torch.stack([scene.image for scene in drawn])
            self.things[split] = [scene.things for scene in drawn]
        return {split: [sentences(things) for things in self.things[split]] for split in SPLITS}

    def pictures(self, split: str, batches: list[Tensor]) -> Iterator[Tensor]:
        for indices in batches:
            yield self.images[split][indices]

    def is_true(self, split: str, number: int, sentence: str) -> bool:
        return is_true(sentence, self.things[split][number])

    def write_samples(self, folder: Path) -> str:
        for number, image in enumerate(self.images["test"][:8]):
            to_pil_image(image).save(folder / f"{number:02d}.png")
        return f"input={folder}"


def longer_side(thing: Thing) -> int:
    x1, y1, x2, y2 = thing.box
    return max(x2 - x1, y2 - y1)


def centre(thing: Thing) -> tuple[float, float]:
    x1, y1, x2, y2 = thing.box
    return (x1 + x2) / 2, (y1 + y2) / 2


def called(thing: Thing, sized: bool = True, article: str = "a") -> str:
    """`a small red three`; without a size where none is plain."""
    side = longer_side(thing)
    size = ["small"] if side <= SMALL_PX else ["large"] if side >= LARGE_PX else []
    return " ".join([article, *(size if sized else []), thing.colour, DIGITS[thing.digit]])


def place(one: Thing, other: Thing) -> str:
    (x, y), (u, v) = centre(one), centre(other)
    if abs(u - x) >= abs(v - y):
        return "left of" if x < u else "right of"
    return "above" if y < v else "below"


def sentences(things: list[Thing]) -> list[str]:
    """Five of a scene, always in the same order; the digit on the left, or above, is named first."""
    if len(things) == 1:
        (one,) = things
        return [called(one), f"there is {called(one)}", f"{called(one, sized=False)} on dark ground",
                f"the digit {DIGITS[one.digit]} in {one.colour}", f"{called(one)} alone"]
    if len(things) == 2:
        one, other = things if place(*things) in ("left of", "above") else reversed(things)
        way = place(one, other)
        return [f"{called(one)} {way} {called(other)}", f"{OPPOSITE[way]} {called(one)} is {called(other)}",
                f"{called(one, False)} and {called(other, False)}",
                f"there is {called(one, False)} {way} {called(other, False)}",
                f"{called(one, False, 'the')} is {way} {called(other, False, 'the')}"]
    inorder = sorted(things, key=centre)
    sized, plain = [called(thing) for thing in inorder], [called(thing, False) for thing in inorder]
    return [listed(sized), listed(plain), f"there are {listed(sized)}", f"there are {listed(plain)}",
            f"from left to right {listed(plain)}"]


def listed(names: list[str]) -> str:
    return f"{' , '.join(names[:-1])} and {names[-1]}"


NAME = re.compile(rf"(?:a|the) (?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(DIGITS)})"
                  rf"|the digit ({'|'.join(DIGITS)}) in ({'|'.join(COLOURS)})")
GLUE = re.compile(rf" (?:is )?({'|'.join(OPPOSITE)}) | and | , ")
BEFORE = re.compile(rf"({'|'.join(OPPOSITE)}) (.*) is (.*)")
FRAME = re.compile(r"(?:there (?:is|are) |from left to right )?(.*?)(?: on dark ground| alone)?")


def is_true(sentence: str, things: list[Thing]) -> bool:
    """Whether the sentence names every thing of the scene once and nothing else, with its digit and colour, and all
    that it says of sizes and places holds: small and large on their side of the middle, a place by the centres."""
    turned = BEFORE.fullmatch(sentence)
    framed = FRAME.fullmatch(f"{turned[3]} {turned[1]} {turned[2]}" if turned else sentence)
    assert framed is not None
    rest, names, ways = framed[1], [], []
    while (found := NAME.match(rest)) is not None:
        size, colour, digit = found[1], found[2] or found[5], found[3] or found[4]
        names.append((size, colour, DIGITS.index(digit)))
        rest = rest[found.end() :]
        glue = GLUE.match(rest)
        if glue is None:
            break
        ways.append(glue[1])
        rest = rest[glue.end() :]
    if rest or len(names) != len(things) or len(ways) != len(names) - 1:
        return False
    return any(all(fits(name, thing) for name, thing in zip(names, order, strict=True))
               and all(way is None or holds(way, *order[n : n + 2]) for n, way in enumerate(ways))
               and (not sentence.startswith("from left") or list(order) == sorted(order, key=centre))
               for order in permutations(things))


def fits(name: tuple[str | None, str, int], thing: Thing) -> bool:
    size, colour, digit = name
    middle = (SMALL_PX + LARGE_PX) / 2
    side = longer_side(thing)
    return colour == thing.colour and digit == thing.digit and (
        size is None or (size == "small" and side < middle) or (size == "large" and side > middle))


def holds(way: str, one: Thing, other: Thing) -> bool:
    (x, y), (u, v) = centre(one), centre(other)
    return {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[way]
