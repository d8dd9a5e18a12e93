"""The runs of a study that have names, each trained once per seed, in folders of their own below the study's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from dltrain import run
from dltrain.config.compose import Composed, compose
from dltrain.dotted import select
from dltrain.errors import UserError
from dltrain.run_dir import RunDir


class Plan(NamedTuple):
    """The overrides of a run, the name of the run whose weights it starts from, and the config composed of these
    overrides; the seed and the weights are added when it is trained."""

    overrides: list[str]
    pretrained_from: str | None
    composed: Composed


class TrainedRun(NamedTuple):
    """A run that has ended: its name, its seed, its whole config and its folder."""

    name: str
    seed: int
    config: DictConfig
    run_dir: RunDir


def plan_runs(config_dir: str | None, common: list[str] | None, runs: Mapping[str, Any], more: list[str] | None
              ) -> dict[str, Plan]:
    """`common`, `runs` and `more` as in comparison.py; None for none. Raises UserError for a run that does not compose,
    or cannot start from the weights of another one, before any is trained."""
    parsed = {name: parse_run(name, value, common or [], more or [], list(runs)) for name, value in runs.items()}
    refuse_shared_folders(list(parsed))
    plans = {name: Plan(overrides, source, compose_run(name, overrides, config_dir))
             for name, (overrides, source) in parsed.items()}
    for name, plan in plans.items():
        config = plan.composed.config
        if plan.pretrained_from and not has_key(config, pretrained_key(config)):
            raise UserError(f"study.runs.{name}.pretrained_from: {config.model._target_} takes no weights of a run")
    return plans


def parse_run(name: str, value: Any, common: list[str], more: list[str], names: Sequence[str]
              ) -> tuple[list[str], str | None]:
    """`value`: an entry of `runs`. Its overrides, and the run whose weights it starts from. Raises UserError for an
    unknown key, and for a `pretrained_from` that is not an earlier run."""
    keys = value if isinstance(value, Mapping) else {"overrides": value}
    if not isinstance(keys.get("overrides", []), Sequence) or isinstance(keys.get("overrides"), str):
        raise UserError(f"study.runs.{name}: must be a list of overrides, as [model=resnet20], but is {value!r}")
    if unknown := [key for key in keys if key not in ("overrides", "pretrained_from")]:
        raise UserError(f"study.runs.{name}: unknown key '{unknown[0]}'; it takes overrides and pretrained_from")
    source = keys.get("pretrained_from")
    if source is not None and source not in names[: names.index(name)]:
        raise UserError(f"study.runs.{name}.pretrained_from={source}: must be a run that stands before it")
    return [*common, *keys.get("overrides", []), *more], source


def compose_run(name: str, overrides: list[str], config_dir: str | None, key: str = "runs") -> Composed:
    """Raises UserError with the run's name, an entry of study.`key`."""
    try:
        return compose(overrides, config_dir)
    except UserError as error:
        raise type(error)(f"study.{key}.{name}: {error}") from None


def refuse_shared_folders(names: list[str]) -> None:
    folders: dict[Path, str] = {}
    for name in names:
        folder = folder_of(Path(), name)
        if folder in folders:
            raise UserError(f"study.runs: '{folders[folder]}' and '{name}' would share the folder {folder}")
        folders[folder] = name


def folder_of(parent: Path, name: str) -> Path:
    return parent / re.sub(r"[^A-Za-z0-9.-]+", "_", name)


def train_all(context: run.StudyContext, plans: Mapping[str, Plan], seeds: Sequence[int]) -> Iterator[TrainedRun]:
    """Each run after training it, resuming it, or finding it finished; all seeds of the first, then of the next."""
    for name, plan in plans.items():
        for seed in seeds:
            print(f"\n{name}, seed {seed}", flush=True)
            run_dir = RunDir(folder_of(context.folder, f"{name}-seed{seed}"))
            overrides = [*plan.overrides, f"seed={seed}"]
            if plan.pretrained_from:
                source = folder_of(context.folder, f"{plan.pretrained_from}-seed{seed}")
                overrides += [f"{pretrained_key(plan.composed.config)}={source}"]
            composed = compose_run(name, overrides, context.config_dir)
            run_dir.path.mkdir(exist_ok=True)
            config = composed.job_config()
            run.train(config, run_dir, composed.comments(), command=overrides)
            yield TrainedRun(name, seed, config, run_dir)


def has_key(config: DictConfig, key: str) -> bool:
    is_there, _ = select(OmegaConf.to_container(config), key)
    return is_there


def pretrained_key(config: DictConfig) -> str:
    return "model.backbone.pretrained.from_run" if "backbone" in config.model else "model.pretrained.from_run"
