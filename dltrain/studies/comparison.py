"""Trains several named runs and compares them: one table, one picture, and of each claim whether it held.

A comparison is a yaml and no code. Its keys:

    common    words that every run is composed with, as on the command line
    runs      name: [words], a run each; they stand behind common's and prevail
    more      words behind those of every run, for the command line: 'study.more=["trainer.max_epochs=5"]'
    seeds     each run is trained once with each, counted from `seed`
    shown     metric: title, the table's columns; the first is drawn as bars
    curves    metrics of metrics.csv, drawn over the steps
    claims    "metric: run > run", with > < >= <=; of several seeds the means are compared

A metric is a number of result.json (test/..., the headline's best val/..., parameters, seconds), the last reading of a
train/... one, or seconds_per_epoch. Runs lie in folders of their own: one that has ended is not trained again, one that
was killed goes on.
"""

from __future__ import annotations

import csv
import operator
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import hydra.utils
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dltrain import run, sweeps
from dltrain.config.compose import compose
from dltrain.errors import UserError, nearest

CLAIM = re.compile(r"(\S+): (.+?) (>=|<=|>|<) (.+)")
SIGNS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
OF_EVERY_RUN = ["seconds", "seconds_per_epoch", "parameters", "steps", "best_epoch"]

Values = dict[str, list[float]]  # of a metric: run -> its value with each seed


class Claim(NamedTuple):
    text: str
    metric: str
    left: str
    sign: str
    right: str


def study(folder: Path, seed: int, common: list[str], runs: dict[str, list[str]], more: list[str], seeds: list[int],
          shown: dict[str, str], curves: list[str], claims: list[str]) -> dict[str, Any]:
    """Writes comparison.csv and results.png; returns the means of each run, and of each claim whether it held.

    Raises UserError by key for what no run has: before the first is trained, but for test/... metrics and curves of
    val/..., which are known when it has ended."""
    for key, given in (("runs", runs), ("seeds", seeds), ("shown", shown)):
        if not given:
            raise UserError(f"study.{key}: must not be empty")
    read = [read_claim(text, list(runs)) for text in claims]
    asked = {"study.shown": list(shown), "study.claims": [claim.metric for claim in read]}
    wanted = list(dict.fromkeys(metric for metrics in asked.values() for metric in metrics))
    every = [seed + number for number in seeds]
    own = config_dir()
    words = {name: [*common, *its, *more] for name, its in runs.items()}
    tasks: list[Any] = [hydra.utils.get_class(checked(name, words[name], own).task._target_) for name in runs]
    refuse_shared_folders(list(runs))
    training = [f"train/{key}" for task in tasks
                for key in (*task.training_metrics, "gradient_norm", "clipped_fraction")]
    for key, metrics in asked.items():
        refuse_unknown(key, metrics, [*OF_EVERY_RUN, *training, *(task.headline for task in tasks)], "test/")
    refuse_unknown("study.curves", curves, [*training, "lr", *(f"{task.unit}_per_second" for task in tasks)], "val/")

    paths = {name: [place(folder, f"{name}-seed{number}") for number in every] for name in runs}
    found: dict[str, Values] = {metric: {name: [] for name in runs} for metric in wanted}
    for name in runs:
        for number, path in zip(every, paths[name], strict=True):
            print(f"\n{name}, seed {number}", flush=True)
            result = measured(path, trained(path, [*words[name], f"seed={number}"], own))
            for key, metrics in asked.items():
                refuse_unknown(key, metrics, list(result))
            refuse_unknown("study.curves", curves, list(readings(path)[0]))
            for metric in wanted:
                found[metric][name].append(result[metric])

    write_csv(folder / "comparison.csv", ["run", "seed", *wanted],
              [[name, number, *(found[metric][name][at] for metric in wanted)]
               for name in runs for at, number in enumerate(every)])
    print(f"\n{table('', shown.values(), [[name, *(found[metric][name] for metric in shown)] for name in runs])}\n")
    held = {claim.text: judged(claim, found[claim.metric]) for claim in read}
    first = next(iter(shown))
    draw(paths, {metric: metric for metric in curves}, found[first], shown[first], folder / "results.png")
    print(f"\n{folder}/results.png")
    return {**{f"{metric}, {name}": mean(values) for metric in wanted for name, values in found[metric].items()},
            **{f"claim, {text}": holds for text, holds in held.items()}}


def read_claim(text: str, runs: list[str]) -> Claim:
    match = CLAIM.fullmatch(text)
    if match is None:
        raise UserError(f"study.claims: '{text}': must be 'metric: run > run', with >, <, >= or <=")
    claim = Claim(text, *match.groups())
    for name in (claim.left, claim.right):
        if name not in runs:
            raise UserError(f"study.claims: '{text}': no run '{name}'{nearest(name, runs) or there_are(runs)}")
    return claim


def checked(name: str, words: Any, own: str | None) -> DictConfig:
    """The run's config. Raises UserError with the run's name."""
    try:
        return compose(words, own).config
    except UserError as error:
        raise type(error)(f"study.runs.{name}: {error}") from None


def refuse_shared_folders(names: list[str]) -> None:
    for at, name in enumerate(names):
        for other in names[:at]:
            if place(Path(), name) == place(Path(), other):
                raise UserError(f"study.runs: '{other}' and '{name}' would share the folder {place(Path(), name)}")


def refuse_unknown(key: str, wanted: list[str], known: list[str], later: str | None = None) -> None:
    """Metrics that begin with `later` are not yet known."""
    for metric in wanted:
        if metric not in known and not (later and metric.startswith(later)):
            raise UserError(f"{key}: no run has '{metric}'{nearest(metric, known) or there_are(known)}")


def there_are(names: list[str]) -> str:
    return f"; there are: {', '.join(dict.fromkeys(names))}"


def config_dir() -> str | None:
    """The --config-dir of the command at hand, whose choices the runs may name too."""
    if not HydraConfig.initialized():
        return None
    sources = HydraConfig.get().runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def trained(path: Path, words: list[str], own: str | None = None) -> dict[str, Any]:
    """The result of the run that the words make, in `path`: trained there, taken up again, or there already."""
    path.mkdir(exist_ok=True)
    typed, sys.argv = sys.argv, [sys.argv[0], *words]  # the run's command.txt has what makes it by itself
    try:
        return run.train(compose(words, own).job_config(), path)
    finally:
        sys.argv = typed


def place(folder: Path, name: str) -> Path:
    return folder / re.sub(r"[^A-Za-z0-9.-]+", "_", name)


def readings(path: Path) -> list[dict[str, str]]:
    with open(path / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measured(path: Path, result: dict[str, Any]) -> dict[str, float]:
    """Every number that is known of a run that has ended, by its metric."""
    rows = readings(path)
    last = {key: float(value) for row in rows for key, value in row.items() if key.startswith("train/") and value}
    numbers = {key: float(value) for key, value in result.items() if isinstance(value, int | float)}
    return {**last, **numbers, "seconds_per_epoch": result["seconds"] / int(rows[-1]["epoch"])}


def judged(claim: Claim, values: Values) -> bool:
    """Says and returns whether a claim held."""
    left, right = mean(values[claim.left]), mean(values[claim.right])
    holds = SIGNS[claim.sign](left, right)
    print(f"  {'held' if holds else 'did not hold'}: {claim.metric} {shown_as(left)} of {claim.left} {claim.sign} "
          f"{shown_as(right)} of {claim.right}")
    return bool(holds)


def write_csv(file: Path, header: list[str], rows: list[list[Any]]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows(rows)


def table(first: str, titles: Iterable[str], rows: list[list[Any]]) -> str:
    """A line a run: its name and, right-aligned, the mean of each list of values, with the deviation of several."""
    cells = [[first, *titles], *([name, *map(spread, values)] for name, *values in rows)]
    widths = [max(len(row[column]) for row in cells) + 2 for column in range(len(cells[0]))]
    return "\n".join("  " + row[0].ljust(widths[0]) + "".join(
        cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)) for row in cells)


def spread(values: list[float]) -> str:
    return shown_as(mean(values)) + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def shown_as(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def draw(paths: dict[str, list[Path]], curves: dict[str, str], bars: Values, title: str, file: Path) -> None:
    """A panel a curve, with a line a run (of several seeds the mean), and the bars. `curves`: metric -> title."""
    from matplotlib.figure import Figure

    count = len(curves) + 1
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(5 * columns + 1, 3.6 * rows + 0.5), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (metric, its_title) in zip(panels, curves.items(), strict=False):
        for number, (name, its) in enumerate(paths.items()):
            axes.plot(*sweeps.curve(its, metric), ".-", color=f"C{number % 10}", label=name, markersize=3, linewidth=1)
        axes.set(title=its_title, xlabel="step", yscale="log" if metric.endswith("loss") else "linear")
        axes.grid(alpha=0.25)
    sweeps.draw_bars(panels[len(curves)], {(name,): values for name, values in bars.items()})
    panels[len(curves)].set(title=title)
    panels[len(curves)].locator_params(axis="x", nbins=5)
    panels[len(curves)].spines[["top", "right"]].set_visible(False)
    for axes in panels[count:]:
        axes.set_axis_off()
    if curves:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(paths), 5))
    figure.savefig(file)
