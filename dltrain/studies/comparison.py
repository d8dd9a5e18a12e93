"""Trains several named runs and compares them: one table, one picture, and for each claim what they say of it.

A comparison is a yaml and no code. Its keys:

    common    overrides that every run is composed with, as on the command line
    runs      name: [overrides], one run each; they come after common's and prevail. Or, for a run that starts from the
              weights of another one, name: {overrides: [...], pretrained_from: <name of that run>}
    more      overrides after those of every run, for the command line: 'study.more=["trainer.max_epochs=5"]'
    seeds     each run is trained once with each of these numbers, added to `seed`
    columns   metric: title, the columns of the table
    curves    metrics of metrics.csv, as curves over the steps
    bars      metrics of the table, as bars; the first column if empty
    claims    "metric: run > run", with > < >= <=, or "metric: run >= run - 0.01"; see claims.py. A verdict needs three
              seeds, except of the numbers of EXACT

A metric is a number of result.json (test/..., the best val/... of the headline, parameters, seconds), the last reading
of a train/... metric, seconds_per_epoch, train_ms_per_image (from the throughput) or test_ms_per_image (one image at a
time, the median over TIMED_IMAGES). A run without a metric that others have has a dash. Runs lie in folders of their
own: a finished one is not trained again, one that was killed resumes.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from dltrain import evaluation, results, run, trust
from dltrain.build import build_data
from dltrain.config.compose import Composed, compose
from dltrain.drawing.curves import draw_comparison, mean_curve
from dltrain.drawing.tables import format_number
from dltrain.errors import UserError, suggest
from dltrain.run_dir import RunDir
from dltrain.studies.claims import Claim, Verdict, judge_excesses, parse_claim, print_verdicts
from dltrain.tasks.task import Task

TIMED_IMAGES = 50
MEASURED = ["seconds", "seconds_per_epoch", "parameters", "steps", "best_epoch", "train_ms_per_image",
            "test_ms_per_image"]  # of every run, whatever its task
EXACT = ("parameters", "steps")  # do not depend on the seed


class ComparedRun(NamedTuple):
    """One of the compared runs, trained once per seed."""

    overrides: list[str]
    pretrained_from: str | None


def study(context: run.StudyContext, common: list[str], runs: Mapping[str, Any], more: list[str], seeds: list[int],
          columns: dict[str, str], curves: list[str], claims: list[str], bars: Sequence[str] = ()) -> dict[str, Any]:
    """Writes comparison.csv and results.png; returns the means of each run, and the outcome of each claim.

    Raises UserError, with the key, for a metric that no run has. This is known before any training, except for test/...
    metrics and val/... curves: these are known after the first run, or after the last one if the runs are of several
    tasks or data sets."""
    for key, value in (("runs", runs), ("seeds", seeds), ("columns", columns)):
        if not value:
            raise UserError(f"study.{key}: must not be empty")
    plans = {name: parse_run(name, value, common, more, list(runs)) for name, value in runs.items()}
    parsed = [parse_claim(text, list(plans)) for text in claims]
    requested = {"study.columns": list(columns), "study.claims": [claim.metric for claim in parsed],
                 "study.bars": list(bars) or list(columns)[:1]}
    metrics = list(dict.fromkeys(metric for values in requested.values() for metric in values))
    refuse_shared_folders(list(plans))
    composed = {name: compose_run(name, plan.overrides, context.config_dir) for name, plan in plans.items()}
    refuse_unknown_metrics(requested, curves, [item.config for item in composed.values()])
    share_metrics = len({(item.config.task._target_, item.chosen["data"]) for item in composed.values()}) == 1

    all_seeds = [context.seed + number for number in seeds]
    run_dirs = {name: [RunDir(folder_of(context.folder, f"{name}-seed{seed}")) for seed in all_seeds] for name in plans}
    values: dict[str, dict[str, list[float]]] = {metric: {name: [] for name in plans} for metric in metrics}
    ended: list[RunDir] = []
    for name, plan in plans.items():
        for number, seed in enumerate(all_seeds):
            print(f"\n{name}, seed {seed}", flush=True)
            overrides = [*plan.overrides, f"seed={seed}"]
            if plan.pretrained_from:
                source = run_dirs[plan.pretrained_from][number]
                overrides += [f"{pretrained_key(composed[name].config)}={source}"]
            numbers = train_run(name, overrides, run_dirs[name][number], metrics, context.config_dir)
            for metric in metrics:
                values[metric][name] += [numbers[metric]] if metric in numbers else []
            ended.append(run_dirs[name][number])
            is_last = len(ended) == len(plans) * len(all_seeds)
            if is_last or share_metrics:
                refuse_missing(requested, curves, values, ended, is_last)

    results.write_values(context.folder / "comparison.csv", all_seeds, values)
    results.print_table("", columns, values)
    verdicts = [judge(claim, values[claim.metric]) for claim in parsed]
    file = context.folder / "results.png"
    readings = {name: [run_dir.read_metrics() for run_dir in run_dirs[name]] for name in plans}
    curve_panels = {metric: {name: curve for name in plans if (curve := mean_curve(readings[name], metric))[0]}
                    for metric in curves}
    bar_panels = {columns.get(metric, metric): {name: repeats for name, repeats in values[metric].items() if repeats}
                  for metric in requested["study.bars"]}
    draw_comparison(curve_panels, bar_panels, file)
    verdict_values = print_verdicts(verdicts)
    print(f"\n{file}")
    return {**{f"{metric}, {name}": mean(repeats) for metric, of_runs in values.items()
               for name, repeats in of_runs.items() if repeats}, **verdict_values}


def parse_run(name: str, value: Any, common: list[str], more: list[str], names: Sequence[str]) -> ComparedRun:
    """`value`: an entry of `runs`. Raises UserError for an unknown key, and for a `pretrained_from` that is not an
    earlier run."""
    keys = value if isinstance(value, Mapping) else {"overrides": value}
    if unknown := [key for key in keys if key not in ("overrides", "pretrained_from")]:
        raise UserError(f"study.runs.{name}: unknown key '{unknown[0]}'; it takes overrides and pretrained_from")
    source = keys.get("pretrained_from")
    if source is not None and source not in names[: names.index(name)]:
        raise UserError(f"study.runs.{name}.pretrained_from={source}: must be a run that stands before it")
    return ComparedRun([*common, *keys.get("overrides", []), *more], source)


def compose_run(name: str, overrides: list[str], config_dir: str | None) -> Composed:
    """Raises UserError with the run's name."""
    try:
        return compose(overrides, config_dir)
    except UserError as error:
        raise type(error)(f"study.runs.{name}: {error}") from None


def refuse_shared_folders(names: list[str]) -> None:
    folders: dict[Path, str] = {}
    for name in names:
        folder = folder_of(Path(), name)
        if folder in folders:
            raise UserError(f"study.runs: '{folders[folder]}' and '{name}' would share the folder {folder}")
        folders[folder] = name


def folder_of(parent: Path, name: str) -> Path:
    return parent / re.sub(r"[^A-Za-z0-9.-]+", "_", name)


def refuse_unknown_metrics(requested: Mapping[str, list[str]], curves: list[str], configs: list[DictConfig]) -> None:
    """Raises UserError for a metric that no run will have; lets every test/... metric and val/... curve pass."""
    tasks: list[type[Task]] = [trust.locate("task._target_", config.task._target_) for config in configs]
    training = [f"train/{key}" for task in tasks
                for key in (*task.training_metrics, "gradient_norm", "clipped_fraction")]
    for key, metrics in requested.items():
        known = [*MEASURED, *training, *(task.headline for task in tasks)]
        refuse_unknown(key, [metric for metric in metrics if not metric.startswith("test/")], known)
    known = [*training, "lr", *(f"{task.unit}_per_second" for task in tasks)]
    refuse_unknown("study.curves", [metric for metric in curves if not metric.startswith("val/")], known)


def refuse_unknown(key: str, metrics: list[str], known: Sequence[str]) -> None:
    for metric in metrics:
        if metric not in known:
            hint = suggest(metric, list(known)) or f"; there are: {', '.join(dict.fromkeys(known))}"
            raise UserError(f"{key}: no run has '{metric}'{hint}")


def refuse_missing(requested: Mapping[str, list[str]], curves: list[str],
                   values: Mapping[str, Mapping[str, Sequence[float]]], ended: Sequence[RunDir], is_last: bool) -> None:
    """Raises UserError for a metric that none of the runs in `ended` has. Before the last run train/... metrics are not
    checked: a later run may have one that this one does not, as a gradient norm."""
    columns = [metric for run_dir in ended for metric in run_dir.read_metrics()[0]]
    numbers = [metric for run_dir in ended for metric in results.all_numbers(run_dir)]
    due = [metric for metric in (*values, *curves) if is_last or not metric.startswith("train/")]
    for key, metrics in requested.items():
        refuse_unknown(key, [metric for metric in metrics if metric in due and not any(values[metric].values())],
                       numbers)
    refuse_unknown("study.curves", [metric for metric in curves if metric in due and metric not in columns], columns)


def train_run(name: str, overrides: list[str], run_dir: RunDir, metrics: Sequence[str], config_dir: str | None
              ) -> dict[str, float]:
    """Every number of the run after training it, resuming it, or finding it finished."""
    composed = compose_run(name, overrides, config_dir)
    run_dir.path.mkdir(exist_ok=True)
    config = composed.job_config()
    run.train(config, run_dir, composed.comments(), command=overrides)
    numbers = results.all_numbers(run_dir)
    if "test_ms_per_image" in metrics:
        numbers["test_ms_per_image"] = milliseconds_per_image(config, run_dir)
    return numbers


def pretrained_key(config: DictConfig) -> str:
    return "model.backbone.pretrained.from_run" if "backbone" in config.model else "model.pretrained.from_run"


def milliseconds_per_image(config: DictConfig, run_dir: RunDir) -> float:
    """From uint8 pixels to the model's output, one test image at a time: the median."""
    data, task, seconds = build_data(config), evaluation.restore(config, run_dir), []
    indices = torch.arange(min(TIMED_IMAGES, data.num_samples("test")))
    with torch.inference_mode():
        for batch in data.read("test", list(indices.split(1))):
            started = time.perf_counter()
            task(batch.images)
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def judge(claim: Claim, values: Mapping[str, Sequence[float]]) -> Verdict:
    """Raises UserError for a run without the metric."""
    sides = [name for name in (claim.left, claim.right) if name is not None]
    for name in sides:
        if not values[name]:
            raise UserError(f"study.claims: '{claim.text}': the run '{name}' has no {claim.metric}")
    left, right = values[claim.left], values[claim.right] if claim.right else [0.0] * len(values[claim.left])
    means = f" {claim.sign} ".join(f"{format_number(mean(values[name]))} of {name}" for name in sides)
    excesses = [claim.excess(*pair) for pair in zip(left, right, strict=True)]
    return judge_excesses(claim.text, excesses, claim.sign in "><", claim.metric in EXACT, means)
