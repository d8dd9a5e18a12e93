"""What a composed config must obey: known names, values within their rules, a model that fits its data. Every fault is
one line that names the key or file, the value, and what it must be."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain import trust
from dltrain.config import groups, renamed, schema
from dltrain.config.renamed import SHORT_FORMS
from dltrain.config.yaml_text import read_yaml_text
from dltrain.dotted import select
from dltrain.errors import UserError, suggest

Place = tuple[Path, str]  # a yaml file and the package that its keys stand under
HYDRA_KEYS = ("hydra/sweeper", "hydra.sweeper", "hydra/launcher", "hydra.launcher", "hydra.searchpath",
              "hydra.sweep.subdir")  # those of which a command may set values
REQUIRED = ("model", "data", "augment", "trainer")
PACKAGE_LINE = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)
FOLDERS = ("output_dir", "data.root")  # keys
ADDRESS = re.compile(r"[A-Za-z][\w+.-]+://")  # of an object store
NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")


def refuse_old_key(key: str, place: str = "") -> None:
    """Raises UserError with the new name for a key of an earlier version."""
    if (new := renamed.new_name(key)) is not None:
        raise UserError(f"{place}'{key}' is a key of an earlier version; use {new}")


def refuse_old_keys(overrides: list[Override]) -> None:
    """To be called when Hydra has refused a command without naming the key: a user's own class may have an argument
    with an old key's name."""
    for override in overrides:
        refuse_old_key(override.key_or_group)


def refuse_hydra_key(override: Override) -> None:
    """Raises UserError for a key of Hydra's that would change nothing here, or break the run."""
    key = override.key_or_group
    if not key.startswith("hydra") or key.startswith(HYDRA_KEYS):
        return
    advice = {"hydra.run.dir": "name= and output_dir= choose the run folder",
              "hydra.sweep.dir": "name= and output_dir= choose the folder of a sweep",
              "hydra.job.chdir": "a run stays in the folder where it was started", "hydra.mode": "-m starts a sweep"}
    raise UserError(f"{key}: dltrain does not use it; {advice.get(key, 'of Hydra it takes ' + ', '.join(HYDRA_KEYS))}")


def refuse_interval(override: Override, overrides: list[Override]) -> None:
    """Raises UserError for interval(a, b), from which the basic sweeper cannot make a list of jobs."""
    samples = any(other.key_or_group == "hydra/sweeper" for other in overrides)
    if override.is_interval_sweep() and not samples:
        raise UserError(f"{override.input_line}: a sweep takes a list, as lr=0.1,0.01; interval() needs -m and a "
                        "search, as search=tpe")


def refuse_unknown_choice(override: Override, folders: list[Path]) -> None:
    """Raises UserError with the nearest name for a choice that has no file. In a sweep every name is checked."""
    group = override.key_or_group
    if group in REQUIRED and override.value() is None:
        raise UserError(f"{group}=null: there must be one; dltrain ls lists them")
    if group not in groups.GROUPS or override.is_delete():
        return
    if override.is_sweep_override():
        requested = [name.strip("'\"") for name in override.sweep_string_iterator()]
    else:
        requested = [str(override.value())] if override.value() is not None else []
    for name in requested:
        file = groups.path_of(group, name, *folders)
        if file is None:
            raise unknown_choice(group, name, folders)
        if not file.is_relative_to(groups.CONFIGS):
            read_own_yaml(file)
        refuse_without_package(file)


def read_own_yaml(file: Path) -> None:
    """Raises UserError for a file that is no plain yaml, or stands for too much, before anything else reads it."""
    try:
        read_yaml_text(file)
    except ValueError as error:
        raise UserError(str(error)) from None


def refuse_without_package(file: Path) -> None:
    """Raises UserError for a user's file whose keys have their group's name before them, as `model:`, but which Hydra
    would put below that group once more."""
    if file.is_relative_to(groups.CONFIGS) or PACKAGE_LINE.search(file.read_text(encoding="utf-8")):
        return
    whole = [key for key in groups.content(file) if key in (*groups.GROUPS, "task")]
    if whole:
        raise UserError(f"{file}: must begin with the line '# @package _global_', since it sets {whole[0]}.*")


def unknown_choice(group: str, name: str, folders: list[Path]) -> UserError:
    known = groups.names(group, *folders)
    hint = suggest(name, known) or f"; there are: {', '.join(known) or 'none'}"
    return UserError(f"unknown {group} '{name}'{hint}")


def missing_choice(error: MissingConfigException, folders: list[Path]) -> UserError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    return unknown_choice(group, name, folders) if group else UserError(one_line(error))


def refused_defaults(error: Exception, folders: list[Path]) -> UserError:
    """What Hydra refused while it listed the yaml files."""
    if "Could not override 'model/backbone'" in str(error):
        return no_backbone(folders)
    late = re.search(r"^(\S+): Default List Overrides are not allowed .*\(override (.*)=", one_line(error))
    if late:
        return UserError(f"{late[1]}.yaml: a recipe is chosen by the names of model and data, and can choose no "
                         f"{late[2]} itself; let it set keys of {late[2]}, or put the choice into the yaml of the "
                         "model or of the data")
    return UserError(one_line(error))


def no_backbone(folders: list[Path]) -> UserError:
    models = [name for name in groups.names("model", *folders)
              if (path := groups.path_of("model", name, *folders)) and groups.chosen_by(path, "model/backbone")]
    return UserError(f"model/backbone: this model has no backbone to choose; those that have one: {', '.join(models)}")


def unknown_key(error: Exception, config: DictConfig, overrides: list[Override]) -> UserError:
    """Names the nearest real key. Hydra suggests `+key` for a typo, which would add a key that nothing reads."""
    match = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", str(error))
    if match is None:
        refuse_old_keys(overrides)
        return UserError(one_line(error))
    key, known = match[1], flat_keys(config)
    refuse_old_key(key)
    if short := next((short for short, full in SHORT_FORMS.items() if full == key), None):
        return UserError(f"{short}= is {key}=, which this {key.partition('.')[0]} does not have; leave it out")
    if key in known:
        return UserError(f"{key}: its entries cannot be replaced all at once; +{key}.NAME=VALUE adds one, "
                         f"{key}.NAME=VALUE changes one, ~{key}.NAME removes one")
    hint = suggest(key, known) or suggest(key.rpartition(".")[2], [name.rpartition(".")[2] for name in known])
    return UserError(f"unknown key '{key}'{hint or '; dltrain --cfg job shows every key'}")


def one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ and str(error.__cause__) else ""
    return " ".join(lines)[:400] + cause


def flat_keys(config: DictConfig) -> list[str]:
    """Every key of the config by its dotted name, mappings included. Interpolations are not resolved."""
    keys: list[str] = []

    def visit(node: DictConfig, prefix: str) -> None:
        for key in node:
            keys.append(f"{prefix}{key!s}")
            value = node._get_node(key)
            if type(value) is DictConfig and not value._is_none():
                visit(value, f"{prefix}{key!s}.")

    visit(config, "")
    return keys


def check_values(config: DictConfig, places: list[Place], overrides: list[Override]) -> None:
    """Checks every value against the last rule stated for its key, or else the type of its default; first those that
    were typed, which others may be computed from. Raises UserError."""
    rules = stated_rules(config, places)
    refuse_value_for_node(config, rules, overrides)
    refuse_added_keys(config, places, overrides)
    written = OmegaConf.to_container(config)
    typed = {override.key_or_group for override in overrides}
    for key, rule in sorted(rules.items(), key=lambda item: item[0] not in typed):
        if key.startswith("hydra."):
            continue
        try:
            is_there, plain = select(written, key)
            if not is_there or is_unsettled(plain):  # as below a node that is an interpolation
                value = OmegaConf.select(config, key)
                plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: {one_line(error)}") from None
        if type(plain) is str and key.endswith(FOLDERS) and ADDRESS.match(plain):
            raise UserError(f"{key}={plain}: must be a folder of a file system{set_by(key, places, overrides)}; mount "
                            "the store, or copy from and to it")
        if fault := schema.violation(rule, plain):
            raise UserError(f"{key}={quote(plain)}: {fault}{set_by(key, places, overrides)}")
    name = config.get("name")
    if name is not None and not NAME.fullmatch(name):
        raise UserError(f"name='{name}': must be letters, digits, '.', '_' and '-', with '/' between folders")
    if name is not None and {"..", "."} & {*name.split("/")}:
        raise UserError(f"name='{name}': must stay below output_dir; choose another output_dir= for another place")


def is_unsettled(value: object) -> bool:
    """Whether it is an interpolation, or must be given."""
    return type(value) is str and ("${" in value or value == "???")


def refuse_value_for_node(config: DictConfig, rules: Mapping[str, str], overrides: list[Override]) -> None:
    """Raises UserError for a single value in the place of a node, as model.pretrained=true."""
    for key in (override.key_or_group for override in overrides):
        below = [other for other in rules if other.startswith(f"{key}.")]
        if below and not OmegaConf.is_config(value := OmegaConf.select(config, key)) and key not in groups.GROUPS:
            raise UserError(f"{key}={quote(value)}: it holds several keys; set one of {', '.join(below)}")


def refuse_added_keys(config: DictConfig, places: list[Place], overrides: list[Override]) -> None:
    """Raises UserError for a key that `+` or `++` adds where nothing would read it: at the top, or into a mapping whose
    keys have rules and which is not given to a class as a whole. The others are checked when they are built."""
    stated = {key: line.comment for file, package in places for key, line in schema.assignments(file, package).items()}
    for key in (override.key_or_group for override in overrides if override.is_add() or override.is_force_add()):
        parent, _, _ = key.rpartition(".")
        ruled = {other.rpartition(".")[0] for other, comment in stated.items() if schema.rule_of(comment)}
        is_given_whole = OmegaConf.select(config, f"{parent}._target_") if parent else None
        by_path = parent in ("task.optimizer", "task.schedule") and "." in OmegaConf.select(config, f"{parent}.name")
        if key in stated or key in groups.GROUPS or is_given_whole or by_path or (parent and parent not in ruled):
            continue
        siblings = [other for other in stated if other.rpartition(".")[0] == parent]
        raise UserError(f"unknown key '{key}'{suggest(key, siblings) or '; nothing reads it'}")


def stated_rules(config: DictConfig, places: list[Place]) -> dict[str, str]:
    """The rule of each key. Raises UserError for a key of an earlier version in a user's own file."""
    rules: dict[str, str] = {}
    for file, package in places:
        for key, line in schema.assignments(file, package).items():
            if not file.is_relative_to(groups.CONFIGS) and not is_own_argument(config, key, line.value):
                refuse_old_key(key, f"{file}:{line.line}: ")
            interpolated = type(line.value) is str and "${" in line.value
            default_counts = key not in rules and not interpolated
            rule = schema.rule_of(line.comment) or (schema.rule_from_default(line.value) if default_counts else None)
            if rule:
                rules[key] = rule
    return rules


def is_own_argument(config: DictConfig, key: str, value: object) -> bool:
    """Whether the key is an argument of a user's own class, which may have any name, that of an old key too. Not
    `batch` with the name of a batch type: that is what earlier versions called `batch_type`."""
    parent, _, name = key.rpartition(".")
    target = OmegaConf.select(config, f"{parent}._target_") if parent else None
    return target is not None and not str(target).startswith("dltrain.") and not (
        name == "batch" and str(value).endswith("Batch"))


def quote(value: object) -> str:
    return f"'{value}'" if type(value) is str else schema.format_value(value)


def set_by(key: str, places: list[Place], overrides: list[Override]) -> str:
    """Where a faulty value stands, if not on the command line."""
    if any(override.key_or_group == key for override in overrides):
        return ""
    for file, package in reversed(places):
        if line := schema.assignments(file, package).get(key):
            return f" (set in {file}:{line.line})"
    return ""


def check_pair(config: DictConfig, chosen: dict[str, str], folders: list[Path]) -> None:
    """Checks that the task takes the batch type that the data yield. Raises UserError with the data that fit."""
    needed, yielded = OmegaConf.select(config, "task.batch_type"), OmegaConf.select(config, "data.batch_type")
    if needed is None or yielded is None or needed == yielded:
        return
    fitting = groups.matching_data(needed, *folders)
    raise UserError(f"model={chosen.get('model')} trains on {needed}, but data={chosen.get('data')} yields {yielded}. "
                    f"Data that fits: {', '.join(fitting) or 'none yet'}.")


def check_recipe(config: DictConfig, chosen: dict[str, str], places: list[Place]) -> None:
    """Raises UserError for a key of the recipe that the data, the model or the task at hand do not have."""
    is_recipe = {file: "recipe" in (file.parent.name, file.parent.parent.name) for file, _ in places}
    stated = {key for file, package in places if not is_recipe[file] for key in schema.assignments(file, package)}
    for file, package in places:
        for key, line in schema.assignments(file, package).items() if is_recipe[file] else ():
            parent, _, name = key.rpartition(".")
            target = OmegaConf.select(config, f"{parent}._target_") if parent in ("data", "model", "task") else None
            if key in stated or target is None or takes(str(target), name):
                continue
            raise UserError(f"recipe={chosen['recipe']} sets {key} ({file}:{line.line}), which "
                            f"{parent}={chosen.get(parent)} does not have; recipe=none trains without a recipe")


def takes(target: str, argument: str) -> bool:
    """Whether a class, or one that it inherits from, has this argument. Imports it, and torch with it."""
    try:
        built = trust.locate("_target_", target)
    except UserError:
        return True  # an error of its own
    classes = inspect.getmro(built) if inspect.isclass(built) else (built,)
    return any(argument in inspect.signature(one).parameters for one in classes if one is not object)
