"""Choices that a command leaves open and that depend on the others, made before the config is composed.

A recipe: `fine_tuning` where a classifier starts from weights; else, where model and data have none by their names,
that of the model's family or of its task with the data. For a person's own photos: a model, a pipeline and a size, by
the size of the photos. Each becomes a word, as if it were typed, with the reason for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from hydra.core.override_parser.types import Override

from dltrain.config import groups
from dltrain.errors import DataError
from dltrain.image_files import image_size, is_hidden, scan_images
from dltrain.stored_files import read_config

MOST_CLASSES, MOST_PHOTOS = 20, 200  # headers are read of so many classes, of so many photos in all
TINY_PX, SMALL_PX, LARGE_PX = 24, 48, 256  # below, below, from: what `suit_photos` distinguishes
SIDES_PX = (224, 192, 160, 128, 96, 64)  # of the photos between small and large
SMALL_NET_PX = 64  # nets for pictures of 32 px get no larger ones


def choose(known: Mapping[str, str | None], overrides: list[Override], folders: list[Path]) -> dict[str, str]:
    """The words to add, each with its reason. `known`: the choices as Hydra lists them, the recipe's name even where it
    has no file. An experiment states its own photos and weights."""
    model, data, recipe = (str(known.get(group)) for group in ("model", "data", "recipe"))
    given = {override.key_or_group: str(override.value()) for override in overrides
             if not override.is_delete() and override.value() is not None}
    words: dict[str, str] = {}
    has_recipe = recipe != "none" and groups.path_of("recipe", recipe, *folders)
    if data == "image_folder" and not known.get("experiment") and not has_recipe:
        words = suit_photos(given, folders)
        model = next((word.partition("=")[2] for word in words if word.startswith("model=")), model)
    if "recipe" not in given and recipe == f"{known.get('model')}-on-{data}":
        words |= suit_recipe(model, data, {} if known.get("experiment") else given, folders)
    return words


def suit_recipe(model: str, data: str, given: Mapping[str, str], folders: list[Path]) -> dict[str, str]:
    """`fine_tuning` where a classifier's weights are given; the recipe of the family, or of the task, where model and
    data have none by their names."""
    file = groups.path_of("model", model, *folders)
    family, task = (groups.stated(file, "recipe_family"), groups.chosen_by(file, "task")) if file else (None, None)
    source = next((key for key in ("model.pretrained.weights", "model.pretrained.from_run") if key in given), None)
    if source and task == "classification":
        return {"recipe=fine_tuning": source}
    if groups.path_of("recipe", f"{model}-on-{data}", *folders):
        return {}
    candidates = {f"{family}-on-{data}": f"the family of model={model}", f"{task}-on-{data}": f"task={task}"}
    return next(({f"recipe={name}": reason} for name, reason in candidates.items()
                 if groups.path_of("recipe", name, *folders)), {})


def suit_photos(given: Mapping[str, str], folders: list[Path]) -> dict[str, str]:
    """A model, a pipeline and data.image_px, as far as they are not given, by the median of the photos' short sides.
    Nothing where data.root has no photos that can be read: the data say so."""
    root = Path(given.get("data.root", "")).expanduser()
    sides = short_sides(root) if "data.root" in given and root.is_dir() else []
    if not sides:
        return {}
    side = round(median(sides))
    model = given.get("model") or ("resnet20" if side < SMALL_PX else "resnet18")
    augment = next(name for name, below in (("digits", TINY_PX), ("cifar", SMALL_PX), ("photos", LARGE_PX),
                                            ("imagenet", math.inf)) if side < below)
    word_of = {"model": f"model={model}", "augment": f"augment={augment}"}
    file = groups.path_of("augment", given.get("augment", augment), *folders)
    if file and groups.stated(file, "test_crop_px") is None:  # which fixes the size itself
        word_of["data.image_px"] = f"data.image_px={size_for(side, model, given, folders)}"
    reason = f"photos of {side} px, the median short side of {len(sides)}"
    return {word: reason for key, word in word_of.items() if key not in given}


def size_for(side: int, model: str, given: Mapping[str, str], folders: list[Path]) -> int:
    """The pixels of a side that a photo is scaled to: as those that the weights' run has seen, or not above `side`."""
    if run := given.get("model.pretrained.from_run"):
        config = read_config(Path(run).expanduser(), "model.pretrained.from_run")
        seen: int | None = config["data"].get("image_px")
        if seen is not None:
            return seen
    if side < SMALL_PX:
        return max(8, side) if side < TINY_PX else 32
    file = groups.path_of("model", model, *folders)
    is_for_photos = file is not None and groups.chosen_by(file, "data") == "image_folder"
    return next(px for px in (*SIDES_PX, 0) if px <= max(side, SIDES_PX[-1]) and (is_for_photos or px <= SMALL_NET_PX))


def short_sides(root: Path) -> list[int]:
    """Of some photos of some classes, evenly spaced, from their headers. Files that cannot be read are left out."""
    base = next((path for path in root.iterdir() if path.is_dir() and path.name.lower() in ("train", "training")), root)
    folders = sorted(path for path in base.iterdir() if path.is_dir() and not is_hidden(path.name))
    classes = spaced(folders, MOST_CLASSES)
    sides = []
    for folder in classes:
        for path in spaced(scan_images(folder)[0], MOST_PHOTOS // len(classes)):
            try:
                sides.append(min(image_size(path)))
            except DataError:
                continue
    return sides


def spaced(paths: list[Path], most: int) -> list[Path]:
    return [paths[index * len(paths) // most] for index in range(most)] if len(paths) > most else paths
