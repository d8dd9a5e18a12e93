"""The numbers, tables and curves of several runs, for sweeps and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from dltrain.drawing.tables import format_table, format_values, write_csv
from dltrain.run_dir import RunDir

Values = Mapping[str, Sequence[float]]  # of a metric: the name of a run -> one value per seed


def all_numbers(run_dir: RunDir) -> dict[str, float]:
    """Every number of a finished run: those of result.json, the last reading of each train/... metric,
    seconds_per_epoch and, from the median throughput of training, train_ms_per_image."""
    result, rows = run_dir.read_result(), run_dir.read_metrics()
    last = {key: float(value) for row in rows for key, value in row.items() if key.startswith("train/") and value}
    numbers = {key: float(value) for key, value in result.items() if type(value) in (int, float, bool)}
    derived = {"seconds_per_epoch": result["seconds"] / int(rows[-1]["epoch"])}
    if rates := [float(row["images_per_second"]) for row in rows if row.get("images_per_second")]:
        derived["train_ms_per_image"] = 1000 / median(rates)
    return {**last, **numbers, **derived}


def print_table(first_title: str, columns: Mapping[str, str], values: Mapping[str, Values]) -> None:
    """A row per run: its name and, for each metric of `columns` (metric -> title), the mean over its seeds."""
    names = list(next(iter(values.values())))
    rows = [[name, *(format_values(values[metric][name]) for metric in columns)] for name in names]
    print("\n" + format_table([first_title, *columns.values()], rows, right=range(1, len(columns) + 1)) + "\n")


def write_values(file: Path, seeds: Sequence[int], values: Mapping[str, Values]) -> None:
    """A CSV file with a row per run and seed, a column per metric; blank where a run does not have the metric with each
    of the seeds."""
    names = list(next(iter(values.values())))
    write_csv(file, ["run", "seed", *values],
              [[name, seed, *(of_runs[name][number] if len(of_runs[name]) == len(seeds) else ""
                              for of_runs in values.values())]
               for name in names for number, seed in enumerate(seeds)])
