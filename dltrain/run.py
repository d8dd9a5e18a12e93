"""One run in order: data, model and task, trainer, fit, test. Everything it needs is in its config."""

from __future__ import annotations

import copy
import importlib
import logging
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import nn

from dltrain import __version__, checkpoints, processes, run_parent, run_pause, same_config, same_data, training_state
from dltrain.build import (
    BUILT,
    build,
    build_callbacks,
    build_data,
    build_loggers,
    build_task,
    check_first_step,
    locate_all,
)
from dltrain.callbacks import branching
from dltrain.callbacks.ending import StopWhen, TimeLimit
from dltrain.callbacks.pausing import Pause, Prunes
from dltrain.config.interpolations import to_plain
from dltrain.data.datamodule import DataModule
from dltrain.devices import check_device, device_name, place_on_gpu, set_up_device, threads_of
from dltrain.disk import writing
from dltrain.drawing.tables import format_count, format_duration
from dltrain.errors import UserError
from dltrain.fitted_anchors import choose_anchors
from dltrain.hyperparameters import log_hyperparameters
from dltrain.memory import keep_freed_memory
from dltrain.monitored import check_monitored
from dltrain.pretrained import nodes, pretrained_of
from dltrain.ranks import is_first_process, is_rank, world_size
from dltrain.run_code import describe_changed_code, write_own_code
from dltrain.run_device import describe_other_device
from dltrain.run_dir import RunDir
from dltrain.run_lock import locked
from dltrain.run_log import logging_to
from dltrain.signals import Signals
from dltrain.stored_files import repair_metrics
from dltrain.tasks.task import Task
from dltrain.trainer import build_trainer
from dltrain.weights import load_weights

log = logging.getLogger("dltrain")


def train(config: DictConfig, run_dir: RunDir, comments: Mapping[str, str] | None = None,
          command: list[str] | None = None, until_epoch: int | None = None, prunes: Prunes | None = None
          ) -> dict[str, Any]:
    """Trains in the run folder, from its newest checkpoint if it has one, tests the best weights, returns the result.

    A finished run is not changed. `comments`: the rules of the keys, to be written into config.yaml; None: those in the
    config.yaml that is there, if any. `command`: what command.txt records, by default the command line.
    `until_epoch`, `prunes`: the training ends earlier, see callbacks/pausing.py. Then nothing is tested, paused.json
    states where it ended, the result is empty, and the next call continues the run on the schedule of its whole length;
    its bits are those of a run that was not paused. `prunes` is for runs of one process."""
    run_dir.refuse_links()
    if run_dir.is_finished:
        print(run_dir.describe_finished())
        return run_dir.read_result()
    same_config.keep_threads(run_dir, config)
    same_config.keep_processes(run_dir, config)
    if world_size(config.trainer) > 1 and not is_rank():
        check_device(config.trainer)
        processes.train(config, run_dir, comments, command, until_epoch)
        return run_dir.read_result() if run_dir.is_finished else {}  # of other nodes the first one writes it
    keep_freed_memory()
    first = is_first_process()
    log_file = run_dir.path / "log.txt" if first else None
    with locked(run_dir.path) if first else nullcontext(), logging_to(log_file, first), Signals() as signals, (
            threads_of(config.trainer)):
        newest = training_state.find_newest(run_dir)
        set_up_device(config.trainer)
        data, record, notes = read_data(config, run_dir, resumes=newest is not None)
        task = build_task(config, data.vocabularies, fresh=newest is None)
        if newest:
            training_state.take_over(task, data, newest)
        check_first_step(config, data, task)
        if newest and first:
            warn(repair_metrics(run_dir.path / "metrics.csv", newest.metrics_rows))

        trainer, checkpointing = build_trainer(
            config, run_dir.path, data, task, signals, newest and newest.state, build_callbacks(config),
            build_loggers(config, run_dir.path))
        pause = Pause(checkpointing, task.total_steps, until_epoch, prunes)
        vars(trainer)["callbacks"].append(pause)
        check_monitored(data, task, trainer.callbacks)  # type: ignore[attr-defined]  # set by Lightning
        changed_code = describe_changed_code(run_dir) if newest and first else ""
        device = trainer.strategy.root_device
        moved = describe_other_device(run_dir, device, is_training=True) if newest and first else ""
        if first:
            write_beginning(run_dir, checkpointing.config, comments, data, record)
            run_dir.write_command(command)
            run_dir.write_environment(device_name(device))
            run_pause.forget(run_dir.path)

        if newest:
            checkpointing.load_state_dict(newest.state["callbacks"][checkpointing.state_key])
            line = describe_branch(run_dir, newest, task) or (
                f"{newest.note}resuming {run_dir} from step {newest.step} of {task.total_steps}")
            log.info("\n".join([line, *notes]))
            warn(changed_code, moved)
        else:
            task.fit_statistics(data)
            log.info("\n".join([introduction(data, task, trainer), *data.describe_contents(), *notes]))
            warn(*data.list_warnings(), *overlaps(config, record))
            if first:
                list_unusual_files(data, run_dir)

        signals.record()
        if newest is None or newest.step < task.total_steps or checkpointing.validation_due:
            place_on_gpu(config.trainer, data, task, device)
            with training_state.restoring(newest):
                trainer.fit(task, datamodule=data, ckpt_path=newest and newest.file)
        if pause.epoch:
            if first:
                paused = run_pause.Paused(pause.epoch, task.total_epochs, pause.steps, pause.is_pruned, task.headline,
                                          task.headline_mode, checkpointing.best or 0.0)
                run_pause.write(run_dir.path, paused)
                log.info(f"{paused}; dltrain resume run={shlex.quote(str(run_dir))} trains it to its end")
            return {}
        load_weights(task, checkpoints.read(run_dir.best_checkpoint), run_dir.best_checkpoint)
        trainer.test(task, datamodule=data, verbose=False)

        steps = max(trainer.global_step, newest.step if newest else 0)  # fewer if a callback ended the run
        ended_early = reason_of_end(trainer)
        result = {**{key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("test/")},
                  task.headline: checkpointing.best, "best_epoch": checkpointing.best_epoch,
                  "headline": task.headline, "headline_mode": task.headline_mode, "steps": steps,
                  **({"ended_early": ended_early} if ended_early else {}),
                  "seconds": round(checkpointing.elapsed_seconds(), 1), "parameters": num_parameters(task.model),
                  "seed": config.seed, "folder": str(run_dir), "version": __version__, **config.choices}
        if first:
            words = write_samples(data, run_dir.path / "samples")
            run_dir.write_json("result.json", result)
            log_hyperparameters(trainer, checkpointing.config, result, run_dir.typed_keys())
            page = write_page(run_dir)
            log.info(closing_message(result, page, task.total_epochs, config.output_dir, words, run_dir))
        return result


def read_data(config: DictConfig, run_dir: RunDir, resumes: bool) -> tuple[DataModule, same_data.Record, list[str]]:
    """The data of the config, which a run that `resumes` must have begun with, and their record. What only the data
    know is written into the config. Also returns lines for the user that say what was chosen, and what has changed."""
    began_before = run_dir.has_config
    free_changes = [change for change in same_config.changes(run_dir, config) if change.is_free]
    same_config.forget_sizes(run_dir, config)
    locate_all(config, *BUILT, "trainer")
    data = build_data(config, run_dir.read_vocabularies() if run_dir.accepts_changed_data else None)
    record = same_data.Record.of(data)
    changed_data = same_data.settle(run_dir, record, data) if resumes else ""
    same_config.keep_anchors(run_dir, config)
    anchors = choose_anchors(config, data)
    run_dir.check_class_names(data.class_names)
    config.class_names = data.class_names
    run_dir.check_vocabularies(data.vocabularies)
    same_config.check_sizes(run_dir, config, data.sizes())
    if resumes:
        notes = [same_config.describe_free(free_changes), changed_data]
    else:
        notes = [f"{run_dir} has no checkpoint yet: it begins anew" if began_before else "", anchors]
    return data, record, [line for line in notes if line]


def write_beginning(run_dir: RunDir, config: Mapping[str, object], comments: Mapping[str, str] | None, data: DataModule,
                    record: same_data.Record) -> None:
    """What a run is continued, evaluated and predicted with, beside its checkpoints."""
    run_dir.write_config(config, run_dir.comments() if comments is None else comments)
    run_dir.write_vocabularies(data.vocabularies)
    record.write(run_dir)
    write_own_code(run_dir)


def list_unusual_files(data: DataModule, run_dir: RunDir) -> None:
    """Lists in the run folder what was left out and what is damaged, and says how much it is."""
    if data.left_out:
        log.info(run_dir.write_left_out(data.left_out))
    if data.damaged_exif:
        log.info(run_dir.write_damaged_exif(data.damaged_exif))


def warn(*lines: str) -> None:
    for line in filter(None, lines):
        log.warning(f"dltrain: warning: {line}")


def write_samples(data: DataModule, folder: Path) -> str:
    """A few test samples to predict on. Returns the words after `dltrain predict run=...` that do so."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
        return data.write_samples(folder)


def overlaps(config: DictConfig, record: same_data.Record) -> list[str]:
    """Warnings where the run is evaluated on what the weights that it starts with were trained on."""
    sources = dict.fromkeys(source.from_run for key, node in nodes(config.model, "model")
                            if (source := pretrained_of(node, key)) and source.from_run)
    return [line for source in sources for line in same_data.describe_overlap(RunDir(Path(source)), record)]


class StudyContext(NamedTuple):
    """The arguments that the function of every study gets, besides its config keys."""

    folder: Path
    seed: int
    config_dir: str | None  # the user's config folder, whose choices the experiment may name too

    def all_seeds(self, numbers: Sequence[int]) -> list[int]:
        """Each of `study.seeds`, added to `seed`. Raises UserError where there is none, or one twice: a repeated seed
        is no repeated trial."""
        if not numbers:
            raise UserError("study.seeds: must not be empty")
        if twice := [number for place, number in enumerate(numbers) if number in numbers[:place]]:
            raise UserError(f"study.seeds: {twice[0]} is there twice, and gives the same run twice; leave one out")
        return [self.seed + number for number in numbers]


def study(config: DictConfig, run_dir: RunDir, comments: Mapping[str, str], config_dir: str | None) -> None:
    """Runs a study: calls the function that `study._target_` names, with the other keys of `study`."""
    run_dir.refuse_links()
    if same_config.has_all(run_dir, config):
        print(run_dir.describe_finished())
        return
    with locked(run_dir.path), logging_to(run_dir.path / "log.txt"):
        before = {*run_dir.path.iterdir()}
        kept = {file: file.read_bytes() for name in ("config.yaml", "result.json")
                if (file := run_dir.path / name) in before}
        locate_all(config, "study")
        (run_dir.path / "result.json").unlink(missing_ok=True)  # of fewer seeds
        run_dir.write_config(to_plain(config), comments)
        run_dir.write_command()
        run_dir.write_environment(f"cpu, {format_count(torch.get_num_threads(), 'thread')}")
        written = {*run_dir.path.iterdir()}
        try:
            values = build(config.study, "study", context=StudyContext(run_dir.path, config.seed, config_dir))
        except UserError:
            if {*run_dir.path.iterdir()} == written:  # refused before it began: leave the folder as it was
                for file in written - before:
                    file.unlink()
                for file, content in kept.items():
                    file.write_bytes(content)
            raise
        run_dir.write_json("result.json", {**values, "seed": config.seed, "folder": str(run_dir),
                                           "version": __version__})


def introduction(data: DataModule, task: Task, trainer: pl.Trainer) -> str:
    length = f"{format_count(task.total_steps, 'step')} in {format_count(task.total_epochs, 'epoch')}"
    held_out = f", {' and '.join(data.held_out)} held out of train" if data.held_out else ""
    many = trainer.world_size
    together = f"; {many} processes, together batches of {many * data.batch_size}" if many > 1 else ""
    return (f"{num_parameters(task.model):,} parameters; {data.describe()}{held_out}; {length} on "
            f"{device_name(trainer.strategy.root_device)}{together}")


def describe_branch(run_dir: RunDir, newest: training_state.Newest, task: Task) -> str:
    """Where a run begins that continues from another one, and what becomes of the learning rate; "" if it has gone on
    by itself."""
    parent = run_parent.read(run_dir.path)
    if not newest.branch or parent is None:
        return ""
    saved = copy.deepcopy(newest.state)
    branching.adapt(saved, task.configure_optimizers())
    moments = "" if newest.branch["keeps_moments"] else "; the optimizer begins without its moments"
    return (f"{parent.describe(run_dir.path)}; {task.total_steps - newest.step:,} more steps, to epoch "
            f"{task.total_epochs}; learning rate {newest.branch['lr']:.4g} before, "
            f"{saved['optimizer_states'][0]['param_groups'][0]['lr']:.4g} from here on{moments}")


def reason_of_end(trainer: pl.Trainer) -> str:
    """Why a run has ended before its full length; "" for one that has not."""
    callbacks: list[pl.Callback] = vars(trainer)["callbacks"]
    return next((one.reason for one in callbacks if isinstance(one, StopWhen | TimeLimit) and one.reason), "")


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def write_page(run_dir: RunDir) -> Path:
    """report.html, or the folder where it could not be written. What writes it reads the folder alone, and is loaded by
    its name when the run has ended, as a verb is."""
    page: Path = importlib.import_module("dltrain.reports.run_page").add_page(run_dir)
    return page


def closing_message(result: dict[str, Any], page: Path, total_epochs: int, output_dir: str, words: str,
                    run_dir: RunDir) -> str:
    """`page`: where to look. `words`: what to type after `dltrain predict run=...` to try the run on its samples."""
    headline, rate = result["headline"], result["steps"] / max(result["seconds"], 1e-9)
    metrics = "  ".join(f"{key} {value:.4f}" for key, value in result.items()
                        if key.startswith("test/") and key.count("/") == 1)  # those of each class are in result.json
    words = words.replace(str(run_dir), shlex.quote(str(run_dir)))
    early = f"; ended early: {result['ended_early']}" if "ended_early" in result else ""
    return "\n".join([
        metrics,
        f"best epoch {result['best_epoch']} of {total_epochs}: {headline} {result[headline]:.4f}{early}",
        f"{format_duration(result['seconds'])}, {format_count(result['steps'], 'step')}, {rate:.1f} steps/s",
        f"{page}",
        f"next: dltrain predict run={shlex.quote(str(run_dir))} {words}",
        f"      tensorboard --logdir {shlex.quote(output_dir)}",
    ])

