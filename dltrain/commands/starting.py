"""What train and resume share: starting a run or a study, and the jobs of a sweep that are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from dltrain.config import launch
from dltrain.run_dir import RunDir
from dltrain.sweeps.jobs import Job
from dltrain.sweeps.limits import Limits

Prunes = Callable[[int, float], bool]


def start_config(config: DictConfig, run_dir: RunDir, comments: Mapping[str, str], config_dir: str | None,
                 command: list[str] | None = None, until_epoch: int | None = None, prunes: Prunes | None = None
                 ) -> None:
    """`until_epoch`, `prunes`: where the training ends earlier, see run.train."""
    from dltrain import run
    from dltrain.proof.rerun import explained

    if "study" in config:
        run.study(config, run_dir, comments, config_dir)
    else:
        with explained(run_dir):
            run.train(config, run_dir, comments, command, until_epoch, prunes)


def run_jobs(planned: Sequence[Job], folder: Path, loader: launch.SweepLoader, hydra: DictConfig,
             accept_changed_data: bool, heading: str, limits: Limits) -> int:
    """Does what is missing of the jobs, by the launcher of the sweep that `hydra` describes. Returns the exit code."""
    from dltrain.sweeps import running
    from dltrain.sweeps.finish import finish

    names = {tuple(job.words): job.name for job in planned}
    loader.folder_of = lambda words: names[tuple(words)]
    job = running.SweepJob(partial(train_job, loader), accept_changed_data, limits.max_hours)
    return running.run_jobs(planned, folder, partial(launch.launch_jobs, hydra, folder, loader), job,
                            partial(finish, folder, heading), limits)


def train_job(loader: launch.SweepLoader, config: DictConfig, run_dir: RunDir, words: list[str],
              until_epoch: int | None = None, prunes: Prunes | None = None) -> None:
    start_config(config, run_dir, loader.compose_job(words).comments(), loader.config_dir, None, until_epoch, prunes)
