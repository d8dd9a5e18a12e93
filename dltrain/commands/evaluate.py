"""`dltrain eval run=FOLDER`: measures the best checkpoint of a run again."""

from __future__ import annotations

import sys

from dltrain.commands.stored import EVALUATION_KEYS, load_config, parse_pairs, run_dir_of
from dltrain.errors import UserError

HELP = """\
dltrain eval run=FOLDER [split=test|val] [key=value ...]    evaluates the best checkpoint again, writes eval.json

  split=val                      the validation split instead of the test split
  data.batch_size=1              any key of data, augment or trainer
  augment.test=ten_crop          what evaluation shows to the model: single, flip, ten_crop, scales_mean, scales_max"""


def run(words: list[str]) -> int:
    pairs = parse_pairs("eval", words)
    run_dir = run_dir_of(pairs)
    split = pairs.get("split", "test")
    if split not in ("val", "test"):
        raise UserError(f"split={split}: must be val or test")
    changes = {key: value for key, value in pairs.items() if key not in ("run", "split")}
    config = load_config(run_dir, changes, EVALUATION_KEYS)
    from dltrain import run as runs  # torch from here on
    from dltrain.reporting import report

    def measure() -> None:
        with run_dir.logging():
            values = runs.evaluate(config, run_dir, split, progress_bar=sys.stdout.isatty())
        for key, value in values.items():
            print(f"{key} {value:.4f}")
        run_dir.write_json("eval.json", {**values, **changes})

    return report(run_dir, measure)
