"""`dltrain [train] ...`: trains and tests one run, or a sweep of them. Composes and checks before torch is imported."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dltrain import same_config, same_data, slurm, trust
from dltrain.config import compose, groups, launch
from dltrain.config.words import take_config_folders
from dltrain.disk import write_text
from dltrain.errors import InterruptedRun, UserError
from dltrain.own_modules import guard_imports, put_last
from dltrain.run_dir import RunDir
from dltrain.run_lock import locked
from dltrain.signals import Signals

HELP = """\
dltrain [train] [choices] [key=value ...]    trains, then tests the best weights; every choice has a default

  model=resnet56 data=cifar10    choices; dltrain ls describes them, dltrain --help names them
  model/backbone=lite0           the backbone of a model that has one
  task.optimizer.lr=0.05         any key of the config; dltrain --cfg job prints them all, dltrain why KEY explains one
  name=first                     the run folder outputs/first; the same command again continues that run
  recipe=none                    do not use the recipe of this model and data
  experiment=memory              a prepared experiment: one run, a sweep, or a comparison of several runs
  -m seed=0,1,2                  a sweep: one run per combination of the listed values, one table at the end
  --config-dir FOLDER            your own model/*.yaml, data/*.yaml, recipe/*.yaml ... beside dltrain's
  trust=[my_package]             a config may name classes of this package too (docs/trust.md)
  --cfg job                      prints the composed config and does not train

Ctrl-C saves and stops; a second one stops at once. Exit codes: 0 done, 2 command or config, 3 data, 4 checkpoint,
5 diverged, 6 machine, 7 jobs of a sweep failed, 8 an exception in your own code, 128 + n stopped by signal n,
1 a bug."""

SWEEP_JOB = "${hydra:job.num}-${hydra:runtime.choices.model}-on-${hydra:runtime.choices.data}"


def run(words: list[str]) -> int:
    words, accept = same_data.take_word(words)
    flags = launch.parse_flags(words)
    if flags.shell_completion or flags.hydra_help or flags.info:
        return launch.hand_to_hydra(flags)
    composed = compose.compose(flags.overrides, flags.config_dir, flags.multirun)
    for folder in composed.folders:
        for name in groups.shadowed(folder):
            print(f"dltrain: warning: {folder}/{name}.yaml is not used: dltrain has its own {name}; rename yours",
                  file=sys.stderr)
    if flags.cfg:
        return print_config(composed, flags)
    if composed.is_sweep:
        return sweep(composed, flags.config_dir, accept)
    return train_one(composed, flags.config_dir, accept)


def print_config(composed: compose.Composed, flags: argparse.Namespace) -> int:
    if flags.cfg != "job" or flags.package:
        flags.overrides = composed.words
        return launch.hand_to_hydra(flags)
    if composed.is_sweep:
        print("# the first job of the sweep")
    print(OmegaConf.to_yaml(composed.config, resolve=flags.resolve), end="")
    return 0


def train_one(composed: compose.Composed, config_dir: str | None, accept_changed_data: bool) -> int:
    run_dir = open_run_dir(composed)
    run_dir.accepts_changed_data = accept_changed_data
    if run_dir.is_finished:
        print(run_dir.describe_finished())
        return 0
    print(announcement(composed, run_dir), flush=True)
    from dltrain.reporting import report  # torch from here on

    return report(run_dir, lambda: start(composed, run_dir, config_dir))


def open_run_dir(composed: compose.Composed) -> RunDir:
    """A new folder, that of `name=`, or that of the same run in this Slurm job before a requeue. Raises UserError if
    the run of `name=` began with another config."""
    config, root = composed.job_config(), Path(composed.config.output_dir)
    for folder in [] if config.name else slurm.folders_of_job(root / title(composed)):
        with suppress(UserError):
            same_config.refuse_other_config(RunDir(folder), config)
            return RunDir(folder)
    run_dir = RunDir.named(root, config.name) if config.name else RunDir.timed(root / title(composed))
    same_config.refuse_other_config(run_dir, config)
    return run_dir


def start(composed: compose.Composed, run_dir: RunDir, config_dir: str | None, command: list[str] | None = None
          ) -> None:
    """`command`: what command.txt records, by default the command line."""
    from dltrain import run
    from dltrain.proof.rerun import explained

    config = composed.job_config()
    if "study" in config:
        run.study(config, run_dir, composed.comments(), config_dir)
    else:
        with explained(run_dir):
            run.train(config, run_dir, composed.comments(), command)


def title(composed: compose.Composed) -> str:
    chosen = composed.chosen
    if "study" in composed.config:
        return chosen.get("experiment", "study")
    return f"{chosen['model']}-on-{chosen['data']}"


def announcement(composed: compose.Composed, run_dir: RunDir) -> str:
    if "study" in composed.config:
        return f"{title(composed)}; folder {run_dir}"
    chosen, recipe = composed.chosen, composed.chosen.get("recipe")
    no_recipe = f"no recipe for this pair, {settings_of(chosen['model'], composed)}"
    because = composed.reasons.get(f"recipe={recipe}")
    note = f"recipe {recipe}{f' ({because})' if because else ''}" if recipe not in (None, "none") else no_recipe
    lines = [f"{chosen['model']} on {chosen['data']}, {note}; folder {run_dir}"]
    others = [(word, reason) for word, reason in composed.reasons.items() if not word.startswith("recipe=")]
    if others:
        lines.append(f"chosen by {others[0][1]}: {' '.join(word for word, _ in others)}")
    return "\n".join(lines)


def settings_of(model: str, composed: compose.Composed) -> str:
    """Where the optimizer and the length of the run come from if there is no recipe."""
    file = groups.path_of("model", model, *composed.folders)
    return f"settings of model={model}" if file and groups.stated(file, "task", "optimizer") else "defaults"


def sweep(composed: compose.Composed, config_dir: str | None, accept_changed_data: bool) -> int:
    """All jobs, then one table and one picture. A failing job is reported at once and does not end the others; a signal
    does."""
    config, experiment = composed.config, composed.chosen.get("experiment")
    root = Path(config.output_dir)
    folder = (RunDir.named(root, config.name) if config.name else RunDir.timed(root / "sweeps")).path
    file = groups.path_of("experiment", experiment, *composed.folders) if experiment else None
    heading = groups.describe(file) if file else folder.name
    words = [*composed.words, f"hydra.sweep.dir={quote(folder)}", f"hydra.sweep.subdir={SWEEP_JOB}",
             "hydra.sweeper.params=null"]  # the sweep of an experiment is already in `words`
    from dltrain import sweeps

    try:
        loader = launch.SweepLoader(config_dir)
        with Signals() as signals:
            signals.record()
            launch.sweep(words, loader, SweepJob(loader, accept_changed_data, signals))
    except InterruptedRun:
        sweeps.finish(folder, heading)
        print("interrupted; the same command with name= of this folder below output_dir skips the finished jobs")
        raise
    return sweeps.finish(folder, heading)


def quote(path: Path) -> str:
    """A path as a value in Hydra's grammar, whatever is in it."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class SweepJob:
    """What Hydra calls with the config of each job. Returns the headline metric, for sweepers that optimise it."""

    def __init__(self, loader: launch.SweepLoader, accept_changed_data: bool, signals: Signals):
        self.loader, self.accept_changed_data, self.signals = loader, accept_changed_data, signals
        self.trusted = trust.command_words()  # a launcher may start the job in another process

    def __call__(self, config: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        from dltrain.reporting import report

        if self.signals.received is not None:
            name = signal.Signals(self.signals.received).name
            raise InterruptedRun(self.signals.received, f"{name}: stopped between two jobs")
        guard_imports()
        put_last(take_config_folders(trust.take(self.trusted))[1])
        hydra = HydraConfig.get()
        run_dir, words = RunDir(Path(os.path.relpath(hydra.runtime.output_dir))), list(hydra.overrides.task)
        run_dir.accepts_changed_data = self.accept_changed_data
        if report(run_dir, lambda: self.train(config, run_dir, words)) == 0:
            (run_dir.path / "error.txt").unlink(missing_ok=True)
        result = run_dir.read_result()
        return result[result["headline"]] if "headline" in result else None

    def train(self, config: DictConfig, run_dir: RunDir, words: list[str]) -> None:
        from dltrain import run
        from dltrain.proof.rerun import explained

        print(f"\n{run_dir.path.name}: {' '.join(words)}", flush=True)
        same_config.refuse_other_config(run_dir, config)
        with locked(run_dir.path):
            write_text(run_dir.path / "overrides.txt", "\n".join(words) + "\n")
        comments = self.loader.compose_job(words).comments()
        if "study" in config:
            run.study(config, run_dir, comments, self.loader.config_dir)
        else:
            with explained(run_dir):
                run.train(config, run_dir, comments)
