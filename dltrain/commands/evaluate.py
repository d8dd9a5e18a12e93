"""`dltrain eval run=FOLDER`: measures the best checkpoint of a run again, or given weights without a run."""

from __future__ import annotations

import sys
from pathlib import Path

from dltrain.commands.stored import EVALUATION_KEYS, load_config, parse_pairs, run_dir_of
from dltrain.config import launch
from dltrain.config.compose import compose
from dltrain.drawing.tables import format_count
from dltrain.errors import UserError
from dltrain.run_dir import RunDir

HELP = """\
dltrain eval run=FOLDER [split=test|val] [key=value ...]    evaluates the best checkpoint again, writes eval.json
dltrain eval model=... data=... model.pretrained.weights=FILE [split=test|val]    evaluates weights without a run

  split=val                      the validation split instead of the test split
  data.batch_size=1              any key of data, augment or trainer; without a run, any key
  augment.test=ten_crop          what evaluation shows to the model: single, flip, ten_crop, scales_mean, scales_max
  'model.pretrained.rename=["^module.:"]'    regular expressions that map the names of a file to the model's"""


def run(words: list[str]) -> int:
    split = next((word.partition("=")[2] for word in words if word.startswith("split=")), "test")
    if split not in ("val", "test"):
        raise UserError(f"split={split}: must be val or test")
    others = [word for word in words if not word.startswith("split=")]
    names_weights = any(word.startswith("model.pretrained.") for word in words)
    if names_weights and not any(word.startswith("run=") for word in words):
        return evaluate_weights(others, split)
    return evaluate_run(others, split)


def evaluate_run(words: list[str], split: str) -> int:
    pairs = parse_pairs("eval", words)
    run_dir = run_dir_of(pairs)
    changes = {key: value for key, value in pairs.items() if key != "run"}
    config = load_config(run_dir, changes, EVALUATION_KEYS)
    from dltrain import run as runs  # torch from here on
    from dltrain.reporting import report

    def measure() -> None:
        with run_dir.logging():
            values = runs.evaluate(config, run_dir, split, progress_bar=sys.stdout.isatty())
        print_metrics(values)
        run_dir.write_json("eval.json", {**values, **changes})

    return report(run_dir, measure)


def evaluate_weights(words: list[str], split: str) -> int:
    flags = launch.parse_flags(words)
    composed = compose(flags.overrides, flags.config_dir)
    config, run_dir = composed.job_config(), RunDir.timed(Path(composed.config.output_dir) / "eval")
    from dltrain import run as runs
    from dltrain.reporting import report

    def measure() -> None:
        values, count = runs.evaluate_pretrained(config, split, progress_bar=sys.stdout.isatty())
        print_metrics(values)
        source = config.model.pretrained.weights or config.model.pretrained.from_run
        print(f"{format_count(count, 'sample')} of the {split} split, weights {source}; {run_dir}/eval.json")
        run_dir.write_json("eval.json", {**values, "split": split, "samples": count, "weights": source})

    return report(run_dir, measure)


def print_metrics(values: dict[str, float]) -> None:
    for key, value in values.items():
        print(f"{key} {value:.4f}")
