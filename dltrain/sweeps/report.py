"""report.html: the results of a sweep, or of one run, as a page that is one file and asks for no other.

The page is report_page.html with the content as JSON, which its script draws: what came from a run is never markup.
"""

from __future__ import annotations

import html
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from dltrain import __version__, stored_files
from dltrain.disk import write_text
from dltrain.run_dir import RunDir
from dltrain.sweeps.event_pictures import as_address, pictures_of

TEMPLATE = Path(__file__).with_name("report_page.html")
MOST_JOBS = 5000  # of a page, the best ones
MOST_POINTS, POINTS_OF_PAGE = 200, 160_000  # of a curve; of all curves together
NUM_PICTURED, PICTURE_BYTES = 6, 1_500_000  # jobs with pictures, the best ones; characters of all pictures together
LONGEST_TEXT = 300  # of a cell
WIDTH_PX = 2000  # of results.png, at most

Content = dict[str, Any]  # what the script of the page reads


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
    """Writes the page of a folder. `picture`: results.png."""
    run_dirs, more = results.run_dirs[:MOST_JOBS], []
    if len(run_dirs) < len(results.run_dirs):
        more = [f"this page has the first {MOST_JOBS:,} of {len(results.run_dirs):,} jobs; results.csv has all"]
    write_page(folder / "report.html", title, {
        "summary": [*filter(None, [*results.summary, *more])], "headline": results.headline, "mode": results.mode,
        "folder": str(folder), "jobs": cells(results.jobs[:MOST_JOBS]), "num_keys": len(results.keys),
        "fixed": [word[:LONGEST_TEXT] for word in results.fixed], "settings": cells(results.settings),
        **curves(run_dirs, results.metrics), "pictures": pictures(run_dirs),
        "commands": [(purpose, shlex.join(words)) for purpose, words in results.commands],
        "picture": as_address(picture.read_bytes(), WIDTH_PX) if picture and picture.is_file() else ""})
    return folder / "report.html"


def write_page(file: Path, title: str, content: Content) -> None:
    """A `<` in the content would end the script that it stands in."""
    values = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    texts = {"TITLE": html.escape(title), "VERSION": html.escape(__version__), "CONTENT": values}
    page = re.sub(f"@({'|'.join(texts)})@", lambda mark: texts[mark[1]], TEMPLATE.read_text(encoding="utf-8"))
    write_text(file, page)


def cells(rows: Sequence[Mapping[str, str]]) -> Content:
    """A table."""
    columns = [*dict.fromkeys(key for row in rows for key in row)]
    return {"columns": columns, "rows": [[row.get(key, "")[:LONGEST_TEXT] for key in columns] for row in rows]}


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


def points_of(rows: Sequence[Mapping[str, str]], keys: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of each metric."""
    return {key: [(int(row["step"]), float(row[key])) for row in rows if row[key]] for key in keys
            if rows and key in rows[0]}


def thin(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most that many of the points: of each of equal sections the least and the greatest value, so that no peak is
    lost; the first point and the last one."""
    if len(points) <= most:
        return [*points]
    inner, sections = points[1:-1], max((most - 2) // 2, 1)
    kept = {points[0], points[-1]}
    for section in range(sections):
        span = inner[section * len(inner) // sections : (section + 1) * len(inner) // sections]
        kept |= {min(span, key=itemgetter(1)), max(span, key=itemgetter(1))}
    return sorted(kept)


def rounded(value: float) -> float | None:
    """None for what is not finite, which JSON does not have."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


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
