"""The runs below a folder: their configs, states, results and parents. One that cannot be read does not hide the
others. Nothing is written, no lock is taken and torch is not imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dltrain import run_parent, run_pause, stored_files
from dltrain.errors import UserError
from dltrain.runs.record import Origin, Run, State
from dltrain.runs.states import best_reading, state_of
from dltrain.sweeps.values import Values

NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
WITHOUT_RUNS = {"checkpoints", "samples", "replay"}  # folders of a run


def read_runs(root: Path) -> list[Run]:
    """In the natural order of their folders."""
    values = Values(refuse_incomplete)
    runs = [read_run(folder, files, values) for folder, files in sorted(folders_of_runs(root), key=by_path)]
    return [*with_headlines(runs)]


def refuse_incomplete(config: Mapping[str, Any], file: Path) -> None:
    """Raises UserError for the config of a run that lacks what each has; that of a study has other keys."""
    if "study" not in config:
        stored_files.refuse_incomplete_config(config, file)


def by_path(entry: tuple[Path, set[str]]) -> list[list[str | float]]:
    """lr0.05 before lr0.1 and lr0.1 before lr0.1_seed2."""
    return [[float(piece) if piece[:1].isdecimal() else piece for piece in NUMBER.split(name)]
            for name in entry[0].parts]


def folders_of_runs(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Those that have a config.yaml or checkpoints, with the names of what is in them. Links are not followed."""
    try:
        entries = [*os.scandir(folder)]
    except OSError:
        return
    names = {entry.name for entry in entries}
    if not names.isdisjoint(("config.yaml", "checkpoints")):
        yield folder, names
    for entry in entries:
        if entry.name not in WITHOUT_RUNS and entry.is_dir(follow_symlinks=False):
            yield from folders_of_runs(folder / entry.name)


def read_run(folder: Path, files: set[str], values: Values) -> Run:
    try:
        used = values.read_all(folder)
        if "config.yaml" not in files:
            raise UserError(f"{folder}: it has checkpoints, but no config.yaml; {stored_files.RESTORE}")
        if not used:
            stored_files.read_config(folder)  # which says what is wrong
        result = stored_files.read_result(folder / "result.json") if "result.json" in files else {}
        parent = run_parent.read(folder) if run_parent.FILE in files else None
        origin = Origin(parent.folder(folder), parent.epoch) if parent else None
        state = state_of(folder, files, result, used)
        if state.name in ("paused", "pruned"):
            result = headline_of_paused(folder)
        return Run(folder, state, used, result, origin)
    except UserError as error:
        return Run(folder, State("unreadable", reason=str(error)), {}, {})


def headline_of_paused(folder: Path) -> dict[str, Any]:
    paused = run_pause.read(folder)
    return {} if paused is None else {"headline": paused.headline, "headline_mode": paused.headline_mode,
                                      paused.headline: paused.value}


def with_headlines(runs: Iterable[Run]) -> Iterator[Run]:
    """A run that is not done has the best of its readings. Which metric decides is as in a run of the same task that
    is done."""
    runs = [*runs]
    known = {run.values.get("task._target_"): {key: run.result[key] for key in ("headline", "headline_mode")}
             for run in runs if run.headline}
    for run in runs:
        stated = known.get(run.values.get("task._target_"))
        if run.is_readable and not run.result and stated:
            best = best_reading(run.folder, *stated.values())
            yield run._replace(result=stated if best is None else {**stated, stated["headline"]: best})
        else:
            yield run
