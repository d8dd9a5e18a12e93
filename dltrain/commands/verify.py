"""`dltrain verify run=FOLDER`: gives the first steps of a run again, here, and says where the two part, and why."""

from __future__ import annotations

from dltrain.commands.stored import load_config, parse_pairs, parse_value, run_dir_of, take_own
from dltrain.config.free_keys import DERIVED, FREE

HELP = """\
dltrain verify run=FOLDER [steps=20] [key=value ...]    gives the first steps of a run again, on this machine, and
                                                        compares them with what the run recorded: its first batch, its
                                                        weights, each loss, and the readings of metrics.csv

  steps=200                      how many; by default 20, or as many as a run of an earlier version needs for a reading
  data.root=FOLDER               the data have moved

Nothing in the run folder changes. Where the two part, it says at which step, and what is not as it was: the config, the
code (by file), the data, the library versions, the device, the threads. Exit codes: 0 equal; else that of the
reason: 2 config or code, 3 data, 6 versions or machine, 1 none that is known."""


def run(words: list[str]) -> int:
    own, words = take_own(words, ("steps",))
    pairs = parse_pairs("verify", words)
    run_dir = run_dir_of(pairs)
    steps = parse_value("steps", own["steps"], "int >= 1") if "steps" in own else None
    changes = {key: value for key, value in pairs.items() if key != "run"}
    config = load_config(run_dir, changes, sorted(FREE - DERIVED))
    from dltrain.proof.rerun import verify  # torch from here on
    from dltrain.reporting import report

    codes: list[int] = []

    def compare() -> None:
        verdict = verify(config, run_dir, steps)
        print(f"{run_dir} and its first steps, given again here:")
        for line in verdict.lines():
            print(f"  {line}")
        codes.append(verdict.exit_code)

    return report(run_dir, compare) or codes[0]
