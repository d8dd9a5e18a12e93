"""What can be chosen: the yaml files below configs/, read as text. A file's name is its registration.

Used by `ls`, `--help` and the refusals, so it imports neither Hydra nor torch. A file's first comment line (after an
optional `# @package` line) says in a few words what the choice is.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PACKAGED = Path(__file__).parent.parent / "configs"  # in a wheel
CONFIGS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"  # in a checkout
GROUPS = ("model", "model/backbone", "data", "augment", "trainer", "recipe", "experiment")
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def names(group: str, *folders: Path) -> list[str]:
    """The choices of a group, sorted by name and number (resnet20 before resnet110)."""
    found = {path.stem for folder in (CONFIGS, *folders) for path in (folder / group).glob("*.yaml")}
    return sorted(found, key=natural)


def natural(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def path_of(group: str, name: str, *folders: Path) -> Path | None:
    """The file behind a choice; dltrain's own come first, as in Hydra's search."""
    for folder in (CONFIGS, *folders):
        if (path := folder / group / f"{name}.yaml").is_file():
            return path
    return None


def describe(path: Path) -> str:
    """The first comment line of a config that is not `# @package ...`."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").strip()
    return ""


@cache
def content(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) or {}


def chosen_by(path: Path, group: str) -> str | None:
    """What a config's defaults list says of `group`, its bases asked too: `- override /data: digits` gives 'digits'."""
    answer = None
    for entry in content(path).get("defaults", []):
        if isinstance(entry, str):
            folder, _, name = entry.removeprefix("/").rpartition("/")
            if folder and (base := path_of(folder, name)):
                answer = chosen_by(base, group) or answer
            continue
        for key, value in entry.items():
            if key.removeprefix("override ").lstrip("/") == group:
                answer = value
    return answer


def data_that_fits(batch: str, *folders: Path) -> list[str]:
    """The data sets that yield this batch type."""
    return [name for name in names("data", *folders)
            if (path := path_of("data", name, *folders)) and content(path).get("data", {}).get("batch_type") == batch]


def batch_of_model(name: str, *folders: Path) -> str | None:
    path = path_of("model", name, *folders)
    task = chosen_by(path, "task") if path else None
    file = path_of("task", task, *folders) if task else None
    return content(file).get("batch_type") if file else None


def shadowed(folder: Path) -> list[str]:
    """Files of a user's config folder that dltrain's own of the same name hide: group/name."""
    return sorted(f"{group}/{path.stem}" for group in (*GROUPS, "task") for path in (folder / group).glob("*.yaml")
                  if (CONFIGS / group / path.name).is_file())
