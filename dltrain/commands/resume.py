"""`dltrain resume run=FOLDER`: continues a run that was stopped or killed, with bit-identical results."""

from __future__ import annotations

from dltrain.commands.stored import load_config, parse_pairs, run_dir_of
from dltrain.config.free_keys import DERIVED, FREE
from dltrain.run_dir import RunDir
from dltrain.same_data import take_word

HELP = """\
dltrain resume run=FOLDER [key=value ...]    continues a run that was stopped or killed; its weights end bit-identical
                                             to those of a run that was not interrupted

  data.root=FOLDER               the data have moved
  data.num_workers=0             threads that decode images
  trainer.log_every_n_steps=50   training metrics are averaged and logged every so many steps
  trainer.eval_batch_size=16     samples at once in evaluation, at most
  trainer.checkpoint_every_minutes=5, trainer.checkpoint_every_steps=100
  trainer.accelerator=cpu        on another device; the last bits of the weights then differ, and a line says so
  data.timeout_seconds=60, trainer.dist_timeout_seconds=60, trainer.requeue=true
  on_changed_data=accept         continue although photos, texts or labels have changed since the run began

data.download, output_dir and name may change too, and no other key, since it would change what is trained.
A finished run is not changed."""


def run(words: list[str]) -> int:
    words, accept = take_word(words)
    pairs = parse_pairs("resume", words)
    run_dir = RunDir(run_dir_of(pairs).path, accept)
    changes = {key: value for key, value in pairs.items() if key != "run"}
    config = load_config(run_dir, changes, sorted(FREE - DERIVED))
    from dltrain import run as runs  # torch from here on
    from dltrain.proof.rerun import explained
    from dltrain.reporting import report

    print(f"{config.choices.model} on {config.choices.data}; folder {run_dir}", flush=True)

    def train() -> None:
        with explained(run_dir):
            runs.train(config, run_dir)

    return report(run_dir, train)
