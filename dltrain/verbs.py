"""resume, eval and predict: what can be done with a run folder alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain import checkpoints, predicting, run, run_dir
from dltrain.build import build_data, build_task, check_device
from dltrain.config import compose
from dltrain.errors import UserError, nearest
from dltrain.jobs import reported


def saved_config(pairs: dict[str, str], free: tuple[str, ...]) -> tuple[DictConfig, Path]:
    """The run's config with the words' changes. `free`: the keys, or beginnings of keys, that may change."""
    path = Path(pairs["run"])
    config = OmegaConf.create(run_dir.read_config(path))
    for key, value in pairs.items():
        if key in ("run", "split"):
            continue
        known = compose.flat_keys(config)
        if key not in known:
            raise UserError(f"unknown key '{key}'{nearest(key, known) or f'; {path}/config.yaml has them all'}")
        if not key.startswith(free):
            raise UserError(f"{key} cannot change in a run that has begun; these can: {', '.join(free)}")
        try:
            OmegaConf.update(config, key, yaml.safe_load(value))
        except OmegaConfBaseException as error:
            raise UserError(f"{key}={value}: {compose.one_line(error)}") from None
    return config, path


def resume(pairs: dict[str, str]) -> int:
    config, path = saved_config(pairs, tuple(sorted(run_dir.FREE - {"choices", "class_names"})))
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"{config.choices.model} on {config.choices.data}; folder {path}", flush=True)
    return reported(path, lambda: run.train(config, path))


def restored(config: DictConfig, path: Path) -> Any:
    """The run's task with its best weights, on the device that its trainer would take."""
    best = path / "checkpoints" / checkpoints.BEST
    if not best.is_file():
        raise UserError(f"run={path}: no best checkpoint yet; dltrain resume run={path} goes on")
    task = build_task(config, fresh=False)
    task.load_state_dict(checkpoints.load(best)["state_dict"])
    return task.eval()


def evaluate(pairs: dict[str, str]) -> int:
    """Measures the best weights on the test split (or split=val) and writes eval.json."""
    import pytorch_lightning as pl

    config, path = saved_config(pairs, ("data.", "augment.", "trainer."))
    split = pairs.get("split", "test")
    if split not in ("val", "test"):
        raise UserError(f"split={split}: must be val or test")

    def story() -> None:
        with run_dir.logging_to(path):
            check_device(config.trainer)
            config.trainer.devices = 1
            data, task = build_data(config, run_dir.read_vocabularies(path)), restored(config, path)
            trainer = pl.Trainer(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision,
                                 logger=False, enable_checkpointing=False, enable_progress_bar=sys.stdout.isatty(),
                                 enable_model_summary=False, default_root_dir=path)
            measure = trainer.test if split == "test" else trainer.validate
            measure(task, datamodule=data, verbose=False)
            values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        for key, value in values.items():
            print(f"{key} {value:.4f}")
        changed = {key: value for key, value in pairs.items() if key not in ("run", "split")}
        run_dir.write(path / "eval.json", json.dumps({**values, **changed}, indent=1) + "\n")

    return reported(path, story)


def predict(pairs: dict[str, str], asked: dict[str, Any]) -> int:
    """What the run's best weights say of something new; how, depends on the kind of its batches (predict.py)."""
    config, path = saved_config(pairs, ("trainer.",))

    def story() -> None:
        task = restored(config, path)
        device = "cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu"
        try:
            predicting.KINDS[config.task.batch_type](task.to(device), config, path, **asked)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return reported(path, story)
