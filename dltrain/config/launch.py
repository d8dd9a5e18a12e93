"""What Hydra does itself: its flags, --info, completion, and sweeps with their sweepers and launchers.

The jobs of a sweep are composed and checked by compose.py, each once, before the first one starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict

from dltrain import trust
from dltrain.config import allowed, checks, compose, groups, launchers
from dltrain.errors import UserError

Job = Callable[[DictConfig], Any]
GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
MOST_KEPT = 200  # composed configs
QUIET = ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]


class FlagsParser(argparse.ArgumentParser):
    """Hydra's flags. Its own parser, hydra._internal.utils.get_args_parser, has a help text that is not a str, which
    Python 3.14 refuses."""

    def __init__(self) -> None:
        super().__init__(prog="dltrain", add_help=False, description="Hydra")
        add = self.add_argument
        add("overrides", nargs="*", help="choices and key=value")
        add("--help", "-h", action="store_true", help="dltrain's help")
        add("--hydra-help", action="store_true", help="Hydra's help")
        add("--cfg", "-c", choices=["job", "hydra", "all"], help="print the config and do not train")
        add("--resolve", action="store_true", help="with --cfg: resolve interpolations")
        add("--package", "-p", help="with --cfg: the package to print")
        add("--run", "-r", action="store_true", help="one run, which is the default")
        add("--multirun", "-m", action="store_true", help="a sweep")
        add("--shell-completion", "-sc", action="store_true", help="install or uninstall tab completion")
        add("--config-dir", "-cd", help="a folder of your own configs")
        add("--info", "-i", const="all", nargs="?", help="print what Hydra knows",
            choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"])

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; dltrain --help and dltrain --hydra-help list the flags")


def parse_flags(words: list[str]) -> argparse.Namespace:
    """Hydra's flags, wherever they stand among the overrides. Raises UserError."""
    flags = FlagsParser().parse_intermixed_args(words)
    flags.config_path, flags.config_name, flags.experimental_rerun = None, None, None  # what Hydra reads besides
    flags.overrides = trust.take(flags.overrides)
    return flags


def hand_to_hydra(flags: argparse.Namespace) -> int:
    """What `hydra.main` does with a parsed command line, for --info, --hydra-help, completion and what
    --cfg job does not print."""
    version.setbase("1.3")
    if not flags.shell_completion:
        SweepLoader(flags.config_dir).load_configuration(compose.CONFIG_NAME, flags.overrides, RunMode.RUN)
    _run_hydra(args=flags, args_parser=FlagsParser(), task_function=print, config_path=str(groups.CONFIGS),
               config_name=compose.CONFIG_NAME)
    return 0


class SweepLoader(ConfigLoaderImpl):
    """Hydra's loader. The config of a sweep's job is that of `compose`, with the sweep's `hydra` node."""

    def __init__(self, config_dir: str | None):
        self.sources = compose.Sources(config_dir)
        super().__init__(self.sources.loader.config_search_path)
        self.config_dir = config_dir
        self.jobs: dict[tuple[str, ...], compose.Composed] = {}
        self.folder_of: Callable[[list[str]], str] = " ".join  # of a job, below that of the sweep

    def __reduce__(self) -> tuple[type[SweepLoader], tuple[str | None]]:
        """In another process it composes anew what it needs there."""
        return SweepLoader, (self.config_dir,)

    def compose_job(self, words: list[str]) -> compose.Composed:
        """Composes once: sweepers ask for each job twice, to check it and to start it. Raises UserError."""
        key = tuple(words)
        if key not in self.jobs:
            while len(self.jobs) >= MOST_KEPT:
                del self.jobs[next(iter(self.jobs))]
            self.jobs[key] = compose.compose(words, self.config_dir, sources=self.sources)
        return self.jobs[key]

    def overrides(self, words: Sequence[str]) -> list[Override]:
        """The words as Hydra reads them, without those that are its own."""
        return [override for override in OverridesParser.create(config_loader=self).parse_overrides([*words])
                if not override.key_or_group.startswith("hydra")]

    def combinations(self, words: Sequence[str]) -> tuple[list[list[str]], list[str]]:
        """The words of each job of a sweep over listed values, and the keys that are swept."""
        overrides = self.overrides(words)
        swept = [override.key_or_group for override in overrides if override.is_sweep_override()]
        return BasicSweeper.split_arguments(overrides, None)[0], swept

    def load_configuration(self, config_name: str | None, overrides: list[str], run_mode: RunMode,
                           from_shell: bool = True, validate_sweep_overrides: bool = True) -> DictConfig:
        """As Hydra does it. Raises UserError for what its node `hydra` may not hold: this one is used."""
        launchers.hide_others()
        config = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        allowed.refuse_hydra(config.hydra, [word.lstrip("+~").partition("=")[0] for word in overrides])
        launchers.check(config.hydra)
        return config

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed = self.compose_job(sweep_overrides)
        config = composed.job_config().copy()
        with open_dict(config):
            config.hydra = master_config.hydra.copy()
            OmegaConf.set_readonly(config.hydra, False)
            config.hydra.overrides.task = list(sweep_overrides)
            config.hydra.runtime.choices = composed.chosen
            config.hydra.sweep.subdir = self.folder_of(sweep_overrides)
        return config


def load_sweep(words: list[str], loader: SweepLoader) -> DictConfig:
    """The config of the sweep that the words describe; its node `hydra` has the sweeper and the launcher. Raises
    UserError for another launcher than there are, and for keys that it does not have."""
    version.setbase("1.3")
    try:
        return loader.load_configuration(compose.CONFIG_NAME, [*words, *QUIET], RunMode.MULTIRUN)
    except MissingConfigException as error:
        raise checks.missing_choice(error, []) from None
    except HydraException as error:
        raise UserError(checks.one_line(error)) from None


def is_grid(sweep: DictConfig) -> bool:
    """Whether the jobs are all combinations of the swept values, rather than chosen by a sweeper as it goes."""
    return bool(sweep.hydra.sweeper._target_ == GRID)


def launch_jobs(sweep: DictConfig, folder: Path, loader: SweepLoader, job: Job, words: Sequence[Sequence[str]]
                ) -> list[Any]:
    """Runs `job` with the config of each job by the launcher of the sweep. Returns what `job` returned."""
    with flag_override(sweep.hydra, "readonly", False):
        sweep.hydra.sweep.dir = str(folder).replace("$", r"\$")
    HydraConfig.instance().set_config(sweep)
    launcher = launchers.create(HydraContext(config_loader=loader, callbacks=Callbacks(sweep)), job, sweep)
    return [result.return_value for result in launcher.launch(words, initial_job_idx=0)] if words else []


def search(words: list[str], folder: Path, loader: SweepLoader, job: Job) -> None:
    """Runs `job` with the config of each job that the sweeper of these words asks for."""
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    hydra = Hydra(task_name="dltrain", config_loader=loader)
    GlobalHydra.instance().initialize(hydra)
    own = [f"hydra.sweep.dir={quote(folder)}", "hydra.sweeper.params=null", *QUIET]  # `words` has the params
    try:
        hydra.multirun(config_name=compose.CONFIG_NAME, task_function=job, overrides=[*words, *own])
    except HydraException as error:  # of a launcher or sweeper: errors of jobs are theirs
        raise UserError(checks.one_line(error)) from error
    finally:
        GlobalHydra.instance().clear()


def quote(path: Path) -> str:
    """A path as a value in Hydra's grammar, whatever is in it."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
