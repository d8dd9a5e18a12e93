"""The end of a sweep: the results of its jobs as one table (results.csv, and printed) and one picture (results.png)."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dltrain import stored_files
from dltrain.config.schema import format_value
from dltrain.dotted import flatten
from dltrain.drawing.curves import COLOURS, draw_bars, draw_lines, new_figure, save_figure
from dltrain.drawing.tables import format_table, write_csv
from dltrain.errors import UserError
from dltrain.results import mean_curve
from dltrain.run_dir import RunDir

Group = tuple[str, ...]  # values of the varied keys except the seed; jobs with the same values form a group

JOB_FAILED = 7  # exit code
MOST_CURVES, MOST_NAMES = 8, 12  # groups: with more, lines have no curves beside them, and curves have no legend


class Job(NamedTuple):
    run_dir: RunDir
    result: dict[str, float | str]  # empty before the job has finished, and if it was refused when asked for again
    overrides: dict[str, str]  # the values of its own config, of the keys that the command gave
    error: str

    def describe_state(self) -> str:
        return "done" if self.result else f"failed: {self.error or 'unfinished'}"


def finish(folder: Path, title: str) -> int:
    """Prints and writes the table of all jobs, best in validation first, failed ones last, and draws them. Returns 7 if
    a job failed or has not ended, else 0."""
    jobs = read_jobs(folder)
    done = [job for job in jobs if job.result]
    headline, mode = next(((str(job.result["headline"]), job.result["headline_mode"]) for job in done
                           if "headline" in job.result), ("", "max"))  # a study has none
    test_metric = headline.replace("val/", "test/")
    done.sort(key=lambda job: (-1 if mode == "max" else 1) * float(job.result.get(headline, 0)))
    varied = varied_keys(jobs)
    rows = []
    for job in [*done, *(job for job in jobs if not job.result)]:
        metrics = {key: f"{job.result[key]:.4f}" if job.result else "" for key in (headline, test_metric) if key}
        seconds = f"{job.result['seconds']:.0f}" if "seconds" in job.result else ""
        rows.append({"job": job.run_dir.path.name, **{key: job.overrides.get(key, "") for key in varied}, **metrics,
                     "seconds": seconds, "state": job.describe_state()})
    header, values = list(rows[0]), [tuple(row.values()) for row in rows]
    write_csv(folder / "results.csv", header, values)
    print("\n" + format_table(header, values))
    print(f"\n{len(done)} of {len(jobs)} jobs done; {folder}/results.csv")
    if len(done) > 1 and headline:
        keys = [key for key in varied if key != "seed"]
        grouped: dict[Group, list[Job]] = defaultdict(list)
        for job in jobs:
            if job.result:
                grouped[tuple(job.overrides.get(key, "") for key in keys)].append(job)
        draw(grouped, headline, keys, title, folder / "results.png")
        print(folder / "results.png")
    return 0 if len(done) == len(jobs) else JOB_FAILED


def read_jobs(folder: Path) -> list[Job]:
    """The jobs in the order of their numbers."""
    paths = [path for path in folder.iterdir() if path.is_dir() and path.name.partition("-")[0].isdigit()]
    paths.sort(key=lambda path: int(path.name.partition("-")[0]))
    return [read_job(RunDir(path)) for path in paths]


def read_job(run_dir: RunDir) -> Job:
    file = run_dir.path / "error.txt"
    try:
        error = (stored_files.read_text(file).splitlines() or ["unfinished"])[0] if file.is_file() else ""
        return Job(run_dir, {} if error else run_dir.read_result(), read_overrides(run_dir), error)
    except UserError as damage:
        return Job(run_dir, {}, {}, str(damage))


def read_overrides(run_dir: RunDir) -> dict[str, str]:
    """The keys that the command gave, with the values of the job's config.yaml: those that it was trained with."""
    file = run_dir.path / "overrides.txt"
    lines = stored_files.read_text(file).splitlines() if file.is_file() else []
    given = dict(line.lstrip("+~").split("=", 1) for line in lines if "=" in line)
    if not (run_dir.path / "config.yaml").is_file():
        return given
    config = run_dir.read_config()
    used = {**{key: format_value(value) for key, value in flatten(config).items()}, **config.get("choices", {})}
    return {key: used.get(key, text) for key, text in given.items()}


def varied_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys whose values differ between jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs if job.overrides}) > 1]


def draw(groups: Mapping[Group, Sequence[Job]], headline: str, keys: Sequence[str], title: str, file: Path) -> None:
    """Left: the headline metric by step, in validation (solid) and in training (dashed). Right: the test metric, a dot
    per seed, as bars; or, if the values of a varied key are at least three numbers, as lines over the first such key,
    one per choice of the other keys. With such lines and more than MOST_CURVES groups there is no left panel."""
    name = headline.partition("/")[2]
    axis = next((place for place in range(len(keys)) if is_scale({group[place] for group in groups})), None)
    has_curves = axis is None or len(groups) <= MOST_CURVES
    height = max(4.2, 1.6 + 0.28 * len(groups)) if axis is None else 4.4
    figure = new_figure(11 if has_curves else 7.5, height)
    *left, right = figure.subplots(1, 2 if has_curves else 1, squeeze=False)[0]
    for axes in left:
        for place, (group, jobs) in enumerate(groups.items()):
            run_dirs, colour = [job.run_dir for job in jobs], f"C{place % COLOURS}"
            axes.plot(*mean_curve(run_dirs, headline), color=colour, label=", ".join(group) or "all")
            axes.plot(*mean_curve(run_dirs, f"train/{name}"), color=colour, linestyle="--", linewidth=1, alpha=0.6)
        axes.set(xlabel="step", ylabel=name.replace("_", " "), title="validation (solid), training (dashed)")
        if len(groups) <= MOST_NAMES:
            axes.legend(title=", ".join(keys) or None, fontsize=8)
    values = {group: [float(job.result[f"test/{name}"]) for job in jobs] for group, jobs in groups.items()}
    if axis is None:
        draw_bars(right, {", ".join(group) or "all": repeats for group, repeats in values.items()})
    else:
        lines: dict[str, dict[float, list[float]]] = defaultdict(dict)
        for group, repeats in values.items():
            lines[", ".join(group[:axis] + group[axis + 1 :])][float(group[axis])] = repeats
        draw_lines(right, lines, keys[axis], ", ".join([*keys[:axis], *keys[axis + 1 :]]))
    right.set(title=f"test/{name}")
    for axes in (*left, right):
        axes.grid(alpha=0.25)
    figure.suptitle(textwrap.fill(title, 110 if has_curves else 75), fontsize=11)
    save_figure(figure, file)


def is_scale(values: set[str]) -> bool:
    """Whether the values are at least three numbers."""
    try:
        return len({float(value) for value in values}) >= 3
    except ValueError:
        return False
