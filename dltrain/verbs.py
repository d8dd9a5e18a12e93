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

from dltrain import checkpoints, compose, folder, run
from dltrain.build import build, build_data, build_task, check_device
from dltrain.data.classification import PICTURES
from dltrain.errors import DataError, UserError, nearest
from dltrain.jobs import reported


def saved_config(pairs: dict[str, str], free: tuple[str, ...]) -> tuple[DictConfig, Path]:
    """The run's config with the words' changes. `free`: the keys, or beginnings of keys, that may change."""
    path = Path(pairs["run"])
    config = OmegaConf.create(folder.read_config(path))
    for key, value in pairs.items():
        if key in ("run", "input", "part"):
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
    config, path = saved_config(pairs, tuple(sorted(folder.FREE - {"choices", "class_names"})))
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"{config.choices.model} on {config.choices.data}; folder {path}", flush=True)
    return reported(path, lambda: run.train(config, path))


def restored(config: DictConfig, path: Path) -> Any:
    """The run's task with its best weights, on the device that its trainer would take."""
    best = path / "checkpoints" / checkpoints.BEST
    if not best.is_file():
        raise UserError(f"run={path}: no best checkpoint yet; dltrain resume run={path} goes on")
    task = build_task(config)
    task.load_state_dict(checkpoints.load(best)["state_dict"])
    return task.eval()


def evaluate(pairs: dict[str, str]) -> int:
    """Measures the best weights on the test part (or part=val) and writes eval.json."""
    import pytorch_lightning as pl

    config, path = saved_config(pairs, ("data.", "augment.", "trainer."))
    part = pairs.get("part", "test")
    if part not in ("val", "test"):
        raise UserError(f"part={part}: must be val or test")

    def story() -> None:
        with folder.logging_to(path):
            check_device(config.trainer)
            config.trainer.devices = 1
            data, task = build_data(config), restored(config, path)
            trainer = pl.Trainer(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision,
                                 logger=False, enable_checkpointing=False, enable_progress_bar=sys.stdout.isatty(),
                                 enable_model_summary=False, default_root_dir=path)
            measure = trainer.test if part == "test" else trainer.validate
            measure(task, datamodule=data, verbose=False)
            values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        for key, value in values.items():
            print(f"{key} {value:.4f}")
        changed = {key: value for key, value in pairs.items() if key not in ("run", "part")}
        folder.write(path / "eval.json", json.dumps({**values, **changed}, indent=1) + "\n")

    return reported(path, story)


def predict(pairs: dict[str, str]) -> int:
    """Labels pictures: prints the top five of each and writes predictions.json into the run folder."""
    config, path = saved_config(pairs, ("trainer.",))

    def story() -> None:
        files = picture_files(pairs["input"])
        data = build(config.data, "data", seed=config.seed)
        task = restored(config, path)
        device = "cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu"
        task.to(device)
        names, width = list(config.class_names), max(len(file.name) for file in files)
        predictions = []
        for start in range(0, len(files), 64):
            chunk = files[start : start + 64]
            images = torch.stack([data.read_file(file) for file in chunk]).to(device)
            with torch.inference_mode():
                chances = task(images).float().softmax(1).cpu()
            for file, row in zip(chunk, chances, strict=True):
                top = row.topk(min(5, len(names)))
                five = [{"label": names[i], "probability": round(p, 6)}
                        for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
                predictions.append({"file": str(file), "top": five})
                print(f"{file.name:<{width}}  " + "  ".join(f"{one['label']} {one['probability']:.1%}" for one in five))
        folder.write(path / "predictions.json", json.dumps(predictions, indent=1) + "\n")
        print(f"{len(files)} pictures; {path}/predictions.json")

    return reported(path, story)


def picture_files(words: str) -> list[Path]:
    """`a.png`, `a.png,b.png` or a folder (its pictures, those below it too, by name). Raises DataError."""
    files: list[Path] = []
    for word in [words] if Path(words).exists() else words.split(","):
        place = Path(word)
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURES and not p.name.startswith("."))
            if not inside:
                raise DataError(f"input={place}: no pictures in this folder ({', '.join(sorted(PICTURES))})")
            files += inside
        elif place.is_file():
            files.append(place)
        else:
            raise DataError(f"input={place}: no such file or folder")
    return files
