"""The end of a sweep: its jobs' results as one table (results.csv, and printed) and one picture (results.png)."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from dltrain import listing

Group = tuple[str, ...]  # the varied values that jobs have in common, seed left out


def finish(path: Path, title: str = "") -> int:
    """Prints and writes the table of all jobs, best first, failed ones last, and draws them. Returns 7 where one
    failed or has not ended."""
    folders = [child for child in path.iterdir() if child.is_dir() and child.name.partition("-")[0].isdigit()]
    jobs = sorted(folders, key=lambda job: int(job.name.partition("-")[0]))
    results = {job: read_result(job) for job in jobs}
    asked = {job: asked_of(job) for job in jobs}
    done = [job for job in jobs if results[job]]
    headline, mode = next(((results[job]["headline"], results[job]["headline_mode"]) for job in done
                           if "headline" in results[job]), ("", "max"))  # a study has none
    tested = headline.replace("val/", "test/")
    done.sort(key=lambda job: (-1 if mode == "max" else 1) * results[job].get(tested, 0))
    every = dict.fromkeys(key for words in asked.values() for key in words)
    varied = [key for key in every if len({words.get(key) for words in asked.values() if words}) > 1]
    rows = []
    for job in [*done, *(job for job in jobs if not results[job])]:
        result = results[job]
        reason = (job / "error.txt").read_text().splitlines()[0] if (job / "error.txt").is_file() else "unfinished"
        rows.append({"job": job.name, **{key: asked[job].get(key, "") for key in varied},
                     **{key: f"{result[key]:.4f}" if result else "" for key in (headline, tested) if key},
                     "seconds": f"{result['seconds']:.0f}" if "seconds" in result else "",
                     "state": "done" if result else f"failed: {reason}"})
    with open(path / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("\n" + listing.table([tuple(rows[0]), *(tuple(row.values()) for row in rows)]))
    print(f"\n{len(done)} of {len(jobs)} jobs done; {path}/results.csv")
    if len(done) > 1 and headline:
        groups: dict[Group, list[Path]] = defaultdict(list)
        for job in sorted(done, key=jobs.index):
            groups[tuple(asked[job].get(key, "") for key in varied if key != "seed")].append(job)
        draw(groups, headline, [key for key in varied if key != "seed"], title or path.name, path / "results.png")
        print(path / "results.png")
    return 0 if len(done) == len(jobs) else 7


def read_result(path: Path) -> dict[str, Any]:
    file = path / "result.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def asked_of(job: Path) -> dict[str, str]:
    """The words that a sweep's job was started with, by key."""
    file = job / "overrides.txt"
    return dict(line.lstrip("+~").split("=", 1) for line in file.read_text().splitlines() if "=" in line) if (
        file.is_file()) else {}


def curve(jobs: Iterable[Path], metric: str) -> tuple[list[int], list[float]]:
    """The metric by step, the mean over the jobs that have it at that step."""
    found: dict[int, list[float]] = defaultdict(list)
    for job in jobs:
        with open(job / "metrics.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get(metric):
                    found[int(row["step"])].append(float(row[metric]))
    return sorted(found), [mean(found[step]) for step in sorted(found)]


def draw(groups: dict[Group, list[Path]], headline: str, varied: list[str], title: str, file: Path) -> None:
    """Left: the headline metric by step, in validation (solid) and in training (dashed). Right: the test split over the
    first varied key that is a number with three values or more, a line for each choice of the others, and then nothing
    on the left of more than eight groups; without one, a bar for each group. A dot for each seed."""
    from matplotlib.figure import Figure

    name = headline.partition("/")[2]
    axis = next((place for place in range(len(varied)) if is_scale({group[place] for group in groups})), None)
    curves = axis is None or len(groups) <= 8
    figure = Figure(figsize=(11 if curves else 7.5, max(4.2, 1.6 + 0.28 * len(groups)) if axis is None else 4.4),
                    dpi=110, layout="constrained")
    *found, right = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    for left in found:
        for place, (group, jobs) in enumerate(groups.items()):
            left.plot(*curve(jobs, headline), color=f"C{place % 10}", label=", ".join(group) or "all")
            left.plot(*curve(jobs, f"train/{name}"), color=f"C{place % 10}", linestyle="--", linewidth=1, alpha=0.6)
        left.set(xlabel="step", ylabel=name.replace("_", " "), title="validation (solid), training as seen (dashed)")
        if len(groups) <= 12:
            left.legend(title=", ".join(varied) or None, fontsize=8)
    tested = {group: [read_result(job)[f"test/{name}"] for job in jobs] for group, jobs in groups.items()}
    if axis is None:
        draw_bars(right, tested)
    else:
        draw_lines(right, tested, axis, varied)
    right.set(title=f"test/{name}")
    for axes in (*found, right):
        axes.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    figure.savefig(file)


def is_scale(values: set[str]) -> bool:
    try:
        return len({float(value) for value in values}) >= 3
    except ValueError:
        return False


def draw_bars(axes: Any, tested: dict[Group, list[float]]) -> None:
    for place, values in enumerate(tested.values()):
        axes.barh(place, mean(values), color=f"C{place % 10}", alpha=0.75)
        axes.plot(values, [place] * len(values), "k.", markersize=4)
        axes.annotate(f" {mean(values):.4g}", (max(values), place), va="center", fontsize=9)
    axes.set_yticks(range(len(tested)), [", ".join(group) or "all" for group in tested],
                    fontsize=9 if len(tested) <= 12 else 6)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    every = [value for values in tested.values() for value in values]
    spread = max(every) - min(every)
    if min(every) > 2 * spread > 0:  # bars that begin at zero would all look alike
        axes.set_xlim(min(every) - spread, max(every) + 0.5 * spread)


def draw_lines(axes: Any, tested: dict[Group, list[float]], axis: int, varied: list[str]) -> None:
    rest = list(dict.fromkeys(group[:axis] + group[axis + 1 :] for group in tested))
    for place, others in enumerate(rest):
        points = sorted((float(group[axis]), values) for group, values in tested.items()
                        if group[:axis] + group[axis + 1 :] == others)
        axes.plot([x for x, _ in points], [mean(values) for _, values in points], color=f"C{place % 10}", marker="o",
                  markersize=3, label=", ".join(others) or None)
        for x, values in points:
            axes.plot([x] * len(values), values, ".", color=f"C{place % 10}", alpha=0.5)
    axes.set(xlabel=varied[axis], xticks=sorted({float(group[axis]) for group in tested}))
    if len(rest) > 1:
        axes.legend(title=", ".join(varied[:axis] + varied[axis + 1 :]), fontsize=8)
