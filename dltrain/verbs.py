"""What follows a checked command: the jobs that Hydra starts, and resume, eval and predict on a run folder."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain import checkpoints, compose, folder, listing, run
from dltrain.build import build, build_data, build_task, check_device
from dltrain.errors import DataError, MachineError, UserError, nearest

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def reported(path: Path, story: Callable[[], Any], begun_only: bool = False) -> int:
    """Tells the story and returns its exit code: what went wrong is one line, and a traceback in the run folder."""
    try:
        try:
            story()
            return 0
        except torch.OutOfMemoryError as error:
            raise MachineError("out of memory on the device; try a smaller data.batch_size, with "
                               "trainer.accumulate_batches to keep the step's size") from error
    except UserError as error:
        failed(path, str(error), begun_only)
        return error.exit_code
    except SystemExit as error:
        failed(path, f"the code ended the program with exit code {error.code}")
        return 1
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        failed(path, f"{type(error).__name__}: {said} (traceback in {path / 'error.txt'})")
        return 1


def failed(path: Path, message: str, begun_only: bool = False) -> None:
    """One line on standard error and error.txt; a folder in which nothing was begun is removed where `begun_only`."""
    print(f"dltrain: error: {message}", file=sys.stderr, flush=True)
    if begun_only and path.is_dir() and not (path / "config.yaml").exists():
        shutil.rmtree(path)
    elif path.is_dir():
        (path / "error.txt").write_text(f"{message}\n\n{traceback.format_exc()}", encoding="utf-8")


class Jobs:
    """The function that Hydra calls, once for a run and once a job for a sweep. A failing job is reported at once and
    does not end the others; a signal does."""

    def __init__(self, path: Path, sweep: bool, config_dir: str | None):
        self.path, self.sweep, self.config_dir = path, sweep, config_dir
        self.exit_code = 0

    def __call__(self, _: DictConfig) -> float | None:
        path = Path(os.path.relpath(HydraConfig.get().runtime.output_dir)) if self.sweep else self.path
        words = list(HydraConfig.get().overrides.task)
        self.exit_code = reported(path, lambda: self.job(words, path), begun_only=not self.sweep)
        (path / "error.txt").unlink(missing_ok=True) if self.exit_code == 0 else None
        found = read_result(path)
        return found[found["headline"]] if found else None

    def job(self, words: list[str], path: Path) -> None:
        if self.sweep:
            print(f"\n{path.name}: {' '.join(words)}", flush=True)
            folder.write(path / "overrides.txt", "\n".join(words) + "\n")
        composed = compose.compose(words, self.config_dir)  # of a sweep only the first job has been checked yet
        config = composed.config
        OmegaConf.set_struct(config, False)
        config.choices = composed.chosen
        if self.sweep:
            folder.refuse_other_config(path, compose.to_plain(config))
        if self.sweep and config.trainer.devices > 1:  # processes of its own: they cannot be started twice from one
            folder.write_config(path, compose.to_plain(config))
            code = subprocess.run([sys.executable, "-m", "dltrain.cli", "resume", f"run={path}"]).returncode
            if code:
                raise UserError(f"{path} ended with exit code {code}")
            return
        run.train(config, path)

    def finish(self) -> int:
        return finish_sweep(self.path) if self.sweep else self.exit_code


def read_result(path: Path) -> dict[str, Any]:
    file = path / "result.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def finish_sweep(path: Path) -> int:
    """Prints and writes the table of all jobs, best first, failed ones last. Returns 7 where one failed."""
    jobs = sorted((child for child in path.iterdir() if child.is_dir()), key=lambda p: int(p.name.partition("-")[0]))
    results = {job: read_result(job) for job in jobs}
    asked = {job: asked_of(job) for job in jobs}
    done = [job for job in jobs if results[job]]
    headline = next((results[job]["headline"] for job in done), "")
    tested = headline.replace("val/", "test/")
    done.sort(key=lambda job: -results[job].get(tested, 0))
    every = dict.fromkeys(key for words in asked.values() for key in words)
    varied = [key for key in every if len({words.get(key) for words in asked.values() if words}) > 1]
    rows = []
    for job in [*done, *(job for job in jobs if not results[job])]:
        result = results[job]
        reason = (job / "error.txt").read_text().splitlines()[0] if (job / "error.txt").is_file() else "unfinished"
        rows.append({"job": job.name, **{key: asked[job].get(key, "") for key in varied},
                     **{key: f"{result[key]:.4f}" if result else "" for key in (headline, tested) if key},
                     "seconds": f"{result['seconds']:.0f}" if result else "",
                     "state": "done" if result else f"failed: {reason}"})
    with open(path / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("\n" + listing.table([tuple(rows[0]), *(tuple(row.values()) for row in rows)]))
    print(f"\n{len(done)} of {len(jobs)} jobs done; {path}/results.csv")
    return 0 if len(done) == len(jobs) else 7


def asked_of(job: Path) -> dict[str, str]:
    """The words that a sweep's job was started with, by key."""
    file = job / "overrides.txt"
    return dict(line.lstrip("+~").split("=", 1) for line in file.read_text().splitlines() if "=" in line) if (
        file.is_file()) else {}


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
        data = build(config.data, seed=config.seed)
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
