"""`dltrain replay run=FOLDER step=N`: gives one past step of a run again, to the last bit, and shows what is in it."""

from __future__ import annotations

from pathlib import Path

from dltrain.commands.stored import load_config, parse_pairs, parse_value, run_dir_of, take_own
from dltrain.config.free_keys import DERIVED, FREE
from dltrain.errors import UserError

HELP = """\
dltrain replay run=FOLDER step=N [key=value ...]    gives step N of a run again, to the last bit: its loss, a picture of
                                                    its batch as the model saw it, and of each layer the output and
                                                    the gradient: mean, deviation, largest value, share of zeros,
                                                    values that are not finite

  step=nonfinite                 the first step after the last checkpoint whose loss or gradient is not finite; a run
                                 that diverges does this itself
  from=start                     from the start of the run; by default from its last or previous checkpoint where that
                                 is before the step, else from the start
  output=FOLDER                  where layers.csv, layers.png and the picture are written; FOLDER/replay/step_N if not
                                 given
  data.root=FOLDER               the data have moved

The gradient is that before clipping. What the run recorded up to the step is compared with what is found here; where
they part, the step is not that of the run, and dltrain verify says why."""

KEYS = {"step": "int >= 1 or one of nonfinite", "from": "one of start | checkpoint", "output": "str"}


def run(words: list[str]) -> int:
    own, words = take_own(words, KEYS)
    pairs = parse_pairs("replay", words)
    run_dir = run_dir_of(pairs)
    if not own.get("step"):
        raise UserError(f"replay needs step=N, as in dltrain replay run={run_dir} step=1")
    step = None if own["step"] == "nonfinite" else parse_value("step", own["step"], "int >= 1")
    begin = parse_value("from", own.get("from", "checkpoint"), KEYS["from"])
    config = load_config(run_dir, {key: value for key, value in pairs.items() if key != "run"}, sorted(FREE - DERIVED))
    from dltrain.proof.layers import format_layers  # torch from here on
    from dltrain.proof.rerun import replay
    from dltrain.reporting import report

    def show() -> None:
        made = replay(config, run_dir, step, Path(own["output"]).expanduser() if "output" in own else None,
                      from_start=begin == "start")
        print(made.headline())
        print(f"  equal to the run: {', '.join(made.agreement) or 'it recorded nothing up to this step'}")
        if made.parted:
            print(f"  not equal to the run: {made.parted}; dltrain verify run={run_dir} says why")
        print(format_layers(made.record.layers))
        for file in made.files:
            print(file)

    return report(run_dir, show)
