"""The config groups: the yaml files below configs/, read as text. The name of a file is its registration.

`ls`, `--help` and the refusals use this, so it imports neither Hydra nor torch. The first comment line of a file, after
an optional `# @package` line, describes the choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dltrain.config.schema import Loader, building
from dltrain.errors import UserError

PACKAGED = Path(__file__).parents[1] / "configs"  # in a wheel
CONFIGS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"  # in a checkout
GROUPS = ("model", "model/backbone", "data", "augment", "trainer", "recipe", "experiment")


def names(group: str, *folders: Path) -> list[str]:
    """The choices of a group in dltrain's configs and in `folders`, in natural order (resnet20 before resnet110)."""
    stems = {path.stem for folder in (CONFIGS, *folders) for path in (folder / group).glob("*.yaml")}
    return sorted(stems, key=natural_key)


def natural_key(name: str) -> list[str | int]:
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def path_of(group: str, name: str, *folders: Path) -> Path | None:
    """The file of a choice. dltrain's own come first, as in Hydra's search path."""
    for folder in (CONFIGS, *folders):
        if (path := folder / group / f"{name}.yaml").is_file():
            return path
    return None


def describe(path: Path) -> str:
    """The first comment line of a config that is neither `# @package ...` nor for an editor."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith(("# @", "# yaml-language-server:")):
            return line.lstrip("# ").strip()
    return ""


def header(path: Path, field: str) -> str:
    """The text after `# Field:` in a config's header, "" if it has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"# {field}:")), "")


def content(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is no config."""
    return packaged(path) if path.is_relative_to(CONFIGS) else read(path)


@cache
def packaged(path: Path) -> dict[str, Any]:
    return read(path)


def read(path: Path) -> dict[str, Any]:
    with building(path):
        values: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) or {}
    refuse_other_form(values, path)
    return values


def refuse_other_form(values: object, file: Path) -> None:
    """Raises UserError for what Hydra cannot read as a config, where it would raise errors of Python."""
    entries = values.get("defaults", []) if type(values) is dict else None
    if type(entries) is not list or not all(type(entry) is str or (type(entry) is dict and len(entry) == 1 and all(
            is_choice(group, name) for group, name in entry.items())) for entry in entries):
        raise UserError(f"{file}: not a config: it must have keys, and `defaults` a list of names and of group: name")


def is_choice(group: object, name: object) -> bool:
    names = name if type(name) is list else [name or ""]
    return type(group) is str and bool(group.rpartition(" ")[2].strip("/")) and all(type(one) is str for one in names)


def bases(path: Path) -> list[Path]:
    """The files that a config's defaults list includes by path, such as `/model/base/fcn`."""
    files = []
    for entry in content(path).get("defaults", []):
        if type(entry) is str and entry != "_self_":
            name = entry.partition("@")[0]
            files.append(CONFIGS / f"{name[1:]}.yaml" if name.startswith("/") else path.parent / f"{name}.yaml")
    return [file for file in files if file.is_file()]


def lineage(path: Path, *above: Path) -> Iterator[Path]:
    """The file and its bases, the last one first, each before its own. Raises UserError where they lead in a circle."""
    if path in above:
        raise UserError(f"{path}: the defaults lists lead in a circle: it includes itself")
    yield path
    for base in reversed(bases(path)):
        yield from lineage(base, *above, path)


def chosen_by(path: Path, group: str) -> str | None:
    """What a config's defaults list, or that of its bases, chooses of `group`: `- override /data: digits` chooses
    'digits'."""
    entries = (entry for file in lineage(path) for entry in reversed(content(file).get("defaults", [])))
    return next((value for entry in entries if type(entry) is dict for key, value in entry.items()
                 if key.removeprefix("override ").lstrip("/") == group and value), None)


def stated(path: Path, *keys: str) -> Any:
    """The value at nested `keys` in a config, or else in its bases; None where none states it."""
    for file in lineage(path):
        node: Any = content(file)
        for key in keys:
            node = node.get(key) if type(node) is dict else None
        if node is not None:
            return node
    return None


def matching_data(batch_type: str, *folders: Path) -> list[str]:
    """The data sets that yield this batch type."""
    return [name for name in names("data", *folders) if batch_type_of_data(name, *folders) == batch_type]


def batch_type_of_data(name: str, *folders: Path) -> str | None:
    path = path_of("data", name, *folders)
    return stated(path, "data", "batch_type") if path else None


def batch_type_of_model(name: str, *folders: Path) -> str | None:
    path = path_of("model", name, *folders)
    task = chosen_by(path, "task") if path else None
    file = path_of("task", task, *folders) if task else None
    return stated(file, "batch_type") if file else None


def shadowed(folder: Path) -> list[str]:
    """Choices in a user's config folder, as group/name, that are hidden by dltrain's own of the same name."""
    return sorted(f"{group}/{path.stem}" for group in (*GROUPS, "task") for path in (folder / group).glob("*.yaml")
                  if (CONFIGS / group / path.name).is_file())
