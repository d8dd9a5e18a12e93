"""The results of the jobs of a sweep as tables: of the jobs, and of the settings that have several seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from dltrain import run_pause, stored_files
from dltrain.config.free_keys import READ_FROM_FILES
from dltrain.config.groups import natural_key
from dltrain.drawing.tables import format_table, write_csv
from dltrain.errors import UserError
from dltrain.repeats import compare, describe, deviation_of, interval_of
from dltrain.run_dir import RunDir
from dltrain.sweeps import jobs as named
from dltrain.sweeps.jobs import NOT_IN_ID, assigned
from dltrain.sweeps.values import Values, refuse_other_values

Group = tuple[str, ...]  # values of the varied keys except the seed; jobs with the same values form a group

MOST_ROWS = 40  # of a printed table


class Job(NamedTuple):
    run_dir: RunDir
    result: dict[str, float | str]  # empty before the job has finished, and if it was refused when it was started again
    overrides: dict[str, str]  # the values of its own config, of the keys that the command gave
    error: str

    def describe_state(self) -> str:
        if self.result:
            return "done"
        if self.error:
            return f"failed: {self.error}"
        if paused := run_pause.read(self.run_dir.path):
            return str(paused)
        return "stopped" if self.run_dir.checkpoint("last").is_file() else "to do"


class Table(NamedTuple):
    """`headline`: the metric that ranks, of validation; "" for studies, which have none. `done`: the best first.
    `varied`: the keys whose values differ between jobs."""

    jobs: list[Job]
    done: list[Job]
    headline: str
    mode: str
    varied: list[str]

    @property
    def test_metric(self) -> str:
        return self.headline.replace("val/", "test/")

    @property
    def settings(self) -> list[str]:
        """The keys that make a setting: all that vary but the seed."""
        return [key for key in self.varied if key != "seed"]

    def groups(self) -> dict[Group, list[Job]]:
        """The jobs that are done by their setting, the setting with the best mean in validation first."""
        grouped: dict[Group, list[Job]] = defaultdict(list)
        for job in self.done:
            grouped[tuple(job.overrides.get(key, "") for key in self.settings)].append(job)
        sign = -1 if self.mode == "max" else 1
        return dict(sorted(grouped.items(), key=lambda item: sign * mean(
            float(job.result[self.headline]) for job in item[1])))

    @property
    def ranked_jobs(self) -> list[Job]:
        """Those that are done first, by the headline, then the others."""
        return [*self.done, *(job for job in self.jobs if not job.result)]

    def rows(self) -> list[dict[str, str]]:
        """In the order of `ranked_jobs`."""
        rows = []
        for job in self.ranked_jobs:
            metrics = {key: f"{job.result[key]:.4f}" if job.result else "" for key in (self.headline, self.test_metric)
                       if key}
            seconds = f"{job.result['seconds']:.0f}" if "seconds" in job.result else ""
            rows.append({"job": job.run_dir.path.name, **{key: job.overrides.get(key, "") for key in self.varied},
                         **metrics, "seconds": seconds, "state": job.describe_state()})
        return rows

    def setting_rows(self) -> list[dict[str, str]]:
        """A row for each setting: its seeds, and of both metrics the mean, the deviation and the interval."""
        rows = []
        for group, repeats in self.groups().items():
            row = {**dict(zip(self.settings, group, strict=True)), "seeds": str(len(repeats))}
            for metric in (self.headline, self.test_metric):
                values = [float(job.result[metric]) for job in repeats]
                row |= {metric: f"{mean(values):.4f}", f"{metric} deviation": "", f"{metric} 95 %": ""}
                if len(values) > 1:
                    low, high = interval_of(values)
                    row |= {f"{metric} deviation": f"{deviation_of(values):.4f}",
                            f"{metric} 95 %": f"{low:.4f} to {high:.4f}"}
            rows.append(row)
        return rows

    def describe_best(self) -> str:
        """Whether the best two settings differ clearly over their seeds; "" where there are too few."""
        groups = [*self.groups().items()][:2]
        if len(groups) < 2:
            return ""
        first, second = ({job.overrides.get("seed", ""): float(job.result[self.headline]) for job in repeats}
                         for _, repeats in groups)
        comparison = compare(first, second)
        names = tuple(", ".join(group) for group, _ in groups)
        return describe((names[0], names[1]), self.headline, comparison) if comparison else ""


def read_table(folder: Path) -> Table:
    jobs = read_jobs(folder)
    done, headline, mode = ranked(jobs)
    return Table(jobs, done, headline, mode, varied_keys(jobs))


def write_rows(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    write_csv(file, [*rows[0]], [[*row.values()] for row in rows])


def print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    print("\n" + format_table([*rows[0]], [[*row.values()] for row in rows[:MOST_ROWS]]))
    if len(rows) > MOST_ROWS:
        print(f"  and {len(rows) - MOST_ROWS} more")


def ranked(jobs: Iterable[Job]) -> tuple[list[Job], str, str]:
    """The jobs that are done, the best in validation first, the metric that decides and its mode."""
    done = [job for job in jobs if job.result]
    headline, mode = next(((str(job.result["headline"]), str(job.result["headline_mode"])) for job in done
                           if "headline" in job.result), ("", "max"))
    done.sort(key=lambda job: (-1 if mode == "max" else 1) * float(job.result.get(headline, 0)))
    return done, headline, mode


def best(folder: Path) -> RunDir:
    """The folder of the job that is best in validation. Raises UserError if none is done."""
    jobs = read_jobs(folder)
    done, headline, _ = ranked(jobs)
    if not headline:
        raise UserError(f"run={folder}: no job of this sweep is done; dltrain resume run={folder} does what is missing")
    first = done[0]
    print(f"{first.run_dir.path.name}: the best of {len(done)} jobs, {headline} {float(first.result[headline]):.4f}")
    return first.run_dir


def read_jobs(folder: Path) -> list[Job]:
    """In the order in which they were asked for. Each has the values of its own config for all keys that any command
    gave."""
    given = {job.name: assigned(job.words) for job in stored_jobs(folder)}
    keys = dict.fromkeys(key for values in [{"seed": ""}, *given.values()] for key in values)
    values = Values()
    return [read_job(RunDir(folder / name), words, keys, values) for name, words in given.items()]


def read_job(run_dir: RunDir, given: dict[str, str], keys: Iterable[str], values: Values) -> Job:
    file = run_dir.path / "error.txt"
    try:
        error = (stored_files.read_text(file).splitlines() or ["unfinished"])[0] if file.is_file() else ""
        run_pause.read(run_dir.path)
        used = values.read(run_dir.path, keys)
        refuse_other_values(run_dir.path, used, {key: word for key, word in given.items() if key not in NOT_IN_ID})
        return Job(run_dir, {} if error else run_dir.read_result(), used or given, error)
    except UserError as damage:
        return Job(run_dir, {}, given, str(damage))


def varied_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys whose values differ between jobs, less those that change no result."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides if key not in NOT_IN_ID)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs if job.overrides}) > 1]


def state_of(run_dir: RunDir) -> str:
    if (run_dir.path / "error.txt").is_file():
        return "failed"
    if run_dir.is_finished:
        return "done"
    if paused := run_pause.read(run_dir.path):
        return "pruned" if paused.pruned else "paused"
    return "stopped" if run_dir.checkpoint("last").is_file() else "to do"


def stored_jobs(folder: Path) -> list[named.Job]:
    """All jobs of the folder of a sweep, also those of earlier versions, whose folders were numbered."""
    stored = named.read(folder)
    names = {job.name for job in stored}
    for file in sorted(folder.glob(f"*/{named.OVERRIDES}"), key=lambda file: natural_key(file.parent.name)):
        name, run_dir = file.parent.name, RunDir(file.parent)
        if name not in names:
            words = stored_files.read_text(file).splitlines()
            stored.append(named.Job(stored_id(run_dir) if run_dir.has_config else name, name, words))
    return stored


def stored_id(run_dir: RunDir) -> str:
    """The id of the job whose folder it is. Raises UserError for a damaged config."""
    return named.job_id(run_dir.read_config(), run_dir.read_splits().get("sizes", READ_FROM_FILES))
