"""Gives steps of a run again, and compares them with what the run recorded. Nothing in its folder changes."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from dltrain import checkpoints, processes, run_parent, same_config, same_data, step_record
from dltrain.build import build_callbacks, build_data, build_task
from dltrain.callbacks.ending import TimeLimit
from dltrain.callbacks.figures import Figures
from dltrain.callbacks.first_steps import FirstSteps
from dltrain.callbacks.keeping import KeptCheckpoints
from dltrain.callbacks.progress import ProgressDisplay
from dltrain.callbacks.stopping import StopAtNonFinite
from dltrain.data.datamodule import DataModule
from dltrain.devices import device_name, place_on_gpu, set_up_device
from dltrain.errors import DivergedError, UserError
from dltrain.memory import keep_freed_memory
from dltrain.processes import RankError
from dltrain.proof.first_steps import Verdict, changed_code, changed_environment, compare_steps, read_record
from dltrain.proof.replay import Replay, StepWatch, read_step
from dltrain.proof.stopping import EnoughSteps, StopAfter
from dltrain.ranks import is_first_process, world_size
from dltrain.run_dir import RunDir
from dltrain.run_log import logging_to
from dltrain.signals import Signals
from dltrain.trainer import build_trainer

NEVER_MINUTES = 1e9
# callbacks of a run that this does without
LEFT_OUT = (Figures, KeptCheckpoints, ProgressDisplay, StopAtNonFinite, TimeLimit)
log = logging.getLogger("dltrain")


class Steps(NamedTuple):
    """The steps up to `last`, from the checkpoint `source` of the run or, if None, from its start. What the run would
    write is written into `folder`. With `watches`, step `watched` is looked into or, if None, the first one that is
    not finite; what it shows is written there too, see proof/replay.py."""

    folder: str
    last: int
    source: str | None = None
    watches: bool = False
    watched: int | None = None


def verify(config: DictConfig, run_dir: RunDir, num_steps: int | None) -> Verdict:
    """Gives the first `num_steps` steps of a run again, and compares. By default 20, or as many as the first reading
    has, for a run of an earlier version, which recorded nothing else. Raises UserError where there is nothing to
    compare with."""
    refuse_child(run_dir, "verify")
    record = read_record(run_dir.path)
    rows = run_dir.read_metrics() if (run_dir.path / "metrics.csv").is_file() else []
    if not record and not rows:
        raise UserError(f"run={run_dir}: it has no {step_record.FILE} and no readings in metrics.csv to compare with")
    last_step = num_steps or (step_record.NUM_STEPS if record else int(rows[0]["step"]))
    with TemporaryDirectory(prefix="dltrain-verify-") as folder:
        # the reading of an epoch's last step comes after it
        data = train_in_processes(config, run_dir, Steps(folder, last_step + 1)) or build_data(config)
        equal, parted = compare_steps(run_dir.path, Path(folder), last_step)
        if not equal and not parted:
            raise UserError(f"run={run_dir}: it recorded nothing up to step {last_step} to compare with; its first "
                            f"reading is at step {rows[0]['step']}")
        reasons = {"config": changed_config(run_dir), "data": changed_data(run_dir, data),
                   "environment": changed_environment(run_dir.path, Path(folder)),
                   "code": changed_code(run_dir.path, Path(folder))}
        return Verdict(equal, parted, reasons)


def changed_config(run_dir: RunDir) -> list[str]:
    """Keys of config.yaml that are not as in the newest checkpoint, where an edit does not reach them."""
    last = run_dir.checkpoint("last")
    if checkpoints.find_fault(last) is not None:
        return []
    then = checkpoints.read(last)["dltrain"].get("config")  # the first checkpoints of 0.2 have none
    changes = same_config.differences(then, run_dir.read_config()) if then else ()
    return [f"{change.key} ({change.then} then, {change.now} now)" for change in changes if not change.is_free]


def changed_data(run_dir: RunDir, data: DataModule) -> list[str]:
    """What differs from the data that the run began with, in words."""
    then, now = same_data.Record.read(run_dir), same_data.Record.of(data)
    splits = same_data.changed_splits(then, now, data)
    lines = [same_data.describe_changes(run_dir, then, now, splits)] if splits else []
    for check in (partial(run_dir.check_class_names, data.class_names),
                  partial(run_dir.check_vocabularies, data.vocabularies)):
        try:
            check()
        except UserError as error:
            lines.append(str(error))
    return lines


def replay(config: DictConfig, run_dir: RunDir, step: int | None, output: Path | None = None, from_start: bool = False,
           at_most: int = 2**62) -> Replay:
    """Gives `step` again or, if None, the steps from the last checkpoint on, up to `at_most`, until the loss or a
    gradient is not finite. Writes the table of the layers, its picture and that of the batch into `output`, by default
    FOLDER/replay/step_N. Raises UserError for a step that the run does not have."""
    last_step = at_most if step is None else step
    source = None if from_start else checkpoint_before(run_dir, last_step)
    place = f"{source.name} at step {checkpoints.read(source)['global_step']}" if source else "the start"
    with TemporaryDirectory(prefix="dltrain-replay-") as folder:
        train_in_processes(config, run_dir, Steps(folder, last_step, str(source) if source else None, True, step))
        record = read_step(Path(folder))
        if record is None:
            raise UserError(f"run={run_dir}: it has no step {step}" if step else (
                f"run={run_dir}: no loss and no gradient from {place} on is nan or infinite"))
        agreement, parted = compare_steps(run_dir.path, Path(folder), record.step)
        made = Replay(record, agreement, parted, f"given again from {place}", [])
        return made.write(Path(folder), output or run_dir.path / "replay" / f"step_{record.step}")


def train_in_processes(config: DictConfig, run_dir: RunDir, steps: Steps) -> DataModule | None:
    """As many as the run has, on this machine. Returns the data, None where other processes have read them."""
    OmegaConf.update(config, "trainer.devices", world_size(config.trainer))
    OmegaConf.update(config, "trainer.nodes", 1, force_add=True)
    if steps.source and (run_dir.path / "metrics.csv").is_file():
        shutil.copyfile(run_dir.path / "metrics.csv", Path(steps.folder) / "metrics.csv")
    if world_size(config.trainer) == 1:
        return train_steps(config, steps)
    processes.train_in_ranks(config, run_dir, steps=steps._asdict())
    return None


def train_steps(config: DictConfig, steps: Steps) -> DataModule:
    """In this process: the only one, or one of several. `config`: that of the run. Returns the data."""
    watch = StepWatch(steps.watched) if steps.watches else None
    config = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(config, resolve=True)))
    config.trainer.checkpoint_every_steps, config.trainer.checkpoint_every_minutes = None, NEVER_MINUTES
    folder, source, first = Path(steps.folder), Path(steps.source) if steps.source else None, is_first_process()
    keep_freed_memory()
    with logging_to(folder / "log.txt" if first else None, to_terminal=False):
        saved = checkpoints.read(source, for_training=True) if source else None
        data = build_data(config)
        task = build_task(config, data.vocabularies, fresh=saved is None)
        set_up_device(config.trainer)
        trainer, checkpointing = build_trainer(config, folder, data, task, Signals(), saved,
                                               build_callbacks(config))
        if first:
            RunDir(folder).write_environment(device_name(trainer.strategy.root_device))
        if saved:
            checkpointing.load_state_dict(saved["callbacks"][checkpointing.state_key])
        else:
            task.fit_statistics(data)
        callbacks: list[pl.Callback] = vars(trainer)["callbacks"]
        first_steps = next(callback for callback in callbacks if type(callback) is FirstSteps)
        callbacks[:] = [*(callback for callback in callbacks if type(callback) not in LEFT_OUT),
                        *([watch] if watch else []), StopAfter(steps.last)]
        place_on_gpu(config.trainer, data, task, trainer.strategy.root_device)
        with suppress(EnoughSteps):
            trainer.fit(task, datamodule=data, ckpt_path=source)
        if first:
            first_steps.write()
        if watch and watch.done:
            watch.write(folder)
        return data


@contextmanager
def explained(run_dir: RunDir) -> Iterator[None]:
    """Around a training: the error of one that diverges says which step was the first, and how to look into it."""
    try:
        yield
    except (DivergedError, RankError) as error:
        if error.exit_code != DivergedError.exit_code:
            raise
        raise DivergedError(explain(str(error), run_dir)) from error


def explain(error: str, run_dir: RunDir) -> str:
    """The error of a run that diverged, with the command that shows how. The steps since its last checkpoint are given
    again at once, and what the first that is not finite shows is written into the run folder."""
    stated = re.search(r"at step (\d+)", error)
    if stated is None:
        return error
    command = f"dltrain replay run={shlex.quote(str(run_dir))} step="
    log.info("the steps since the last checkpoint are given again, to see where it began; Ctrl-C leaves that out")
    try:
        made = replay(OmegaConf.create(run_dir.read_config()), run_dir, None, at_most=int(stated[1]) + 1)
    except (Exception, KeyboardInterrupt) as other:
        log.info(f"the step could not be given again: {other}")
        return f"{error}; {command}nonfinite shows where it began"
    step, folder = made.record.step, made.files[0].parent
    return (f"{error}; counted from 1, step {step} is the first whose loss or gradient is not finite; {folder} has its "
            f"layers and its batch ({command}{step})")


def checkpoint_before(run_dir: RunDir, step: int) -> Path | None:
    """The newest intact checkpoint of the run from which `step` can be given again; None if that is its start."""
    steps = {}
    folder = run_dir.path / "checkpoints"
    for file in (folder / checkpoints.LAST, folder / checkpoints.PREVIOUS, *folder.glob("epoch-*.ckpt")):
        if checkpoints.find_fault(file) is None and (done := checkpoints.read(file)["global_step"]) < step:
            steps[file] = done
    if not steps:
        refuse_child(run_dir, "replay")
    return max(steps, key=lambda file: steps[file], default=None)


def refuse_child(run_dir: RunDir, verb: str) -> None:
    """Raises UserError for a run that begins with the checkpoint of another one: its start cannot be given again."""
    if parent := run_parent.read(run_dir.path):
        raise UserError(f"run={run_dir} {parent.describe(run_dir.path)}, and has no checkpoint before that step; "
                        f"dltrain {verb} run={parent.folder(run_dir.path)} gives the steps before it")
