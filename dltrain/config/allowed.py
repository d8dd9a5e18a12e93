"""What may stand in a composed config: names that trust.py allows, and of Hydra's own settings what starts no code. It
is compared before anything is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from omegaconf import DictConfig, OmegaConf

from dltrain import trust
from dltrain.config.interpolations import value_at
from dltrain.errors import UserError

# Hydra's launchers and sweepers, dltrain's, and installed ones
PLUGINS = ("hydra_plugins", "hydra._internal.core_plugins", "dltrain.sweeps.launchers", "dltrain.sweeps.ray_launcher",
           "dltrain.sweeps.submitit_launcher")
SAMPLERS = re.compile(r"optuna\.(samplers|pruners)\.[A-Z]\w*")  # what one of them may be given
HANDLERS = ("logging.StreamHandler", "logging.FileHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"  # Hydra's own
# What a file may set of Hydra. Of the launchers' and sweepers' keys, these hold commands or name code.
HYDRA_KEYS = {"mode", "sweeper", "launcher"}
COMMANDS = ("setup", "command", "python", "srun_args", "additional_parameters", "custom_search_space", "env_set")


def refuse_config(config: DictConfig, place_of: Callable[[str], str]) -> None:
    """Raises UserError with the key, and the file and line, of what a composed config may not hold. Imports nothing.
    `place_of`: where a key is set, "" if nowhere."""

    def place(key: str) -> str:
        keys = [key.rsplit(".", cut)[0] for cut in range(key.count(".") + 1)]
        return next((text for name in keys if (text := place_of(name))), "")

    if "trust" in config:
        raise UserError(f"trust: is taken from the command line alone{place('trust')}; type trust=[...] there")
    trust.refuse_config(OmegaConf.to_container(config), partial(value_at, config), place)


def refuse_hydra(node: DictConfig | None, typed: Iterable[str] = ()) -> None:
    """Raises UserError for a setting of Hydra that would start code, run commands or change the environment, other than
    the `typed` ones of the command line. `node`: the composed node `hydra`; without Hydra's own defaults it may have
    HYDRA_KEYS alone."""
    for key, reason in hydra_faults(OmegaConf.to_container(node) if OmegaConf.is_config(node) else node):
        if not f"hydra.{key}".startswith(tuple(typed) or ("\0",)):
            raise UserError(f"hydra.{key} is not allowed in a config file: {reason}")


def hydra_faults(values: object) -> Iterator[tuple[str, str]]:
    """The keys below `hydra` that are not allowed, each with the reason."""
    settings = values if type(values) is dict else {} if values is None else {"": values}
    has_defaults = "runtime" in settings
    for key, value in settings.items():
        if key in ("callbacks", "searchpath") and value:
            yield key, "it would start code of its own; trainer.callbacks takes callbacks, --config-dir configs"
        elif key not in HYDRA_KEYS and not has_defaults:
            yield key, f"a file may set {', '.join(f'hydra.{name}' for name in sorted(HYDRA_KEYS))}"
    for key, name, value in leaves(settings):
        group = key.partition(".")[0]
        is_plugin = trust.is_below(str(value), PLUGINS) if key.count(".") == 1 else SAMPLERS.fullmatch(str(value))
        if name == "_target_" and not (group in ("sweeper", "launcher") and is_plugin):
            yield f"{key}={value}", "only Hydra's launchers and sweepers, and installed ones, may stand there"
        elif name == "()" or str(value).startswith("cfg://") or (
                str(value).startswith("ext://") and value not in STREAMS) or (
                name == "class" and value not in HANDLERS) or (name == "filename" and value != LOG_FILE):
            yield f"{key}={value}", "it names code or a file for the log"
        elif value and any(word in piece for word in COMMANDS for piece in key.split(".")[1:]):
            yield key, "it holds a command or names code; the command line can set it"


def leaves(node: object, key: str = "") -> Iterator[tuple[str, str, object]]:
    """The values in a node by their key, with its last name."""
    pairs = [*node.items()] if type(node) is dict else [*enumerate(node)] if type(node) is list else []
    for name, value in pairs:
        yield from leaves(value, f"{key}.{name}" if key else str(name))
    if not pairs:
        yield key, key.rpartition(".")[2], node
