"""One run in order: data, model and task, trainer, fit, test. Everything it needs is in its config."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import nn

from dltrain import __version__, checkpoints, processes, same_config, same_data, training_state
from dltrain.batches import generator
from dltrain.build import BUILT, build, build_data, build_task, build_trainer, check_first_step, locate_all
from dltrain.config.interpolations import to_plain
from dltrain.data.datamodule import DataModule
from dltrain.devices import device_name, place_on_gpu, set_matmul_precision, set_up_device
from dltrain.disk import writing
from dltrain.drawing.tables import format_count, format_duration
from dltrain.errors import UserError
from dltrain.hyperparameters import log_hyperparameters
from dltrain.memory import keep_freed_memory
from dltrain.models.anchors import anchor_sizes, fit_anchors, mean_best_iou, scale_boxes
from dltrain.monitored import check_monitored
from dltrain.pretrained import load_pretrained, nodes, pretrained_of
from dltrain.ranks import is_first_process, is_rank
from dltrain.run_code import describe_changed_code, write_own_code
from dltrain.run_dir import RunDir
from dltrain.run_lock import locked
from dltrain.run_log import logging_to
from dltrain.signals import Signals, leave_to_dltrain
from dltrain.stored_files import repair_metrics
from dltrain.tasks.task import Task
from dltrain.weights import load_weights

log = logging.getLogger("dltrain")


def train(config: DictConfig, run_dir: RunDir, comments: Mapping[str, str] | None = None,
          command: list[str] | None = None) -> dict[str, Any]:
    """Trains in the run folder, from its newest checkpoint if it has one, tests the best weights, returns the result.

    A finished run is not changed. `comments`: the rules of the keys, to be written into config.yaml; None: those in the
    config.yaml that is there, if any. `command`: what command.txt records, by default the command line."""
    run_dir.refuse_links()
    if run_dir.is_finished:
        print(run_dir.describe_finished())
        return run_dir.read_result()
    if config.trainer.devices > 1 and not is_rank():
        processes.train(config, run_dir, comments, command)
        return run_dir.read_result()
    keep_freed_memory()
    first = is_first_process()
    log_file = run_dir.path / "log.txt" if first else None
    with locked(run_dir.path) if first else nullcontext(), logging_to(log_file, first), Signals() as signals:
        source, note = checkpoints.find_newest(run_dir.path / "checkpoints")
        saved = training_state.read_own(run_dir, source, for_training=True) if source else None
        set_up_device(config.trainer)
        had_config = run_dir.has_config
        free_changes = [change for change in same_config.changes(run_dir, config) if change.is_free]
        same_config.forget_sizes(run_dir, config)
        locate_all(config, *BUILT, "trainer")
        data = build_data(config, run_dir.read_vocabularies() if run_dir.accepts_changed_data else None)
        record = same_data.Record.of(data)
        changed_data = same_data.settle(run_dir, record, data) if saved else ""
        same_config.keep_anchors(run_dir, config)
        anchors = choose_anchors(config, data)
        run_dir.check_class_names(data.class_names)
        config.class_names = data.class_names
        run_dir.check_vocabularies(data.vocabularies)
        same_config.check_sizes(run_dir, config, data.sizes())
        task = build_task(config, data.vocabularies, fresh=saved is None)
        if source and saved:
            training_state.take_over(task, data, saved, source)
        check_first_step(config, data, task)
        if saved and first and (lost := repair_metrics(run_dir.path / "metrics.csv", saved["dltrain"]["metrics_rows"])):
            log.warning(f"dltrain: warning: {lost}")
        trainer, checkpointing = build_trainer(config, run_dir.path, data, task, signals, saved)
        check_monitored(data, task, trainer.callbacks)  # type: ignore[attr-defined]  # set by Lightning
        if first:
            run_dir.write_config(checkpointing.config, run_dir.comments() if comments is None else comments)
            run_dir.write_vocabularies(data.vocabularies)
            record.write(run_dir)
            run_dir.write_command(command)
            run_dir.write_environment(device_name(trainer))
            changed_code = describe_changed_code(run_dir) if saved else ""
            write_own_code(run_dir)
        if saved:
            checkpointing.load_state_dict(saved["callbacks"][checkpointing.state_key])
            log.info(f"{note + '; ' if note else ''}resuming {run_dir} from step {saved['global_step']} "
                     f"of {task.total_steps}")
            for line in filter(None, [same_config.describe_free(free_changes), changed_data]):
                log.info(line)
            if first and changed_code:
                log.warning(f"dltrain: warning: {changed_code}")
        else:
            if had_config and first:
                log.info(f"{run_dir} has no checkpoint yet: it begins anew")
            task.fit_statistics(data)
            lines = [introduction(data, task, trainer), *data.describe_contents(), anchors]
            log.info("\n".join(filter(None, lines)))
            for line in [*data.list_warnings(), *overlaps(config, record)]:
                log.warning(f"dltrain: warning: {line}")
            if first and data.left_out:
                log.info(run_dir.write_left_out(data.left_out))
            if first and data.damaged_exif:
                log.info(run_dir.write_damaged_exif(data.damaged_exif))

        signals.record()
        if saved is None or saved["global_step"] < task.total_steps or checkpointing.validation_due:
            place_on_gpu(config.trainer, data, task, trainer.strategy.root_device)
            with training_state.restoring(source):
                trainer.fit(task, datamodule=data, ckpt_path=source)
        steps = max(trainer.global_step, saved["global_step"] if saved else 0)  # fewer if a callback ended the run
        load_weights(task, checkpoints.read(run_dir.best_checkpoint), run_dir.best_checkpoint)
        trainer.test(task, datamodule=data, verbose=False)
        test_metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("test/")}

        result = {**test_metrics, task.headline: checkpointing.best, "best_epoch": checkpointing.best_epoch,
                  "headline": task.headline, "headline_mode": task.headline_mode, "steps": steps,
                  "seconds": round(checkpointing.elapsed_seconds(), 1), "parameters": num_parameters(task.model),
                  "seed": config.seed, "folder": str(run_dir), "version": __version__, **config.choices}
        if first:
            words = write_samples(data, run_dir.path / "samples")
            run_dir.write_json("result.json", result)
            log_hyperparameters(trainer, checkpointing.config, result, run_dir.typed_keys())
            log.info(closing_message(result, run_dir, task.total_epochs, config.output_dir, words))
        return result


def write_samples(data: DataModule, folder: Path) -> str:
    """A few test samples to predict on. Returns the words after `dltrain predict run=...` that do so."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
        return data.write_samples(folder)


def choose_anchors(config: DictConfig, data: DataModule) -> str:
    """With model.anchors=auto, writes the sizes of anchors that fit the training boxes into the config, unless a run's
    config has them already. Returns a line with the sizes; "" where nothing was chosen."""
    keys = config.model
    if keys.get("anchors") != "auto" or keys.anchor_boxes is not None:
        return ""
    fixed = anchor_sizes(keys.anchor_px, keys.ratios)
    sizes = scale_boxes(data.training_boxes(), keys.short_px, keys.long_px)
    try:
        fitted = fit_anchors(sizes, len(fixed), generator("anchors", config.seed))
    except ValueError as error:
        raise UserError(f"model.anchors=auto: {error}") from None
    keys.anchor_boxes = [[round(side, 1) for side in size] for size in fitted.tolist()]
    listed = ", ".join(f"{width:g} x {height:g}" for width, height in keys.anchor_boxes)
    return (f"anchors fitted to the training boxes: mean best IoU {mean_best_iou(sizes, fitted):.3f}, fixed ones "
            f"{mean_best_iou(sizes, fixed):.3f}; {listed} px")


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


def study(config: DictConfig, run_dir: RunDir, comments: Mapping[str, str], config_dir: str | None) -> None:
    """Runs a study: calls the function that `study._target_` names, with the other keys of `study`."""
    run_dir.refuse_links()
    if run_dir.is_finished:
        print(run_dir.describe_finished())
        return
    with locked(run_dir.path), logging_to(run_dir.path / "log.txt"):
        before = {*run_dir.path.iterdir()}
        locate_all(config, "study")
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
            raise
        run_dir.write_json("result.json", {**values, "seed": config.seed, "folder": str(run_dir),
                                           "version": __version__})


def restore(config: DictConfig, run_dir: RunDir, checkpoint: str = "best") -> Task:
    """The run's task with its `best` or `last` weights, in evaluation mode. `config`: that of its config.yaml. Raises
    UserError if there is no such checkpoint yet."""
    saved = training_state.load_checkpoint(run_dir, checkpoint)
    task = build_task(config, run_dir.read_vocabularies(), fresh=False)
    if changed_code := describe_changed_code(run_dir):
        print(f"dltrain: warning: {changed_code}", file=sys.stderr)
    load_weights(task, saved, run_dir.checkpoint(checkpoint))
    return task.eval()


def device_of(config: DictConfig) -> torch.device:
    """Where predictions are made: a GPU if there is one and the trainer may use it, else the CPU."""
    set_matmul_precision(config.trainer)
    return torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")


class Evaluation(NamedTuple):
    """The metrics of some weights on a split, and how many of its samples were scored. `weights` says which weights:
    a file, or for those of a run `checkpoint`, `epoch` and `step`."""

    metrics: dict[str, float]
    samples: int
    weights: dict[str, str | int]


def evaluate(config: DictConfig, run_dir: RunDir, split: str, checkpoint: str = "best", progress_bar: bool = False
             ) -> Evaluation:
    """Measures the `best` or `last` weights of a run on the `train`, `val` or `test` split, on one device."""
    step = training_state.load_checkpoint(run_dir, checkpoint)["global_step"]
    keep_freed_memory()
    set_up_device(config.trainer)
    config.trainer.devices = 1
    data = build_data(config, run_dir.read_vocabularies())
    run_dir.check_class_names(data.class_names)
    if line := same_data.describe_measured(run_dir, data, split):
        log.warning(f"dltrain: warning: {line}")
    metrics, samples = measure(restore(config, run_dir, checkpoint), data, config, split, progress_bar)
    epoch, fault = run_dir.epoch_of(step)
    if fault:
        log.warning(f"dltrain: warning: {fault}; the epoch of step {step} is not known")
    return Evaluation(metrics, samples, {"checkpoint": checkpoint, "epoch": epoch, "step": step})


def load_data(config: DictConfig) -> DataModule:
    """The data of a config that has no run folder, for one device. What only the data know is written into the
    config."""
    keep_freed_memory()
    set_up_device(config.trainer)
    config.trainer.devices = 1
    data = build_data(config)
    choose_anchors(config, data)
    config.class_names = data.class_names
    return data


def evaluate_pretrained(config: DictConfig, split: str, progress_bar: bool = False) -> Evaluation:
    """Measures the weights that model.pretrained names, head and all, on a split, without a step of training. The
    statistics of normalisation are those of the training split."""
    data = load_data(config)
    pretrained = pretrained_of(config.model, "model")
    source = pretrained and (pretrained.weights or pretrained.from_run)
    if pretrained is None or not source:
        raise UserError("eval needs run=FOLDER, or a model with model.pretrained.weights=FILE or "
                        "model.pretrained.from_run=FOLDER")
    task = build_task(config, data.vocabularies, fresh=False)
    load_pretrained(task.model, pretrained, data.class_names, with_head=True)
    if pretrained.from_run and (line := same_data.describe_measured(RunDir(Path(pretrained.from_run)), data, split)):
        log.warning(f"dltrain: warning: {line}")
    check_first_step(config, data, task)
    task.fit_statistics(data)
    return Evaluation(*measure(task.eval(), data, config, split, progress_bar), {"weights": str(source)})


def measure(task: Task, data: DataModule, config: DictConfig, split: str, progress_bar: bool
            ) -> tuple[dict[str, float], int]:
    """The metrics of a split, and the number of samples that were scored."""
    trainer = pl.Trainer(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision,
                         logger=False, enable_checkpointing=False, enable_progress_bar=progress_bar,
                         enable_model_summary=False)
    leave_to_dltrain(trainer)
    task.validated_split = data.validated_split = "train" if split == "train" else "val"
    evaluation = trainer.test if split == "test" else trainer.validate
    evaluation(task, datamodule=data, verbose=False)
    return ({key: float(value) for key, value in trainer.callback_metrics.items()},
            sum(len(batch) for batch in data.eval_loader(split).batches))


def introduction(data: DataModule, task: Task, trainer: pl.Trainer) -> str:
    length = f"{format_count(task.total_steps, 'step')} in {format_count(task.total_epochs, 'epoch')}"
    held_out = f", {' and '.join(data.held_out)} held out of train" if data.held_out else ""
    return (f"{num_parameters(task.model):,} parameters; {data.describe()}{held_out}; {length} on "
            f"{device_name(trainer)}")


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def closing_message(result: dict[str, Any], run_dir: RunDir, total_epochs: int, output_dir: str, words: str) -> str:
    """`words`: what to type after `dltrain predict run=...` to try the run on its samples."""
    headline, rate = result["headline"], result["steps"] / max(result["seconds"], 1e-9)
    metrics = "  ".join(f"{key} {value:.4f}" for key, value in result.items()
                        if key.startswith("test/") and key.count("/") == 1)  # those of each class are in result.json
    words = words.replace(str(run_dir), shlex.quote(str(run_dir)))
    return "\n".join([
        metrics,
        f"best epoch {result['best_epoch']} of {total_epochs}: {headline} {result[headline]:.4f}",
        f"{format_duration(result['seconds'])}, {format_count(result['steps'], 'step')}, {rate:.1f} steps/s",
        f"{run_dir}",
        f"next: dltrain predict run={shlex.quote(str(run_dir))} {words}",
        f"      tensorboard --logdir {shlex.quote(output_dir)}",
    ])

