"""Turns the words of a command line into one checked config, without torch.

Hydra composes; its errors are turned into one line with the nearest valid name. A recipe is chosen by the names of
model and data, `<model>-on-<data>`; automatic.py makes the other choices that were left open. Then checks.py compares
the values with the rules in the yaml comments, and the batch type of the task with that of the data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain import own_modules, pretrained, trust
from dltrain.config import allowed, automatic, checks, groups, schema
from dltrain.config.interpolations import refuse_interpolations
from dltrain.config.interpolations import to_plain as to_plain
from dltrain.config.words import expand, refuse_bare_words
from dltrain.config.yaml_files import read_by_libyaml
from dltrain.errors import UserError

CONFIG_NAME = "train"  # configs/train.yaml
SEARCH_PATH = "hydra.searchpath"  # further folders of configs
SWEPT_KEY = re.compile(r"\+{0,2}(?!hydra\b|trust\b)[A-Za-z_][\w./@-]*")


@dataclass
class Composed:
    """A config, and where it comes from. Of a sweep: the config of its first job."""

    config: DictConfig
    chosen: dict[str, str]  # group -> name, as Hydra resolved them
    places: list[checks.Place]  # the yaml files in the order in which they were merged
    overrides: list[Override]  # the assignments of the command line, and of `reasons`
    reasons: dict[str, str]  # the words that automatic.py added
    words: list[str]  # the command line, with those and with what the experiment sweeps over
    experiment_sweep: dict[str, str] | None  # that sweep, if the chosen experiment is one
    is_sweep: bool  # by -m, or because the experiment is one
    folders: list[Path]  # the user's config folders

    def job_config(self) -> DictConfig:
        """The config that a run takes: with the names of the chosen files in it, and with keys that may be added, since
        some sizes are known only when the data are loaded."""
        OmegaConf.set_struct(self.config, False)
        self.config.choices = self.chosen
        return self.config

    def comments(self) -> dict[str, str]:
        """The comment that states the rule of each key."""
        return {key: line.comment for file, package in self.places
                for key, line in schema.assignments(file, package).items() if schema.rule_of(line.comment)}


class Files:
    """The yaml files that some choices select, merged, without the values of the command line."""

    def __init__(self, loader: ConfigLoaderImpl, repo: CachingConfigRepository, choices: list[Override]):
        self.loader, self.repo = loader, repo
        self.defaults = list_defaults(repo, choices)

    @cached_property
    def config(self) -> DictConfig:
        config = self.loader._compose_config_from_defaults_list(defaults=self.defaults.defaults, repo=self.repo)
        allowed.refuse_hydra(config.pop("hydra", None))
        return config


class Sources:
    """What the jobs of a sweep have in common: Hydra's loader over dltrain's configs and the user's `config_dir`, and
    the files of each set of choices. Raises UserError if `config_dir` is no folder."""

    def __init__(self, config_dir: str | None = None):
        self.config_dir, self.loader = config_dir, config_loader(config_dir)
        self.files: dict[tuple[str, ...], Files] = {}  # by the words of the choices

    def repository(self, overrides: list[Override]) -> IConfigRepository:
        """Where the yaml files are, with the folders that the overrides add."""
        if all(override.key_or_group != SEARCH_PATH for override in overrides):
            return self.loader.repository
        repo = CachingConfigRepository(self.loader.repository)
        self.loader._process_config_searchpath(CONFIG_NAME, overrides, repo)
        return repo

    def select(self, overrides: list[Override], repo: IConfigRepository) -> Files:
        """`repo`: where the files are. A cache of them is for one set of choices, and for what automatic.py adds to it:
        Hydra notes the choices in it."""
        choices = [override for override in overrides if is_choice(override, repo)]
        words = tuple(str(override.input_line) for override in choices)
        if words not in self.files:
            cache = repo if isinstance(repo, CachingConfigRepository) else CachingConfigRepository(repo)
            self.files[words] = Files(self.loader, cache, choices)
        return self.files[words]


def compose(words: list[str], config_dir: str | None = None, multirun: bool = False, sources: Sources | None = None,
            samples: bool = True) -> Composed:
    """The composed and checked config of `words`, which are Hydra overrides. Of a sweep: that of its first job; the
    choices of all its jobs are checked. `sources`: those of `config_dir`, which the jobs of a sweep share. `samples`:
    the sweep may take values from interval(). Raises UserError for whatever the user can correct."""
    composed = compose_unchecked(words, sources or Sources(config_dir), multirun, samples)
    checks.check_values(composed.config, composed.places, composed.overrides)
    checks.check_pair(composed.config, composed.chosen, composed.folders)
    checks.check_recipe(composed.config, composed.chosen, composed.places)
    if OmegaConf.select(composed.config, "model") is not None:
        pretrained.copy_architecture(composed.config)
    place_of = partial(checks.set_by, places=composed.places, overrides=composed.overrides)
    allowed.refuse_config(composed.config, place_of)
    return composed


def compose_unchecked(words: list[str], sources: Sources, multirun: bool = False, samples: bool = True) -> Composed:
    """Hydra's own steps without its `hydra` node: in a third of the time, and with the list of files at hand."""
    words = expand(trust.take(words))
    refuse_bare_words(words, *([Path(sources.config_dir)] if sources.config_dir else []))
    overrides = parse(words)
    repo = sources.repository(overrides)
    folders = user_folders(sources.config_dir, overrides)
    own_modules.put_last(folders)
    for override in overrides:
        checks.refuse_hydra_key(override)
        if not (multirun and samples):
            checks.refuse_interval(override, overrides)
        checks.refuse_unknown_choice(override, folders)
    if (experiment_sweep := sweep_of_experiment(overrides, folders)) is not None:
        multirun, words = True, [f"{key}={value}" for key, value in experiment_sweep.items()] + words
        overrides = parse(words)
    first_words = [first_of_sweep(override) for override in overrides] if multirun else words
    if multirun:
        overrides = parse(first_words)
    own = [override for override in overrides if not override.key_or_group.startswith("hydra")]
    try:
        sources.loader.validate_sweep_overrides_legal(overrides=overrides, run_mode=RunMode.RUN, from_shell=True)
        files = sources.select(own, repo)
        if reasons := automatic.choose(files.defaults.overrides.known_choices, own, folders):
            own += parse(list(reasons))
            files = sources.select(own, files.repo)
            words = words if multirun else [*words, *reasons]
        config = files.config.copy()
    except MissingConfigException as error:
        raise checks.missing_choice(error, folders) from None
    except (HydraException, OmegaConfBaseException) as error:
        checks.refuse_old_keys(own)
        raise checks.refused_defaults(error, folders) from None
    OmegaConf.set_struct(config, True)
    places = merged_files(files.defaults, folders)
    try:
        assignments = [override for override in own if not is_choice(override, repo)]
        sources.loader._apply_overrides_to_config(adding_to_mappings(assignments, places), config)
    except (HydraException, OmegaConfBaseException) as error:
        raise checks.unknown_key(error, config, own) from None
    refuse_interpolations(OmegaConf.to_container(config), partial(checks.set_by, places=places, overrides=own))
    return Composed(config, choices_of(files.defaults, folders), places, own, reasons, words,
                    experiment_sweep, multirun, folders)


def adding_to_mappings(overrides: list[Override], places: list[checks.Place]) -> list[Override]:
    """The overrides, of which those that fill a mapping with names of the user's own, as task.class_weights={cat: 2}
    and task.class_weights.cat=2, add keys that the yaml files cannot have."""
    mappings = {key for file, package in places for key, line in schema.assignments(file, package).items()
                if schema.rule_of(line.comment) == "mapping"}
    return [replace(one, type=OverrideType.FORCE_ADD) if one.type == OverrideType.CHANGE and (
            mappings & {one.key_or_group, one.key_or_group.rpartition(".")[0]}) else one for one in overrides]


def parse(words: list[str]) -> list[Override]:
    """Hydra's reading of the words. Raises UserError for a word that is no override."""
    try:
        return OverridesParser.create().parse_overrides(words)
    except OverrideParseException as error:
        raise UserError(f"cannot read '{error.override}': an override is key=value, as in task.optimizer.lr=0.05 "
                        f"(quote blanks and commas: 'key=\"a b\"')") from None


def config_loader(config_dir: str | None) -> ConfigLoaderImpl:
    """Hydra's loader over dltrain's configs and the user's `config_dir`. Raises UserError if that is no folder."""
    version.setbase("1.3")
    setup_globals()
    JobRuntime.instance().set("name", "dltrain")
    search_path = create_config_search_path(str(groups.CONFIGS))
    read_by_libyaml()
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError(f"--config-dir: no folder '{config_dir}'")
        search_path.prepend(provider="command-line", path=f"file://{Path(config_dir).absolute()}",
                            anchor=SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(config_search_path=search_path)


def is_choice(override: Override, repo: IConfigRepository) -> bool:
    """As Hydra decides it: a group is overridden with a name, or with a mapping of values."""
    return repo.group_exists(override.key_or_group) and type(override.value()) is not dict


def list_defaults(repo: CachingConfigRepository, overrides: list[Override]) -> DefaultsList:
    """The yaml files to merge, in their order. Raises UserError where they lead in a circle."""
    keys: dict[str, Any] = {"repo": repo, "config_name": CONFIG_NAME, "overrides_list": overrides,
                            "skip_missing": False}
    try:
        return create_defaults_list(**keys, prepend_hydra=False)
    except RecursionError:
        words = ", ".join(str(override.input_line) for override in overrides[:8])
        raise UserError(f"the defaults lists lead in a circle: of {words} one names a yaml file whose `defaults` name "
                        "that file again; take it out there") from None
    except ConfigCompositionException as error:
        if "hydra/" not in str(error):
            raise
    return create_defaults_list(**keys, prepend_hydra=True)  # an experiment chooses one of Hydra's own groups


def choices_of(defaults: DefaultsList, folders: list[Path]) -> dict[str, str]:
    """Hydra reports an optional choice even where there is no file: such a recipe is `none`."""
    chosen = {str(group): str(name) for group, name in defaults.overrides.known_choices.items() if name is not None
              and not group.startswith("hydra") and "@" not in group and (group in groups.GROUPS or "/" not in group)}
    recipe = chosen.get("recipe")
    if recipe and groups.path_of("recipe", recipe, *folders) is None:
        chosen["recipe"] = "none"
    return chosen


def merged_files(defaults: DefaultsList, folders: list[Path]) -> list[checks.Place]:
    places: list[checks.Place] = []
    for item in defaults.defaults:
        name = item.config_path
        if name is None or name.startswith("hydra/"):
            continue
        for folder in (groups.CONFIGS, *folders):
            if (path := folder / f"{name}.yaml").is_file():
                places.append((path, item.package or ""))
                break
    return places


def user_folders(config_dir: str | None, overrides: list[Override]) -> list[Path]:
    folders = [Path(config_dir)] if config_dir else []
    for override in overrides:
        if override.key_or_group == "hydra.searchpath" and type(value := override.value()) is list:
            folders += [Path(str(entry).removeprefix("file://")) for entry in value]
    return folders


def sweep_of_experiment(overrides: list[Override], folders: list[Path]) -> dict[str, str] | None:
    """What the chosen experiment sweeps over, less the keys that the command line sets; None if it is no sweep."""
    given = {override.key_or_group: override for override in overrides}
    name = given["experiment"].value() if "experiment" in given else None
    file = groups.path_of("experiment", str(name), *folders) if name is not None else None
    if file is None or groups.stated(file, "hydra", "mode") != "MULTIRUN":
        return None
    params = groups.stated(file, "hydra", "sweeper", "params")
    if type(params) is not dict:
        raise UserError(f"{file}: hydra.sweeper.params must be a mapping of keys to lists of values, as seed: 0,1,2")
    for key in params:  # these words come from a file: they may do no more than a file may
        if type(key) is not str or not SWEPT_KEY.fullmatch(key):
            raise UserError(f"{file}: hydra.sweeper.params.{key} is not allowed in a config file: a sweep of an "
                            "experiment goes over keys of the config, as seed or model.depth; type others with -m")
    return {key: str(value) for key, value in params.items() if key not in given}


def first_of_sweep(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    if override.is_interval_sweep():
        return f"{override.get_key_element()}={cast(IntervalSweep, override.value()).start}"
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"
