"""The jobs of a sweep, which is a set of configs.

The id of a job is a hash of its config, without what changes neither weights nor metrics. So the same command does only
what is missing, and values may be added in any order, by commands of any form. `sweep.json` in the folder of a sweep
has the id, the folder and the words of every job of its commands.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dltrain.config.free_keys import EARLIER, FREE, OF_SEVERAL_PROCESSES
from dltrain.config.groups import GROUPS
from dltrain.disk import write_text
from dltrain.dotted import flatten
from dltrain.errors import CheckpointError, UserError
from dltrain.stored_files import read_json

FILE, OVERRIDES = "sweep.json", "overrides.txt"  # the words of a job are in its own folder too
NOT_IN_ID = FREE - {"data.root"}
LONGEST_VALUE, LONGEST_NAME = 24, 80  # characters, in the name of a folder
ADVICE = "delete it, the folders of the jobs have all that it says"


class Job(NamedTuple):
    """`name`: its folder, below that of the sweep. `words`: the overrides that compose its config."""

    id: str
    name: str
    words: list[str]


def job_id(config: Mapping[str, Any], sizes: Iterable[str] = ()) -> str:
    """Eight hexadecimal digits. `config`: plain, composed or stored; `sizes`: the keys of data that were read from
    files, which a composed config does not have yet."""
    values = flatten(config)
    left_out = NOT_IN_ID | {f"data.{key}" for key in sizes}
    if values.get("trainer.devices") == 1 and values.get("trainer.nodes", 1) == 1:
        left_out |= OF_SEVERAL_PROCESSES
    if values.get("model.anchors") == "auto":
        left_out |= {"model.anchor_boxes"}
    kept = {key: plain(value) for key, value in values.items() if value not in (None, {}, []) and key not in left_out
            and key.partition(".")[0] not in left_out and value != EARLIER.get(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def plain(value: object) -> object:
    """1 and 1.0 are the same number."""
    match value:
        case dict():
            return {str(key): plain(item) for key, item in value.items() if item is not None}
        case list():
            return [plain(item) for item in value]
        case bool() | str() | float():
            return value
        case int():
            return float(value)
    return str(value)


def label(words: Mapping[str, str], swept: Sequence[str]) -> str:
    """Such as `resnet20_lr0.1_seed3`: the values of the swept keys, without characters that a shell, a URL or
    TensorBoard takes for its own."""
    last = [key.rpartition(".")[2] for key in swept]
    pieces = []
    for key, name in zip(swept, last, strict=True):
        value = re.sub(r"[^\w.+-]+", "-", words[key]).strip("-")[:LONGEST_VALUE]
        if key in GROUPS:
            pieces.append(value)
        else:
            pieces.append((name if last.count(name) == 1 else key.replace(".", "-")) + value)
    return "_".join(pieces)[:LONGEST_NAME]


def assigned(words: Iterable[str]) -> dict[str, str]:
    """The keys of overrides with the texts of their values."""
    return dict(word.lstrip("+~").split("=", 1) for word in words if "=" in word)


def is_sweep(folder: Path) -> bool:
    """Whether it is the folder of a sweep, also of an earlier version, which had no list of its jobs."""
    return (folder / FILE).is_file() or any(folder.glob(f"*/{OVERRIDES}"))


def read(folder: Path) -> list[Job]:
    """The jobs of all commands, in the order of these."""
    file = folder / FILE
    if not file.is_file():
        return []
    stored = read_json(file, ADVICE)
    try:
        listed = [Job(str(id_), str(entry["folder"]), [*map(str, entry["words"])]) for id_, entry in
                  stored["jobs"].items()]
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{file}: damaged (must have the folder and the words of each job); {ADVICE}") from None
    for job in listed:
        if Path(job.name).name != job.name or job.name == "..":
            raise UserError(f"{file}: the folder of a job must be a name, but is '{job.name}'; {ADVICE}")
        if stray := [word for word in job.words if word.lstrip("+~").startswith(("hydra", "trust"))]:
            raise UserError(f"{file}: the words of a job are keys of its config, but one is '{stray[0]}'; {ADVICE}")
    return listed


def write(folder: Path, jobs: Iterable[Job]) -> None:
    """Adds jobs to those that are there."""
    every = {job.id: job for job in [*read(folder), *jobs]}
    content = {"jobs": {job.id: {"folder": job.name, "words": job.words} for job in every.values()}}
    write_text(folder / FILE, json.dumps(content, indent=1) + "\n")
