"""Begins a run with the checkpoint of another one: `dltrain fork` with other values, `dltrain extend` with more epochs.

Of the files of its folder config.yaml is the last that is written: a folder whose making was cut short is no run yet,
and the same command makes it again.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from dltrain import checkpoints, run_parent, same_config, stored_files, training_state
from dltrain.callbacks.branching import MARK
from dltrain.checkpoints import Checkpoint
from dltrain.config.interpolations import to_plain
from dltrain.dotted import select
from dltrain.errors import DivergedError, MachineError, UserError
from dltrain.run_dir import RunDir
from dltrain.run_lock import FolderInUse, locked
from dltrain.run_parent import Parent, place_of
from dltrain.tensor_files import BEST, LAST, PREVIOUS, kept_file

COPIED = ("vocabulary.json", "splits.json", "samples.tsv", "own_code.json")
# Where one of these changes, what the optimizer has accumulated is of other weights, or of another kind.
OF_MOMENTS = ("task.optimizer.name", "task.optimizer.lr_factors", "task.optimizer.decay_all", "task.freezing")
NOT_TAKEN = {"KeptCheckpoints", "StopWhen", "TimeLimit"}  # callbacks whose state is of the other run alone
KEPT = re.compile(r"epoch-(\d+)\.ckpt")


class Place(NamedTuple):
    """A whole checkpoint of a run. `epoch`: whole epochs that were done; `is_between`: none is half done."""

    file: Path
    state: Checkpoint
    epoch: int
    is_between: bool

    @property
    def step(self) -> int:
        return int(self.state["global_step"])

    def __str__(self) -> str:
        return place_of(self.epoch, self.step)


def read_place(run_dir: RunDir, file: Path) -> Place:
    """Raises CheckpointError for a damaged file."""
    state = training_state.read_own(run_dir, file, for_training=True)
    done = state["loops"]["fit_loop"]
    return Place(file, state, done["epoch_progress"]["total"]["completed"],
                 done["epoch_loop.batch_progress"]["current"]["completed"] == 0)


def find_place(run_dir: RunDir, at: str) -> Place:
    """`at`: last, best or epoch:N. Raises UserError where the run has no such checkpoint."""
    folder = run_dir.path / "checkpoints"
    kept = sorted(int(match[1]) for file in folder.glob("epoch-*.ckpt") if (match := KEPT.fullmatch(file.name)))
    newest = training_state.find_newest(run_dir)
    if newest is None:
        raise UserError(f"run={run_dir}: no checkpoint yet; dltrain resume run={run_dir} continues the run")
    last = read_place(run_dir, newest.file)
    if at == "last":
        return last
    epoch = last.state["callbacks"]["Checkpointing"]["best_epoch"] if at == "best" else int(at.partition(":")[2])
    if epoch in kept:
        return read_place(run_dir, folder / kept_file(epoch))
    for place in (last, *([read_place(run_dir, folder / PREVIOUS)] if (folder / PREVIOUS).is_file() else [])):
        if place.is_between and place.epoch == epoch:
            return place
    weights = (f"; of epoch {epoch} it has the weights alone: a new run with model.pretrained.from_run={run_dir} "
               "begins with them, where the model takes it") if at == "best" else ""
    there = ", ".join([*(f"epoch:{number}" for number in kept), f"last ({last})"])
    raise UserError(f"run={run_dir}: no whole checkpoint of epoch {epoch}; at= may be {there}{weights}; "
                    "trainer.keep_checkpoints.every_epochs=1 keeps one of each epoch")


def begin(parent: RunDir, place: Place, run_dir: RunDir, config: DictConfig, changed: Iterable[str]) -> None:
    """Makes the folder of a run that continues from `place` with `config`; does nothing if it is made already.
    `changed`: the keys whose values the command gives. Raises UserError where the folder has another run, and where the
    run is not longer than what is done."""
    note_place(config, place)
    plain = to_plain(config)
    changes = changes_of(parent, plain, changed)
    link = Parent(os.path.relpath(parent.path, run_dir.path), place.epoch, place.step, changes)
    if run_dir.has_config:
        if run_parent.read(run_dir.path) != link:
            raise UserError(f"{run_dir} began otherwise; choose another name=, or continue it by dltrain resume "
                            f"run={run_dir}")
        return
    readings, best = readings_before(parent, place), best_before(parent, place)  # before the folder is made
    with locked(run_dir.path):
        for name in COPIED:
            if (parent.path / name).is_file():
                shutil.copyfile(parent.path / name, run_dir.path / name)
        stored_files.write_text(run_dir.path / "metrics.csv", readings)
        copy_checkpoints(parent, run_dir, place, best, plain)
        run_parent.write(run_dir.path, link)
        run_dir.write_config({key: value for key, value in plain.items() if key != "version"}, parent.comments())


def changes_of(parent: RunDir, config: Mapping[str, Any], changed: Iterable[str]) -> dict[str, Any]:
    """The values of `changed`, and of the keys below them, that are not the parent's, by key."""
    return {change.key: change.now for change in same_config.differences(parent.read_config(), config)
            if any(change.key == key or change.key.startswith(f"{key}.") for key in changed)}


def refuse_other(parent: RunDir, at: str, run_dir: RunDir, config: DictConfig, changed: Iterable[str]) -> None:
    """Raises UserError where a run that is finished is not the one that the command describes. The checkpoint may be
    gone: of the place, only the epoch that `at` names is compared."""
    link = run_parent.read(run_dir.path)
    number = at.rpartition(":")[2]
    if (link is None or link.folder(run_dir.path).resolve() != parent.path.resolve()
            or (number.isdigit() and link.epoch != int(number))
            or without_steps(link.changes) != without_steps(changes_of(parent, to_plain(config), changed))):
        beginning = f" (it {link.describe(run_dir.path)})" if link else ""
        raise UserError(f"{run_dir} began otherwise{beginning}, and is finished; choose another name=")


def without_steps(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Where the run was made longer is known only from the checkpoint."""
    return {key: [{**entry, "at": None} for entry in value] if key == "trainer.extended" else value
            for key, value in changes.items()}


@contextmanager
def removed_if_refused(run_dir: RunDir) -> Iterator[None]:
    """Around the training: a run that is refused before its first step leaves no folder."""
    try:
        yield
    except UserError as error:
        last = run_dir.path / "checkpoints" / LAST
        began = isinstance(error, DivergedError | MachineError | FolderInUse)
        if not began and checkpoints.find_fault(last) is None and MARK in checkpoints.read(last)["dltrain"]:
            shutil.rmtree(run_dir.path)
            if "size mismatch for " in str(error):
                raise UserError(f"the shapes of the weights differ ({str(error).rpartition('; the checkpoint')[0]}): "
                                "dltrain fork keeps them; a new run with other shapes begins anew") from None
        raise


def note_place(config: DictConfig, place: Place) -> None:
    """In a run that is made longer: the step at which it continues."""
    keys = config.trainer
    if keys.smoke_steps is not None:
        raise UserError(f"trainer.smoke_steps={keys.smoke_steps}: such a run only shows that it runs, and nothing can "
                        "begin with it; with trainer.smoke_steps=null it can")
    if keys.max_epochs is not None and keys.max_epochs <= place.epoch:
        raise UserError(f"trainer.max_epochs={keys.max_epochs}: {place.epoch} epochs are done already; more are needed")
    if keys.max_steps is not None and keys.max_steps <= place.step:
        raise UserError(f"trainer.max_steps={keys.max_steps}: {place.step:,} steps are done already; more are needed")
    if place.step == 0:
        raise UserError("no step is done yet; dltrain resume run= continues the run")
    if (extended := keys.get("extended")) and extended[-1].at is None:
        extended[-1].at = place.step


def readings_before(parent: RunDir, place: Place) -> str:
    """The content of metrics.csv, as far as it was written before the checkpoint."""
    content = stored_files.read_rows(parent.path / "metrics.csv", place.state["dltrain"]["metrics_rows"])
    text = StringIO(newline="")
    writer = csv.DictWriter(text, content.columns)
    writer.writeheader()
    writer.writerows(row for row in content.rows if row is not None)
    return text.getvalue()


def best_before(parent: RunDir, place: Place) -> Checkpoint | None:
    """The best weights of the parent, unless they are of a later step."""
    best = checkpoints.read(parent.best_checkpoint) if parent.best_checkpoint.is_file() else None
    return best if best is not None and best["global_step"] <= place.step else None


def copy_checkpoints(parent: RunDir, run_dir: RunDir, place: Place, best: Checkpoint | None, config: Mapping[str, Any]
                     ) -> None:
    """The checkpoint, and the best weights up to it. Where the parent's best are of a later epoch, those of the
    checkpoint are the best so far."""
    folder = run_dir.path / "checkpoints"
    own = {**place.state["dltrain"], "config": dict(config),
           MARK: {"keeps_moments": keeps_moments(parent.read_config(), config), "epoch": place.epoch,
                  "lr": float(place.state["optimizer_states"][0]["param_groups"][0]["lr"])}}
    state = {**place.state, "dltrain": own}
    progress = dict(state["callbacks"]["Checkpointing"])
    if best is not None:
        weights = best
    else:
        weights = {key: value for key, value in state.items() if key in ("state_dict", "global_step", "epoch",
                                                                         "pytorch-lightning_version")}
        progress.update(best=progress.get("latest"), best_epoch=place.epoch)
    if progress["best"] is not None:
        checkpoints.save({**weights, "dltrain": {**weights.get("dltrain", own), "config": dict(config)}}, folder / BEST)
    state["callbacks"] = {key: value for key, value in state["callbacks"].items() if key not in NOT_TAKEN}
    state["callbacks"]["Checkpointing"] = progress
    checkpoints.save(state, folder / LAST)


def keeps_moments(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the moments of the optimizer are of the same weights and of the same kind."""
    return all(select(then, key) == select(now, key) for key in OF_MOMENTS)
