"""A study of Optuna's in the folder of a sweep (study.db): proposals by TPE, and pruning by the median.

J. Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011, section 4. T. Akiba et al., Optuna, 2019,
arXiv:1907.10902.

A proposal is a function of the seed, its number and the trials before it, and only trials that have ended are stored.
So a study that was killed proposes the job that was under way once more, and the job is finished.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain import run_pause
from dltrain.errors import CheckpointError, UserError
from dltrain.run_dir import RunDir
from dltrain.sweeps.curves import best_by_epoch
from dltrain.sweeps.space import Choice, Dimension, Interval, Space

if TYPE_CHECKING:
    import optuna

FILE = "study.db"
JOB, RETRY = "job", "retry"  # attributes of a trial: the id of its job; whether it is that of an earlier trial
STARTUP_TRIALS = 5  # that are random
MIN_COMPLETE = 2  # trials, before one is pruned


class Study:
    """`mode`: of the headline metric, min or max."""

    def __init__(self, folder: Path, space: Space, seed: int, mode: str):
        optuna = import_optuna()
        self.space, self.seed, self.direction, self.file = space, seed, f"{mode}imize", folder / FILE
        with naming(self.file):
            self.stored = optuna.create_study(storage=f"sqlite:///{self.file.absolute()}", study_name="dltrain",
                                              direction=self.direction, load_if_exists=True)
        self.distributions = {dimension.key: distribution_of(dimension) for dimension in space.dimensions}

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        with naming(self.file):
            return self.stored.get_trials(deepcopy=False)

    @property
    def num_proposed(self) -> int:
        return sum(not trial.user_attrs[RETRY] for trial in self.trials)

    def failed(self) -> list[dict[str, Any]]:
        """The parameters of the trials whose jobs have failed."""
        last = {trial.user_attrs[JOB]: trial for trial in self.trials}
        return [trial.params for trial in last.values() if trial.state.name == "FAIL"]

    def propose(self) -> dict[str, Any]:
        """The parameters of the next trial."""
        optuna = import_optuna()
        number = random.Random(f"{self.seed} {len(self.trials)}").getrandbits(32)
        sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP_TRIALS)
        study = optuna.create_study(sampler=sampler, direction=self.direction)
        study.add_trials(self.trials)
        values = study.ask(self.distributions).params
        return {dimension.key: rounded(dimension, values[dimension.key]) for dimension in self.space.dimensions}

    def words(self, values: dict[str, Any]) -> list[str]:
        return self.space.words([text_of(dimension, values[dimension.key]) for dimension in self.space.dimensions])

    def prunes(self, values: dict[str, Any], epoch: int, best: float) -> bool:
        """Whether a job that has reached `best` after so many epochs is worse than the median, at that epoch, of those
        that were trained to their end."""
        optuna = import_optuna()
        trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, params=values,
                                          distributions=self.distributions, intermediate_values={epoch: best})
        return bool(optuna.pruners.MedianPruner(n_startup_trials=MIN_COMPLETE).prune(self.stored, trial))

    def add(self, values: dict[str, Any], job_id: str, run_dir: RunDir, diverged: bool, is_retry: bool) -> None:
        """Stores the trial of a job that has ended, as its folder has it."""
        state, value = import_optuna().trial.TrialState, None
        result, paused = run_dir.read_result(), run_pause.read(run_dir.path)
        if result:
            self.check_mode(str(result["headline_mode"]))
            ended, value = state.COMPLETE, float(result[result["headline"]])
        elif paused or diverged:  # one that diverged has no values, and ranks last
            ended = state.PRUNED
        else:
            ended = state.FAIL
        trial = import_optuna().trial.create_trial(
            state=ended, value=value, params=values, distributions=self.distributions,
            user_attrs={JOB: job_id, RETRY: is_retry}, intermediate_values=best_by_epoch(run_dir))
        with naming(self.file):
            self.stored.add_trial(trial)

    def check_mode(self, mode: str) -> None:
        if self.direction != f"{mode}imize":
            raise UserError(f"the task optimises its headline as '{mode}', but its class states another headline_mode; "
                            "state it there, outside of __init__")


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """An error of the storage becomes a CheckpointError that names the file."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:100]
        raise CheckpointError(f"{file}: cannot be used ({reason}); if it is damaged, delete it: the same command makes "
                              "it anew from the folders of the jobs") from error


def import_optuna() -> Any:
    """Raises UserError if Optuna is not installed."""
    try:
        import optuna
        import sqlalchemy  # noqa: F401  # its storage
    except ImportError as error:
        raise UserError(f"search=tpe needs Optuna ({error}): pip install 'dltrain[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def distribution_of(dimension: Dimension) -> Any:
    distributions = import_optuna().distributions
    match dimension:
        case Interval(_, low, high, is_log, True):
            return distributions.IntDistribution(int(low), int(high), log=is_log)
        case Interval(_, low, high, is_log):
            return distributions.FloatDistribution(low, high, log=is_log)
        case Choice(_, values, True):
            return distributions.IntDistribution(0, len(values) - 1)
    return distributions.CategoricalDistribution(dimension.values)


def rounded(dimension: Dimension, value: Any) -> Any:
    """A value as Optuna stores it, of the number that the job's words have."""
    match dimension:
        case Interval(_, _, _, _, False):
            return float(dimension.text(value))
    return value


def text_of(dimension: Dimension, value: Any) -> str:
    match dimension:
        case Interval():
            return dimension.text(value)
        case Choice(_, values, True):
            return values[value]
    return str(value)
