"""What resume, eval and predict share: key=value words on top of the config of a run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain import own_modules, trust
from dltrain.config import checks, schema
from dltrain.config.free_keys import EARLIER
from dltrain.config.interpolations import refuse_interpolations, value_at
from dltrain.config.words import full_key, take_config_folders
from dltrain.errors import UserError, suggest
from dltrain.run_dir import RunDir
from dltrain.stored_files import refuse_incomplete_config

EVALUATION_KEYS = ("data.", "augment.", "trainer.")  # those that an evaluation may change


def parse_pairs(verb: str, words: list[str]) -> dict[str, str]:
    """The key=value words. Raises UserError for other words and without run=."""
    pairs = {}
    words, folders = take_config_folders(trust.take(words))  # a run's config.yaml is complete without them
    own_modules.put_last([str(folder) for folder in folders])
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"cannot read '{word}': {verb} takes key=value, as in run=outputs/first")
        pairs[full_key(key)] = value
    if "run" not in pairs:
        raise UserError(f"{verb} needs run=FOLDER; dltrain ls runs lists the runs")
    return pairs


def take_own(words: list[str], keys: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The words whose key is the verb's own, as key -> text, and the others."""
    own = {key: text for key, equals, text in (word.partition("=") for word in words) if equals and key in keys}
    return own, [word for word in words if word.partition("=")[0] not in own]


def load_config(run_dir: RunDir, changes: Mapping[str, str], changeable: Iterable[str],
                newer: Mapping[str, schema.Assignment] | None = None) -> DictConfig:
    """The run's config with `changes`. `changeable`: the keys, or prefixes of keys, that may change. `newer`: keys that
    a run of an earlier version may not have, which are added. Raises UserError that names the key."""
    stored, allowed = run_dir.read_config(), tuple(changeable)
    refuse_incomplete_config(stored, run_dir.path / "config.yaml")
    try:
        config = OmegaConf.create(stored)
    except OmegaConfBaseException as error:
        raise UserError(f"{run_dir}/config.yaml: damaged ({checks.one_line(error)})") from None
    rules = {key: schema.rule_of(comment) for key, comment in run_dir.comments().items()}
    known = checks.flat_keys(config)
    for key, line in (newer or {}).items():
        if key not in known and type(line.value) is not dict:
            OmegaConf.update(config, key, EARLIER.get(key, line.value), force_add=True)
            rules.setdefault(key, schema.rule_of(line.comment))
    known = checks.flat_keys(config)
    for key, text in changes.items():
        if key not in known:
            checks.refuse_old_key(key)
            raise UserError(f"unknown key '{key}'{suggest(key, known) or f'; {run_dir}/config.yaml has them all'}")
        if not key.startswith(allowed):
            raise UserError(f"{key} cannot change in a run that has started; these can: {', '.join(allowed)}"
                            f"{new_run_hint(known, run_dir)}")
        value = parse_value(key, text, rules.get(key))
        try:
            OmegaConf.update(config, key, value)
        except OmegaConfBaseException as error:
            raise UserError(f"{key}={text}: {checks.one_line(error)}") from None
    refuse_stored(config, run_dir)
    return config


def refuse_stored(config: DictConfig, run_dir: RunDir) -> None:
    """Raises UserError for what the config of a run may not name, and for values that it cannot have here."""
    place, written = f" ({run_dir}/config.yaml)", OmegaConf.to_container(config)
    try:
        refuse_interpolations(written, lambda key: place)
        trust.refuse_config(written, partial(value_at, config), lambda key: place)
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{checks.one_line(error)}{place}") from None


def new_run_hint(keys: Iterable[str], run_dir: RunDir) -> str:
    """How a run with other values begins with these weights; "" for a model that loads none."""
    key = next((key for key in keys if key.endswith("pretrained.from_run")), None)
    return f"; a new run with {key}={run_dir} begins with its weights" if key else ""


def parse_value(key: str, text: str, rule: str | None) -> Any:
    """The text as a value of yaml, or as it is where the rule asks for text. Raises UserError if it breaks the rule."""
    with schema.building(f"{key}={text}"):
        value = text if rule == "str" else yaml.load(text, Loader=schema.Loader)
    if rule is not None and (fault := schema.violation(rule, value)):
        raise UserError(f"{key}={text}: {fault}")
    return value


def run_dir_of(pairs: Mapping[str, str]) -> RunDir:
    return RunDir(Path(pairs["run"]).expanduser())
