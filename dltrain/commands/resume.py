"""`dltrain resume run=FOLDER`: continues a run that was stopped or killed, with bit-identical results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dltrain.commands import searching
from dltrain.commands.starting import run_jobs, train_job
from dltrain.commands.stored import load_config, parse_pairs, run_dir_of
from dltrain.config import launch
from dltrain.config.free_keys import DERIVED, FREE
from dltrain.config.words import take_config_folders
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.same_data import take_word
from dltrain.sweeps import search_words
from dltrain.sweeps.jobs import is_sweep
from dltrain.sweeps.limits import Limits
from dltrain.sweeps.table import stored_jobs

HELP = """\
dltrain resume run=FOLDER [key=value ...]    continues a run that was stopped or killed; its weights end bit-identical
                                             to those of a run that was not interrupted

  data.root=FOLDER               the data have moved
  data.num_workers=0             threads that decode images
  trainer.log_every_n_steps=50   training metrics are averaged and logged every so many steps
  trainer.eval_batch_size=16     samples at once in evaluation, at most
  trainer.checkpoint_every_minutes=5, trainer.checkpoint_every_steps=100
  trainer.accelerator=cpu        on another device; the last bits of the weights then differ, and a line says so
  trainer.threads=4              likewise; without it a run keeps the threads that its config.yaml names, if any
  data.timeout_seconds=60, trainer.dist_timeout_seconds=60, trainer.requeue=true
  on_changed_data=accept         continue although photos, texts or labels have changed since the run began

Of the folder of a sweep, all jobs that are not done; of a search, those that it still takes.
data.download, output_dir and name may change too, and no other key, since it would change what is trained.
A finished run is not changed."""


def run(words: list[str]) -> int:
    words, accept = take_word(words)
    pairs = parse_pairs("resume", words)
    run_dir = RunDir(run_dir_of(pairs).path, accept)
    changes = {key: value for key, value in pairs.items() if key != "run"}
    if is_sweep(run_dir.path):
        return resume_sweep(run_dir.path, changes, accept, take_config_folders(words)[1])
    config = load_config(run_dir, changes, sorted(FREE - DERIVED))
    from dltrain import run as runs  # torch from here on
    from dltrain.proof.rerun import explained
    from dltrain.reporting import report

    print(f"{config.choices.model} on {config.choices.data}; folder {run_dir}", flush=True)

    def train() -> None:
        with explained(run_dir):
            runs.train(config, run_dir)

    return report(run_dir, train)


def resume_sweep(folder: Path, changes: Mapping[str, str], accept_changed_data: bool, config_folders: Sequence[Path]
                 ) -> int:
    """All jobs that are not done, also those that have not started."""
    if stray := [key for key in changes if key not in FREE - DERIVED - {"name", "output_dir"}]:
        raise UserError(f"{stray[0]} cannot change in a sweep that has started; dltrain -m name={folder.name} adds "
                        "jobs with other values")
    words = [f"{key}={value}" for key, value in changes.items()]
    if search := search_words.words_of(folder):
        return searching.resume(folder, [*search, *words], str(config_folders[0]) if config_folders else None,
                                accept_changed_data, train_job)
    planned = [job._replace(words=[*job.words, *words]) for job in stored_jobs(folder)]
    loader = launch.SweepLoader(str(config_folders[0]) if config_folders else None)
    return run_jobs(planned, folder, loader, launch.load_sweep([], loader), accept_changed_data, folder.name, Limits())
