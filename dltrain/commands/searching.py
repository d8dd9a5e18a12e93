"""`dltrain -m search=...`: a sweep whose jobs are chosen from the results so far."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from dltrain import trust
from dltrain.config import compose, launch
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.sweeps.halving import Bracket, Rung, hyperband, successive_halving, total_epochs
from dltrain.sweeps.jobs import Job, job_id
from dltrain.sweeps.limits import Limits
from dltrain.sweeps.planning import Planner
from dltrain.sweeps.search_words import DEFAULT_TRIALS, Search, remember, search_of, split_words
from dltrain.sweeps.searching import Searching
from dltrain.sweeps.space import Space

TrainJob = Callable[..., None]  # train_job of starting.py


def run(search: Search, composed: compose.Composed, loader: launch.SweepLoader, limits: Limits,
        accept_changed_data: bool, train: TrainJob) -> int:
    """Composes a job with each end of a range, and each listed value, before the folder of the sweep is made. Returns
    the exit code."""
    root, name = Path(composed.config.output_dir), composed.config.name
    space = Space.of(loader.overrides(composed.words))
    configs = [loader.compose_job(words).config for words in space.corners()]
    planner = Planner(root / (name or "sweeps/new"), space.swept,
                      lambda words: (job_id(compose.to_plain(loader.compose_job(words).config)), ""))
    brackets: list[Bracket] = []
    if search.method == "tpe":
        check_pruning(search, configs[0])
    else:
        brackets = brackets_of(search, space, configs[0], loader, planner, composed.words)
    if limits.plan:
        print(describe(search, space, brackets, planner.folder))
        return 0

    from dltrain.sweeps import running
    from dltrain.sweeps.finish import finish

    folder = (RunDir.named(root, name) if name else RunDir.timed(root / "sweeps")).path
    remember(folder, search, composed.words, f"{planner.job(space.corners()[0]).id} {space}")
    start = running.SweepJob(train, accept_changed_data, limits.max_hours)
    loader.folder_of = lambda words: planner.job(words).name
    hydra = launch.load_sweep(composed.words, loader)

    def launch_until(todo: list[Job], **until: object) -> list[int | None]:
        start.train_run = partial(train, **until)
        return running.launch_all(todo, partial(launch.launch_jobs, hydra, folder, loader), start)

    def work() -> None:
        searching = Searching(folder, launch_until, limits.max_jobs)
        if search.method == "tpe":
            from dltrain.sweeps.study import Study

            mode = trust.locate("task._target_", configs[0].task._target_).headline_mode
            searching.run_trials(Study(folder, space, search.seed, mode), planner.job,
                                 search.trials or DEFAULT_TRIALS, search.prune)
        else:
            searching.run_brackets(brackets)

    return running.search(folder, work, start, partial(finish, folder, folder.name, may_be_cut=True))


def resume(folder: Path, words: list[str], config_dir: str | None, accept_changed_data: bool,
           train_job: TrainJob) -> int:
    """Goes on with the search of a folder, by its words."""
    own, others = split_words(words)
    place = [f"output_dir={launch.quote(folder.parent)}", f"name={launch.quote(Path(folder.name))}"]
    loader = launch.SweepLoader(config_dir)
    search = search_of(own)
    if search is None:
        raise UserError(f"run={folder}: its search.json names no search; type the command of the search again")
    return run(search, compose.compose([*others, *place], config_dir, True), loader, Limits(), accept_changed_data,
               partial(train_job, loader))


def check_pruning(search: Search, config: DictConfig) -> None:
    """Raises UserError without Optuna, and for jobs of several processes."""
    from dltrain.sweeps.study import import_optuna

    import_optuna()
    if search.prune and config.trainer.devices > 1:
        raise UserError("prune: needs trainer.devices=1; prune=false trains every job to its end")


def draw(search: Search, space: Space, loader: launch.SweepLoader, words: list[str]) -> list[list[str]]:
    """The words of the jobs of search=random, and of search=halving, which takes all combinations of listed values
    unless trials= is given."""
    if search.method == "halving" and search.trials is None and not space.has_interval:
        return loader.combinations(words)[0]
    return [space.draw(search.seed, number) for number in range(search.trials or DEFAULT_TRIALS)]


def max_epochs_of(config: DictConfig, space: Space) -> int:
    """The full length of the jobs. Raises UserError if they are not all of one length in epochs."""
    keys = config.trainer
    if "trainer.max_epochs" in space.swept or keys.max_epochs is None:
        raise UserError("trainer.max_epochs: must be one number for all jobs of search=halving and search=hyperband, "
                        "which stop them at earlier epochs")
    return 1 if keys.smoke_steps else int(keys.max_epochs)


def brackets_of(search: Search, space: Space, config: DictConfig, loader: launch.SweepLoader, planner: Planner,
                words: list[str]) -> list[Bracket]:
    """Every job is composed, and so checked. Raises UserError."""
    max_epochs = max_epochs_of(config, space)
    if search.method in ("halving", "random"):
        planned = planner.plan(draw(search, space, loader, words))
        if search.method == "random":
            return [Bracket(planned, [Rung(len(planned), max_epochs)])]
        return [Bracket(planned, successive_halving(len(planned), max_epochs, search.min_epochs, search.factor))]
    brackets, number = [], 0
    for rungs in hyperband(max_epochs, search.min_epochs, search.factor):
        sampled = [space.draw(search.seed, number + place) for place in range(rungs[0].jobs)]
        brackets.append(Bracket(planner.plan(sampled), rungs))
        number += rungs[0].jobs
    return brackets


def describe(search: Search, space: Space, brackets: list[Bracket], folder: Path) -> str:
    lines = [f"search={search.method} over {space}"]
    if search.method == "tpe":
        lines.append(f"{search.trials or DEFAULT_TRIALS} trials{', some of which are pruned' if search.prune else ''}")
    lines += [f"{len(bracket.planned)} jobs: {bracket}" for bracket in brackets]
    if brackets:
        epochs = sum(total_epochs(bracket.rungs) for bracket in brackets)
        lines.append(f"{epochs} epochs in all, as many as {epochs / brackets[0].rungs[-1].epochs:.1f} jobs of full "
                     "length")
    return "\n".join([*lines, f"{folder}; nothing is started"])
