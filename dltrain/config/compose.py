"""From the words on the command line to one checked config, without torch.

Hydra composes; what it refuses comes back as one line with the nearest real name. Then the composed values are held
against the rules in the yaml comments (schema.py) and the model's batch type against the data's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain import pretrained
from dltrain.config import groups, schema
from dltrain.errors import UserError, nearest

Place = tuple[Path, str]  # a yaml file and the package its keys stand under


@dataclass
class Composed:
    config: DictConfig
    chosen: dict[str, str]  # group -> name, as Hydra resolved them
    places: list[Place]  # the yaml files in the order in which they were merged
    overrides: list[Override]  # the command line's own assignments
    words: list[str]  # the command line, with what an experiment sweeps over
    swept: dict[str, str] | None  # what that is, where the chosen experiment is a sweep
    sweep: bool  # by -m, or because the experiment is one
    folders: list[Path] = field(default_factory=list)  # the user's config folders

    def job_config(self) -> DictConfig:
        """The config as a run takes it: with the choices that made it, and open for the sizes that only data know."""
        OmegaConf.set_struct(self.config, False)
        self.config.choices = self.chosen
        return self.config


def loader(config_dir: str | None) -> ConfigLoaderImpl:
    version.setbase("1.3")
    setup_globals()
    JobRuntime.instance().set("name", "dltrain")
    search_path = create_config_search_path(str(groups.CONFIGS))
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError(f"--config-dir: no folder '{config_dir}'")
        search_path.prepend(provider="command-line", path=f"file://{Path(config_dir).absolute()}",
                            anchor=SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(config_search_path=search_path)


def compose(words: list[str], config_dir: str | None = None, multirun: bool = False) -> Composed:
    """The composed and checked config of `words` (Hydra overrides). Of a sweep: its first job, after a look at every
    name in it. Raises UserError for whatever a person can mend."""
    composed = compose_unchecked(words, config_dir, multirun)
    check_values(composed)
    check_pair(composed)
    if OmegaConf.select(composed.config, "model") is not None:
        pretrained.copy_architecture(composed.config)
    return composed


def compose_unchecked(words: list[str], config_dir: str | None = None, multirun: bool = False) -> Composed:
    """Hydra's own steps, one by one, without its `hydra` node: a third of the time, the files and their order at hand,
    and a wrong key can be told from the keys that are there. The job itself is composed by Hydra again."""
    load = loader(config_dir)
    try:
        overrides, repo = load._parse_overrides_and_create_caching_repo("train", words)
    except OverrideParseException as error:
        raise UserError(f"cannot read '{error.override}': an override is key=value, as in task.optimizer.lr=0.05 "
                        f"(quote blanks and commas: 'key=\"a b\"')") from None
    folders = user_folders(config_dir, overrides)
    for override in overrides:
        refuse_unknown_choice(override, folders)
    if (swept := experiments_sweep(overrides, folders)) is not None:
        multirun, words = True, [f"{key}={value}" for key, value in swept.items()] + words
        overrides, repo = load._parse_overrides_and_create_caching_repo("train", words)
    asked = words
    if multirun:
        words = [first_of_sweep(override) for override in overrides]
        overrides, repo = load._parse_overrides_and_create_caching_repo("train", words)
    mine = [override for override in overrides if not override.key_or_group.startswith("hydra")]
    try:
        load.validate_sweep_overrides_legal(overrides=overrides, run_mode=RunMode.RUN, from_shell=True)
        listed = listed_defaults(repo, mine)
        config = load._compose_config_from_defaults_list(defaults=listed.defaults, repo=repo)
    except MissingConfigException as error:
        raise missing_choice(error, folders) from None
    except (HydraException, OmegaConfBaseException) as error:
        if "Could not override 'model/backbone'" in str(error):
            raise no_backbone(folders) from None
        raise UserError(one_line(error)) from None
    config.pop("hydra", None)
    OmegaConf.set_struct(config, True)
    try:
        load._apply_overrides_to_config(listed.config_overrides, config)
    except (HydraException, OmegaConfBaseException) as error:
        raise unknown_key(error, config) from None
    chosen = {str(group): str(name) for group, name in listed.overrides.known_choices.items()
              if name is not None and not group.startswith("hydra")
              and (group in groups.GROUPS or not {"/", "@"} & {*group})}
    recipe = chosen.get("recipe")
    if recipe and groups.path_of("recipe", recipe, *folders) is None:
        chosen["recipe"] = "none"  # Hydra reports an optional choice even where there is no file
    return Composed(config, chosen, merged_places(listed, folders), mine, asked, swept, multirun, folders)


def listed_defaults(repo: CachingConfigRepository, overrides: list[Override]) -> DefaultsList:
    keys: dict[str, Any] = {"repo": repo, "config_name": "train", "overrides_list": overrides, "skip_missing": False}
    try:
        return create_defaults_list(**keys, prepend_hydra=False)
    except ConfigCompositionException as error:
        if "hydra/" not in str(error):
            raise
    return create_defaults_list(**keys, prepend_hydra=True)  # an experiment chooses one of Hydra's own parts


def merged_places(listed: DefaultsList, folders: list[Path]) -> list[Place]:
    places: list[Place] = []
    for item in listed.defaults:
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
        if override.key_or_group == "hydra.searchpath" and isinstance(value := override.value(), list):
            folders += [Path(str(entry).removeprefix("file://")) for entry in value]
    return folders


def experiments_sweep(overrides: list[Override], folders: list[Path]) -> dict[str, str] | None:
    """What the chosen experiment sweeps over by itself, less the keys that the command line gives; None where it is no
    sweep."""
    given = {override.key_or_group: override for override in overrides}
    name = given["experiment"].value() if "experiment" in given else None
    file = groups.path_of("experiment", name, *folders) if isinstance(name, str) else None
    hydra = groups.content(file).get("hydra", {}) if file else {}
    if hydra.get("mode") != "MULTIRUN":
        return None
    return {key: str(value) for key, value in hydra["sweeper"]["params"].items() if key not in given}


def first_of_sweep(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    first = next(iter(override.sweep_string_iterator()))
    return f"{override.get_key_element()}={first}"


def refuse_unknown_choice(override: Override, folders: list[Path]) -> None:
    group = override.key_or_group
    if group not in groups.GROUPS or override.is_delete():
        return
    if override.is_sweep_override():
        asked = [name.strip("'\"") for name in override.sweep_string_iterator()]
    else:
        asked = [str(override.value())] if override.value() is not None else []
    for name in asked:
        if groups.path_of(group, name, *folders) is None:
            raise unknown_choice(group, name, folders)


def unknown_choice(group: str, name: str, folders: list[Path]) -> UserError:
    known = groups.names(group, *folders)
    hint = nearest(name, known) or f"; there are: {', '.join(known) or 'none'}"
    return UserError(f"unknown {group} '{name}'{hint}")


def missing_choice(error: MissingConfigException, folders: list[Path]) -> UserError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    return unknown_choice(group, name, folders) if group else UserError(one_line(error))


def no_backbone(folders: list[Path]) -> UserError:
    models = [name for name in groups.names("model", *folders)
              if (path := groups.path_of("model", name, *folders)) and groups.chosen_by(path, "model/backbone")]
    return UserError(f"model/backbone: this model has no backbone to choose; those that have one: {', '.join(models)}")


def unknown_key(error: Exception, config: DictConfig) -> UserError:
    """Hydra advises `+key` for a typo, which would add a key that nothing reads: name the nearest real one."""
    key = match[1] if (match := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", str(error))) else ""
    if not key:
        return UserError(one_line(error))
    known = flat_keys(config)
    hint = nearest(key, known) or nearest(key.rpartition(".")[2], [name.rpartition(".")[2] for name in known])
    return UserError(f"unknown key '{key}'{hint or '; dltrain --cfg job shows every key'}")


def one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ and str(error.__cause__) else ""
    return " ".join(lines)[:400] + cause


def flat_keys(config: DictConfig) -> list[str]:
    keys: list[str] = []

    def visit(node: DictConfig, prefix: str) -> None:
        for key in node:
            name = f"{prefix}{key!s}"
            keys.append(name)
            value = node._get_node(key)
            if isinstance(value, DictConfig) and not value._is_none():
                visit(value, f"{name}.")

    visit(config, "")
    return keys


def check_values(composed: Composed) -> None:
    """Every value against the last rule stated for its key, or its default's type. Raises UserError by key."""
    stated: dict[str, str] = {}
    for file, package in composed.places:
        for key, found in schema.assignments(file, package).items():
            if rule := schema.rule_of(found.comment):
                stated[key] = rule
            elif key not in stated and (rule := schema.rule_from_default(found.value)):
                interpolated = isinstance(found.value, str) and "${" in found.value
                if not interpolated:
                    stated[key] = rule
    for key, rule in stated.items():
        if key.startswith("hydra."):
            continue
        try:
            value = OmegaConf.select(composed.config, key)
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: {one_line(error)}") from None
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if fault := schema.broken(rule, plain):
            shown = f"'{plain}'" if isinstance(plain, str) else "null" if plain is None else str(plain)
            raise UserError(f"{key}={shown}: {fault}{set_by(composed, key)}")
    name = composed.config.get("name")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", name):
        raise UserError(f"name='{name}': must be letters, digits, '.', '_' and '-', with '/' between folders")


def set_by(composed: Composed, key: str) -> str:
    if any(override.key_or_group == key for override in composed.overrides):
        return ""
    for file, package in reversed(composed.places):
        if found := schema.assignments(file, package).get(key):
            return f" (set in {file}:{found.line})"
    return ""


def check_pair(composed: Composed) -> None:
    """The task's batch type must be the data's: checked on the final choices, so also after an experiment."""
    wanted = OmegaConf.select(composed.config, "task.batch_type")
    given = OmegaConf.select(composed.config, "data.batch_type")
    if wanted is None or given is None or wanted == given:
        return
    fitting = groups.data_that_fits(wanted, *composed.folders)
    raise UserError(f"model={composed.chosen.get('model')} trains on {wanted}, but data={composed.chosen.get('data')} "
                    f"yields {given}. Data that fits: {', '.join(fitting) or 'none yet'}.")


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts, lists and numbers, interpolations resolved."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
