"""The story of one run, in order: data, model and task, trainer, fit, test. All it needs stands in its config."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dltrain import checkpoints, run_dir
from dltrain.build import build, build_data, build_task, build_trainer, check_first_step, device_name
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.callbacks.progress import format_duration
from dltrain.callbacks.stopping import Signals
from dltrain.errors import UserError

log = logging.getLogger("dltrain")


def train(config: DictConfig, path: Path) -> dict[str, Any]:
    """Trains in the run folder `path`, from its newest checkpoint where it has one, tests the best weights and returns
    the result. A finished run is not touched."""
    if run_dir.finished(path):
        print(f"{path} is finished, nothing to do; another name= makes another run")
        return dict(json.loads((path / "result.json").read_text()))
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0  # of several processes, the one that writes and speaks
    with run_dir.locked(path, first), run_dir.logging_to(path, first), Signals() as signals:
        data = build_data(config)
        config.class_names = data.class_names
        run_dir.check_vocabularies(path, data.vocabularies)
        source, note = checkpoints.find_newest(path / "checkpoints")
        saved = checkpoints.load(source) if source else None
        task = build_task(config, fresh=saved is None)
        check_first_step(config, data, task)
        trainer, checkpointing = build_trainer(config, path, data, task, signals, saved)
        if first:
            run_dir.write_config(path, checkpointing.config)
            run_dir.write_vocabularies(path, data.vocabularies)
            run_dir.write_command(path)
            run_dir.write_environment(path, device_name(trainer))
        if saved:
            checkpointing.load_state_dict(saved["callbacks"]["Checkpointing"])
            log.info(f"{note + '; ' if note else ''}resuming {path} from step {saved['global_step']} "
                     f"of {task.total_steps}")
        else:
            task.fit_statistics(data)
            log.info(introduction(data, task, trainer))

        if saved is None or saved["global_step"] < task.total_steps or checkpointing.validation_due:
            launch_from_folder(path)
            trainer.fit(task, datamodule=data, ckpt_path=source)
        task.load_state_dict(checkpoints.load(path / "checkpoints" / checkpoints.BEST)["state_dict"])
        trainer.test(task, datamodule=data, verbose=False)
        tested = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("test/")}

        result = {**tested, task.headline: checkpointing.best, "best_epoch": checkpointing.best_epoch,
                  "headline": task.headline, "headline_mode": task.headline_mode,
                  "steps": task.total_steps, "seconds": round(checkpointing.elapsed_seconds(), 1),
                  "parameters": count(task.model), "seed": config.seed, "folder": str(path), **config.choices}
        if first:
            record(trainer, checkpointing, result, path)
            (path / "samples").mkdir(exist_ok=True)
            words = data.write_samples(path / "samples")
            log.info(closing_words(result, path, task.total_epochs, config.output_dir, words))
        return result


def study(config: DictConfig, path: Path) -> None:
    """An experiment that measures something without training to an end: calls what `study` names with its keys."""
    if run_dir.finished(path):
        print(f"{path} is finished, nothing to do; another name= makes another run")
        return
    with run_dir.locked(path), run_dir.logging_to(path):
        plain: Any = OmegaConf.to_container(config, resolve=True)
        before = {*path.iterdir()}
        run_dir.write_config(path, plain)
        run_dir.write_command(path)
        run_dir.write_environment(path, f"cpu, {torch.get_num_threads()} threads")
        written = {*path.iterdir()}
        try:
            found = build(config.study, "study", folder=path, seed=config.seed)
        except UserError:
            if {*path.iterdir()} == written:  # refused before it began: the mended words may have this folder
                for file in written - before:
                    file.unlink()
            raise
        run_dir.write(path / "result.json", json.dumps({**found, "seed": config.seed, "folder": str(path)}, indent=1)
                     + "\n")


def launch_from_folder(path: Path) -> None:
    """Lightning starts the other processes of a run by running the command line again. Let it be one that joins this
    folder, whatever was typed: with the words of a sweep or a verb they would train something else."""
    sys.argv = [sys.argv[0], "resume", f"run={path}"]
    HydraConfig.instance().cfg = None


def introduction(data: Any, task: Any, trainer: pl.Trainer) -> str:
    return (f"{count(task.model):,} parameters; {data.describe()}; {task.total_steps:,} steps in {task.total_epochs} "
            f"epochs on {device_name(trainer)}")


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def record(trainer: pl.Trainer, checkpointing: Checkpointing, result: dict[str, Any], path: Path) -> None:
    """result.json, and the hyper-parameters beside the headline for TensorBoard's comparison of runs."""
    run_dir.write(path / "result.json", json.dumps(result, indent=1) + "\n")
    unwanted = ("_target_", "batch_type", "class_names", "name", "output_dir", "task", "experiment")
    flat = {key.removeprefix("choices."): str(value) for key, value in run_dir.flatten(checkpointing.config).items()
            if key.removeprefix("choices.").rpartition(".")[2] not in unwanted}
    metrics = {key: value for key, value in result.items() if key.startswith(("val/", "test/"))}
    for logger in trainer.loggers:
        logger.log_hyperparams(flat, metrics)
        logger.finalize("success")


def closing_words(result: dict[str, Any], path: Path, total_epochs: int, root: str, words: str) -> str:
    rate = result["steps"] / max(result["seconds"], 1e-9)
    headline = result["headline"]
    tests = "  ".join(f"{key} {value:.4f}" for key, value in result.items()
                      if key.startswith("test/") and key.count("/") == 1)  # those of each class stand in result.json
    return "\n".join([
        tests,
        f"best epoch {result['best_epoch']} of {total_epochs}: {headline} {result[headline]:.4f}",
        f"{format_duration(result['seconds'])}, {result['steps']:,} steps, {rate:.1f} steps/s",
        f"{path}",
        f"next: dltrain predict run={path} {words}",
        f"      tensorboard --logdir {root}",
    ])
