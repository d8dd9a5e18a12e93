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

import statistics
import time
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from omegaconf import DictConfig

from dltrain import evaluation, results, run, trust
from dltrain.build import build_data
from dltrain.drawing.curves import draw_comparison, mean_curve
from dltrain.errors import UserError, suggest
from dltrain.run_dir import RunDir
from dltrain.studies.claims import judge, parse_claim, print_verdicts
from dltrain.studies.named_runs import plan_runs, train_all
from dltrain.tasks.task import Task

TIMED_IMAGES = 50
MEASURED = ["seconds", "seconds_per_epoch", "parameters", "steps", "best_epoch", "train_ms_per_image",
            "test_ms_per_image"]  # of every run, whatever its task


def study(context: run.StudyContext, common: list[str], runs: Mapping[str, Any], more: list[str], seeds: list[int],
          columns: dict[str, str], curves: list[str], claims: list[str], bars: Sequence[str] = ()) -> dict[str, Any]:
    """Writes comparison.csv and results.png; returns the means of each run, and the outcome of each claim.

    Raises UserError, with the key, for a metric that no run has. This is known before any training, except for test/...
    metrics and val/... curves: these are known after the first run, or after the last one if the runs are of several
    tasks or data sets."""
    for key, value in (("runs", runs), ("columns", columns)):
        if not value:
            raise UserError(f"study.{key}: must not be empty")
    plans = plan_runs(context.config_dir, common, runs, more)
    parsed = [parse_claim(text, list(plans)) for text in claims or []]
    requested = {"study.columns": list(columns), "study.claims": [claim.metric for claim in parsed],
                 "study.bars": list(bars) or list(columns)[:1]}
    metrics = list(dict.fromkeys(metric for values in requested.values() for metric in values))
    composed = [plan.composed for plan in plans.values()]
    refuse_unknown_metrics(requested, curves, [item.config for item in composed])
    share_metrics = len({(item.config.task._target_, item.chosen["data"]) for item in composed}) == 1

    all_seeds = context.all_seeds(seeds)
    values: dict[str, dict[str, list[float]]] = {metric: {name: [] for name in plans} for metric in metrics}
    ended: dict[str, list[RunDir]] = {name: [] for name in plans}
    for trained in train_all(context, plans, all_seeds):
        numbers = results.all_numbers(trained.run_dir)
        if "test_ms_per_image" in metrics:
            numbers["test_ms_per_image"] = milliseconds_per_image(trained.config, trained.run_dir)
        for metric in metrics:
            values[metric][trained.name] += [numbers[metric]] if metric in numbers else []
        ended[trained.name].append(trained.run_dir)
        so_far = [run_dir for run_dirs in ended.values() for run_dir in run_dirs]
        is_last = len(so_far) == len(plans) * len(all_seeds)
        if is_last or share_metrics:
            refuse_missing(requested, curves, values, so_far, is_last)

    results.write_values(context.folder / "comparison.csv", all_seeds, values)
    results.print_table("", columns, values)
    verdicts = [judge(claim, values[claim.metric]) for claim in parsed]
    file = context.folder / "results.png"
    readings = {name: [run_dir.read_metrics() for run_dir in ended[name]] for name in plans}
    curve_panels = {metric: {name: curve for name in plans if (curve := mean_curve(readings[name], metric))[0]}
                    for metric in curves}
    bar_panels = {columns.get(metric, metric): {name: repeats for name, repeats in values[metric].items() if repeats}
                  for metric in requested["study.bars"]}
    draw_comparison(curve_panels, bar_panels, file)
    verdict_values = print_verdicts(verdicts)
    print(f"\n{file}")
    return {**{f"{metric}, {name}": mean(repeats) for metric, of_runs in values.items()
               for name, repeats in of_runs.items() if repeats}, **verdict_values}


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
