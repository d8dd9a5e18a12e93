"""How the benchmarks take times: ours and a reference in turn, and the rate of the training steps of a whole run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dltrain import build
from dltrain.callbacks.stopping import Signals
from dltrain.config.compose import compose
from dltrain.data.datamodule import DataModule
from dltrain.tasks.task import Task

ROUNDS = 5


def compare(ours: Callable[[], float], reference: Callable[[], float]) -> dict[str, float]:
    """Medians of both, taken in turn, and of their ratio pair by pair, after one round that is not counted."""
    ours(), reference()
    pairs = [(ours(), reference()) for _ in range(ROUNDS)]
    return {"ours": round(statistics.median(a for a, _ in pairs), 1),
            "reference": round(statistics.median(b for _, b in pairs), 1),
            "ratio": round(statistics.median(a / b for a, b in pairs), 3)}


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def build_run(words: Sequence[str]) -> tuple[DictConfig, DataModule[Any, Any], Task[Any, Any]]:
    """The config, data and task of `dltrain WORDS`, not trained."""
    config = compose(list(words)).job_config()
    data = build.build_data(config)
    config.class_names = data.class_names
    return config, data, build.build_task(config, data.vocabularies)


def steps_per_second(starts: Sequence[float], warm_up_steps: int) -> float:
    """`starts`: the time at which each step began; those of the first steps are left out."""
    return (len(starts) - 1 - warm_up_steps) / (starts[-1] - starts[warm_up_steps])


def time_run(config: DictConfig, data: DataModule[Any, Any], task: Task[Any, Any], warm_up_steps: int) -> float:
    """Trains with Lightning and every callback of a run, without validation. Returns steps per second."""
    starts: list[float] = []
    training_step = task.training_step

    def timed_step(*arguments: Any) -> Any:
        starts.append(time.perf_counter())
        return training_step(*arguments)

    task.training_step = timed_step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build.build_trainer(config, Path(folder), data, task, Signals(), None)
        trainer.limit_val_batches = 0
        trainer.fit(task, datamodule=data)
    return steps_per_second(starts, warm_up_steps)
