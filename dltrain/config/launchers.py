"""The launcher of a sweep: one of dltrain's own, in configs/hydra/launcher, or an installed plugin of Hydra."""

from __future__ import annotations

from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig

from dltrain import trust
from dltrain.config import groups, schema
from dltrain.errors import UserError

GROUP = "hydra/launcher"
OWN = "dltrain.sweeps"
LIBRARIES = {"joblib": "joblib", "ray": "ray", "submitit_slurm": "submitit"}  # that the launchers need
EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_slurm": "slurm"}  # with which they are installed


def hide_others() -> None:
    """Where a plugin is installed that has a launcher of the same name, dltrain's counts: Hydra would take the other
    one for its schema."""
    registered = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for name in groups.names(GROUP):
        registered.pop(f"{name}.yaml", None)


def check(hydra: DictConfig) -> None:
    """Raises UserError if the launcher that is chosen needs a library that is not installed, or has a value against its
    rule. `hydra`: that node of the composed config."""
    name = str(hydra.runtime.choices.get(GROUP))
    file = groups.path_of(GROUP, name)
    if file is None:
        return
    if find_spec(LIBRARIES[name]) is None:
        raise UserError(f"{GROUP}={name} needs the library {LIBRARIES[name]}: pip install 'dltrain[{EXTRAS[name]}]'")
    for key, line in schema.assignments(file).items():
        rule, value = schema.rule_of(line.comment), hydra.launcher.get(key)
        if rule and (fault := schema.violation(rule, value)):
            raise UserError(f"hydra.launcher.{key}={schema.format_value(value)}: {fault}")


def create(context: HydraContext, job: TaskFunction, sweep: DictConfig) -> Launcher:
    """Ready to launch the job with the words of each."""
    if not trust.is_below(sweep.hydra.launcher._target_, [OWN]):
        return Plugins.instance().instantiate_launcher(context, job, sweep)
    values = {str(key): value for key, value in sweep.hydra.launcher.items() if key != "_target_"}
    launcher: Launcher = get_class(sweep.hydra.launcher._target_)(**values)
    launcher.setup(hydra_context=context, task_function=job, config=sweep)
    return launcher
