"""`dltrain [train] ...`: trains and tests one run, or a sweep of them. Composes and checks before torch is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from dltrain import same_config, same_data, slurm
from dltrain.commands.starting import run_jobs, start_config, train_job
from dltrain.config import compose, groups, launch
from dltrain.config.interpolations import to_plain
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.studies.claims import code_of_claims
from dltrain.sweeps import search_words
from dltrain.sweeps.cost import Shape, shape_of
from dltrain.sweeps.jobs import Job, job_id
from dltrain.sweeps.limits import limits_of
from dltrain.sweeps.planning import Planner, describe

HELP = """\
dltrain [train] [choices] [key=value ...]    trains, then tests the best weights; every choice has a default

  model=resnet56 data=cifar10    choices; dltrain ls describes them, dltrain help model names them
  model/backbone=lite0           the backbone of a model that has one
  task.optimizer.lr=0.05         any key of the config; dltrain --cfg job prints them all, dltrain why KEY explains one
  name=first                     the run folder outputs/first; the same command again continues that run
  recipe=none                    do not use the recipe of this model and data
  experiment=memory              a prepared experiment: one run, a sweep, or a comparison of several runs
  -m seed=0,1,2                  a sweep: one run per combination of the listed values, one table at the end;
                                 with plan=true its jobs are listed; max_jobs=4, max_hours=2: no more now
  -m search=tpe trials=20 'lr=tag(log, interval(1e-3, 1))'
                                 jobs are proposed as the results come; also search=random, halving, hyperband
  --config-dir FOLDER            your own model/*.yaml, data/*.yaml, recipe/*.yaml ... beside dltrain's
  trust=[my_package]             a config may name classes of this package too (docs/trust.md)
  --cfg job                      prints the composed config and does not train

Ctrl-C saves and stops; a second one stops at once. Exit codes: dltrain help codes."""


LIMITS = ("plan", "max_jobs", "max_hours", *search_words.WORDS)  # words of a sweep


def run(words: list[str]) -> int:
    words, accept = same_data.take_word(words)
    limits = [word for word in words if word.partition("=")[0] in LIMITS]
    flags = launch.parse_flags([word for word in words if word not in limits])
    if flags.shell_completion or flags.hydra_help or flags.info:
        return launch.hand_to_hydra(flags)
    samples = bool(search_words.split_words(limits)[0])
    composed = compose.compose(flags.overrides, flags.config_dir, flags.multirun, samples=samples)
    for folder in composed.folders:
        for name in groups.shadowed(folder):
            print(f"dltrain: warning: {folder}/{name}.yaml is not used: dltrain has its own {name}; rename yours",
                  file=sys.stderr)
    if flags.cfg:
        return print_config(composed, flags)
    if composed.is_sweep:
        return sweep(composed, flags.config_dir, accept, limits)
    if limits:
        raise UserError(f"{limits[0]}: for a sweep only (dltrain -m ...)")
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
    if same_config.has_all(run_dir, composed.job_config()):
        print(run_dir.describe_finished())
        return code_of_claims(run_dir.read_result())
    print(announcement(composed, run_dir), flush=True)
    from dltrain.reporting import report  # torch from here on

    return report(run_dir, lambda: start(composed, run_dir, config_dir)) or code_of_claims(run_dir.read_result())


def open_run_dir(composed: compose.Composed) -> RunDir:
    """A new folder, that of `name=`, or that of the same run in this Slurm job before a requeue. Raises UserError if
    the run of `name=` began with another config."""
    config, root = composed.job_config(), Path(composed.config.output_dir)
    if "trainer" in config and config.trainer.get("nodes", 1) > 1 and not config.name:
        raise UserError(f"trainer.nodes={config.trainer.nodes}: needs name=NAME, since all nodes work in one folder")
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
    start_config(composed.job_config(), run_dir, composed.comments(), config_dir, command)


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


def sweep(composed: compose.Composed, config_dir: str | None, accept_changed_data: bool, limit_words: list[str]) -> int:
    """Every job is composed and checked before the folder of the sweep is made."""
    from dltrain.sweeps import running
    from dltrain.sweeps.finish import finish

    search_by, others = search_words.split_words(limit_words)
    limits = limits_of(others)
    if OmegaConf.select(composed.config, "trainer.nodes", default=1) > 1:
        raise UserError("trainer.nodes: a sweep runs on one node; give each job of several a command of its own")
    loader = launch.SweepLoader(config_dir)
    hydra = launch.load_sweep(composed.words, loader)
    if limit_words and not launch.is_grid(hydra):
        raise UserError(f"{limit_words[0]}: for sweeps over listed values; a sweeper has keys of its own")
    if search := search_words.search_of(search_by):
        from dltrain.commands import searching

        return searching.run(search, composed, loader, limits, accept_changed_data, partial(train_job, loader))
    root, name = Path(composed.config.output_dir), composed.config.name
    combinations, swept = loader.combinations(composed.words) if launch.is_grid(hydra) else ([], [])

    shapes: dict[str, Shape] = {}  # by id

    def identify(words: list[str]) -> tuple[str, str]:
        job = loader.compose_job(words)
        config = to_plain(job.config)
        id_ = job_id(config)
        if limits.plan:
            shapes[id_] = shape_of(config)
        return id_, title(job)

    planner = Planner(root / (name or "sweeps/new"), swept, identify)
    planned = planner.plan(combinations)
    if limits.plan:
        return print_plan(planned, planner.folder, loader, shapes)
    folder = (RunDir.named(root, name) if name else RunDir.timed(root / "sweeps")).path
    heading = heading_of(composed) or folder.name
    if launch.is_grid(hydra):
        return run_jobs(planned, folder, loader, hydra, accept_changed_data, heading, limits)
    loader.folder_of = lambda words: planner.job(words).name
    job = running.SearchJob(partial(train_job, loader), accept_changed_data)
    return running.search(folder, lambda: launch.search(composed.words, folder, loader, job), job,
                          partial(finish, folder, heading))


def print_plan(planned: Sequence[Job], folder: Path, loader: launch.SweepLoader, shapes: Mapping[str, Shape]) -> int:
    """`shapes`: by the id of the job."""
    from dltrain.commands.bench import StatusLine, prepare
    from dltrain.reporting import report
    from dltrain.sweeps.costs import costs_of

    def measure() -> None:
        line = StatusLine()
        costs = costs_of([(RunDir(folder / job.name), shapes[job.id], job.words) for job in planned],
                         lambda words: prepare(loader.compose_job(words).job_config(), line))
        line("")
        print(describe(planned, folder, costs))

    return report(RunDir(folder), measure)


def heading_of(composed: compose.Composed) -> str:
    """What the experiment says of itself; "" if none is chosen."""
    name = composed.chosen.get("experiment")
    file = groups.path_of("experiment", name, *composed.folders) if name else None
    return groups.describe(file) if file else ""
