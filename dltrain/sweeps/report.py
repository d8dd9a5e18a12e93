"""report.html of a sweep: its tables, curves, pictures and commands on one page."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dltrain import stored_files
from dltrain.reports.event_pictures import as_address, pictures_of
from dltrain.reports.page import LONGEST_TEXT, Content, cells, write_page
from dltrain.reports.readings import points_of, rounded, thin
from dltrain.run_dir import RunDir

FILE = "report.html"
MOST_JOBS = 5000  # of a page, the best ones
MOST_POINTS, POINTS_OF_PAGE = 200, 160_000  # of a curve; of all curves together
NUM_PICTURED, PICTURE_BYTES = 6, 1_500_000  # jobs with pictures, the best ones; characters of all pictures together
WIDTH_PX = 2000  # of results.png, at most


class Results(NamedTuple):
    """What a page shows. `run_dirs`: in the order of the rows of `jobs`, the best first. `keys`: that vary; columns 1,
    2, ... of `jobs` have their values, column 0 the name of the folder below that of the page, the last one the state.
    `fixed`: the overrides that all share. `settings`: rows of repeats. `metrics`: without their split."""

    summary: Sequence[str]
    headline: str
    mode: str
    metrics: Sequence[str]
    run_dirs: Sequence[RunDir]
    jobs: Sequence[Mapping[str, str]]
    keys: Sequence[str]
    fixed: Sequence[str]
    settings: Sequence[Mapping[str, str]]
    commands: Sequence[tuple[str, Sequence[str]]]  # what each does, and its words


def write_report(folder: Path, title: str, results: Results, picture: Path | None = None) -> Path:
    """Writes the page of a folder, beside it if it is read-only. `picture`: results.png."""
    file = RunDir(folder).writable_place(FILE)
    run_dirs, more = results.run_dirs[:MOST_JOBS], []
    if len(run_dirs) < len(results.run_dirs):
        more = [f"this page has the first {MOST_JOBS:,} of {len(results.run_dirs):,} jobs; results.csv has all"]
    write_page(file, "sweep", title, {
        "summary": [*filter(None, [*results.summary, *more])], "headline": results.headline, "mode": results.mode,
        "folder": str(folder), "jobs": cells(results.jobs[:MOST_JOBS]), "num_keys": len(results.keys),
        "fixed": [word[:LONGEST_TEXT] for word in results.fixed], "settings": cells(results.settings),
        **curves(run_dirs, results.metrics), "pictures": pictures(run_dirs),
        "pages": [(run_dir.path / FILE).is_file() for run_dir in run_dirs],
        "commands": [(purpose, shlex.join(words)) for purpose, words in results.commands],
        "picture": as_address(picture.read_bytes(), WIDTH_PX) if picture and picture.is_file() else ""})
    return file


def curves(run_dirs: Sequence[RunDir], metrics: Sequence[str]) -> Content:
    """`curves`: of each metric and split a list of one curve per run, which is the place of its steps in the list
    `steps` and the values, at most `most_points`; null where a run has no such readings. `faults`: of damaged files, by
    the place of the run."""
    splits = ("val", "train")
    num_points = min(MOST_POINTS, max(POINTS_OF_PAGE // max(len(run_dirs) * len(metrics) * len(splits), 1), 8))
    steps: dict[tuple[int, ...], int] = {}
    of_metrics: dict[str, dict[str, list[Any]]] = {metric: {split: [] for split in splits} for metric in metrics}
    faults: dict[int, str] = {}
    keys = [f"{split}/{metric}" for metric in metrics for split in splits]
    for place, run_dir in enumerate(run_dirs):
        file = run_dir.path / "metrics.csv"
        content = stored_files.read_rows(file) if file.is_file() else stored_files.Rows([], [], "")
        if content.fault:
            faults[place] = f"metrics.csv: {content.fault}"
        readings = points_of([row for row in content.rows if row], keys)
        for metric in metrics:
            for split in splits:
                points = thin(readings.get(f"{split}/{metric}", []), num_points)
                at = steps.setdefault(tuple(step for step, _ in points), len(steps))
                of_metrics[metric][split].append([at, [rounded(value) for _, value in points]] if points else None)
    kept = {metric: of_splits for metric, of_splits in of_metrics.items() if any(map(any, of_splits.values()))}
    return {"most_points": num_points, "steps": [*steps], "curves": kept, "faults": faults}


def pictures(run_dirs: Iterable[RunDir]) -> list[list[Content]]:
    """Of the first runs, until the page has enough."""
    of_runs, size = [], 0
    for run_dir in [*run_dirs][:NUM_PICTURED]:
        of_run = [picture._asdict() for picture in pictures_of(run_dir.path)]
        size += sum(len(picture["address"]) for picture in of_run)
        if size > PICTURE_BYTES:
            break
        of_runs.append(of_run)
    return of_runs
