"""`dltrain eval run=FOLDER`: measures the weights of a run again, or given weights without a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dltrain.commands.stored import EVALUATION_KEYS, load_config, parse_pairs, run_dir_of
from dltrain.config import launch
from dltrain.config.compose import compose
from dltrain.disk import write_text
from dltrain.drawing.tables import format_count, format_table, write_csv
from dltrain.errors import JOBS_FAILED, UserError
from dltrain.run_dir import RunDir
from dltrain.run_log import logging_to
from dltrain.sweeps.jobs import is_sweep

if TYPE_CHECKING:
    from dltrain.evaluation import Evaluation

HELP = """\
dltrain eval run=FOLDER [key=value ...]    measures the weights of a run again, writes eval.json;
                                           beside a run folder that is read-only; of a sweep, every job's
dltrain eval model=... data=... model.pretrained.weights=FILE [key=value ...]    measures weights without a run

  split=val                      test, val or train (without augmentation); test if it is not given
  checkpoint=last                the weights of the best or of the last checkpoint of a run; best if it is not given
  data.batch_size=1              any key of data, augment or trainer; without a run, any key
  augment.test=ten_crop          what evaluation shows to the model: single, flip, ten_crop, scales_mean, scales_max
  'model.pretrained.rename=["^module.:"]'    regular expressions that map the names of a file to the model's"""

MOST_CLASSES = 30  # in a printed table
CHOICES = {"split": ("test", "val", "train"), "checkpoint": ("best", "last")}


def run(words: list[str]) -> int:
    chosen = {"split": "test", "checkpoint": "best"}
    others = []
    for word in words:
        key, _, value = word.partition("=")
        if key not in CHOICES:
            others.append(word)
        elif value not in CHOICES[key]:
            raise UserError(f"{word}: must be {' or '.join(CHOICES[key])}")
        else:
            chosen[key] = value
    names_weights = any(word.startswith("model.pretrained.") for word in words)
    if names_weights and not any(word.startswith("run=") for word in words):
        return evaluate_weights(others, chosen["split"])
    return evaluate_run(others, **chosen)


def evaluate_run(words: list[str], split: str, checkpoint: str) -> int:
    pairs = parse_pairs("eval", words)
    run_dir = run_dir_of(pairs)
    changes = {key: value for key, value in pairs.items() if key != "run"}
    if is_sweep(run_dir.path):
        return evaluate_sweep(run_dir.path, changes, split, checkpoint)
    return evaluate_folder(run_dir, changes, split, checkpoint)


def evaluate_sweep(folder: Path, changes: dict[str, str], split: str, checkpoint: str) -> int:
    """Each job that is done, then a table of all metrics, also in eval.csv. Returns 7 if one cannot be measured."""
    from dltrain.sweeps.table import ranked, read_jobs

    codes, rows = [], []
    for job in ranked(read_jobs(folder))[0]:
        print(f"\n{job.run_dir.path.name}")
        codes.append(evaluate_folder(job.run_dir, changes, split, checkpoint))
        if codes[-1] == 0:
            values = json.loads(job.run_dir.writable_place("eval.json").read_text())
            rows.append({"job": job.run_dir.path.name, **{key: f"{value:.4f}" for key, value in values.items()
                                                          if key.startswith(f"{split}/") and key.count("/") == 1}})
    if not codes:
        raise UserError(f"run={folder}: no job of this sweep is done; dltrain resume run={folder} does what is missing")
    if rows:
        header = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[row.get(key, "") for key in header] for row in rows]
        file = RunDir(folder).writable_place("eval.csv")
        write_csv(file, header, cells)
        print(f"\n{format_table(header, cells)}\n\n{file}")
    return JOBS_FAILED if any(codes) else 0


def evaluate_folder(run_dir: RunDir, changes: dict[str, str], split: str, checkpoint: str) -> int:
    config = load_config(run_dir, changes, EVALUATION_KEYS)
    from dltrain import evaluation  # torch from here on
    from dltrain.reporting import report

    def measure() -> None:
        with logging_to(run_dir.path / "log.txt" if run_dir.is_writable else None):
            measured = evaluation.evaluate(config, run_dir, split, checkpoint, progress_bar=sys.stdout.isatty())
        present(measured, split, run_dir, changes)

    return report(run_dir, measure)


def evaluate_weights(words: list[str], split: str) -> int:
    flags = launch.parse_flags(words)
    composed = compose(flags.overrides, flags.config_dir)
    config, run_dir = composed.job_config(), RunDir.timed(Path(composed.config.output_dir) / "eval")
    from dltrain import evaluation
    from dltrain.reporting import report

    def measure() -> None:
        present(evaluation.evaluate_pretrained(config, split, progress_bar=sys.stdout.isatty()), split, run_dir, {})

    return report(run_dir, measure)


def table_of_classes(metrics: Mapping[str, float]) -> str:
    """A row for each class, of metrics such as test/recall/NAME; "" where there are none, or too many to read."""
    values: dict[str, dict[str, str]] = {}
    for key, value in metrics.items():
        if key.count("/") > 1:
            _, metric, name = key.split("/", 2)
            values.setdefault(name, {})[metric] = f"{value:.4f}"
    columns = list(dict.fromkeys(metric for row in values.values() for metric in row))
    if not 0 < len(values) <= MOST_CLASSES:
        return ""
    rows = [[name, *(row.get(metric, "-") for metric in columns)] for name, row in values.items()]
    return format_table(["class", *columns], rows, right=range(1, len(columns) + 1))


def present(evaluation: Evaluation, split: str, run_dir: RunDir, changes: Mapping[str, str]) -> None:
    """Prints the metrics and what they are of, and writes both into eval.json."""
    for key, value in evaluation.metrics.items():
        if key.count("/") == 1:
            print(f"{key} {value:.4f}")
    if table := table_of_classes(evaluation.metrics):
        print(table)
    weights = ", ".join(f"{key} {value}" for key, value in evaluation.weights.items())
    file = run_dir.writable_place("eval.json")
    print(f"{format_count(evaluation.samples, 'sample')} of the {split} split, {weights}; {file}")
    values = {**evaluation.metrics, "split": split, "samples": evaluation.samples, **evaluation.weights, **changes}
    write_text(file, json.dumps(values, indent=1) + "\n")
