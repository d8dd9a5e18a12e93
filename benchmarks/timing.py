"""How the benchmarks measure: sides in turn, what became of it as rows, runs and loops in seconds a step, and processes
of their own for memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig

from dltrain import build
from dltrain.benchmark.loops import watched
from dltrain.benchmark.timing import Spread, StepClock, seconds, spread
from dltrain.benchmark.trainer_run import train_with_trainer
from dltrain.config.compose import compose
from dltrain.data.datamodule import DataModule
from dltrain.machine import available_cores
from dltrain.tasks.task import Task

ROUNDS = 5
BatchT = TypeVar("BatchT")
__all__ = ["ROUNDS", "Row", "alone", "build_run", "cores", "make_row", "measure", "probe", "seconds", "time_loop",
           "time_run"]


@dataclass
class Row:
    """What was measured. `values`: by side, dltrain's first; `against`: dltrain's less each other side, or divided by
    it, round by round; `wanted`: the aim, in words."""

    what: str
    unit: str
    wanted: str
    values: dict[str, Spread]
    compared: str = "ratio"  # or difference
    against: dict[str, Spread] = field(default_factory=dict)


def measure(what: str, unit: str, sides: Mapping[str, Callable[[], float]], wanted: str = "", compared: str = "ratio"
            ) -> Row:
    """Calls the sides in turn, once for nothing and ROUNDS times."""
    for side in sides.values():
        side()
    return make_row(what, unit, [{name: side() for name, side in sides.items()} for _ in range(ROUNDS)], wanted,
                    compared)


def probe(what: str, units: Mapping[str, str], sides: Mapping[str, Callable[[], dict[str, float]]]) -> list[Row]:
    """A row for each of `units`, which map to what is wanted. The sides, each a process of its own, return a value for
    each; they are called in turn, ROUNDS times but at most 3."""
    taken = [{name: side() for name, side in sides.items()} for _ in range(min(ROUNDS, 3))]
    return [make_row(what, unit, [{name: values[unit] for name, values in of_round.items()} for of_round in taken],
                     wanted) for unit, wanted in units.items()]


def make_row(what: str, unit: str, rounds: Sequence[Mapping[str, float]], wanted: str = "", compared: str = "ratio"
             ) -> Row:
    """`rounds`: in each, the value of each side."""
    ours, *others = rounds[0]
    combine: Callable[[float, float], float] = (lambda a, b: a - b) if compared == "difference" else (
        lambda a, b: a / max(b, 1e-9))
    return Row(what, unit, wanted, {name: spread([values[name] for values in rounds]) for name in rounds[0]}, compared,
               {name: spread([combine(values[ours], values[name]) for values in rounds]) for name in others})


def build_run(words: Sequence[str]) -> tuple[DictConfig, DataModule[Any, Any], Task[Any, Any]]:
    """The config, data and task of `dltrain WORDS`, not trained."""
    config = compose(list(words)).job_config()
    data = build.build_data(config)
    config.class_names = data.class_names
    return config, data, build.build_task(config, data.vocabularies)


def time_run(config: DictConfig, data: DataModule[Any, Any], task: Task[Any, Any], num_steps: int, warm_up: int
             ) -> float:
    """Trains with a run's trainer and every callback of it, without validation. Returns the seconds of a step."""
    clock = StepClock(len(data.train_dataloader()), num_steps, warm_up, torch.device("cpu"))
    with watched(task, lambda batch: clock.tick()):
        train_with_trainer(config, data, task, num_steps)
    return clock.step_seconds()


def time_loop(batches: Iterable[BatchT], step: Callable[[BatchT], object], num_steps: int, warm_up: int) -> float:
    """The seconds of a step and of the batch for it, over one epoch that is long enough."""
    clock = StepClock(num_steps + 1, num_steps, warm_up, torch.device("cpu"))
    for batch in batches:
        clock.tick()
        step(batch)
        if len(clock.starts) == num_steps:
            break
    return clock.step_seconds()


@contextmanager
def cores(count: int) -> Iterator[None]:
    """The process, and those that it starts, use so many cores and threads."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(before)[-count:])
    torch.set_num_threads(count)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def core_counts() -> list[int]:
    """One, and two where there are two."""
    return [1, 2][: available_cores()]


def alone(function: str, *arguments: object, cache: Path | None = None) -> dict[str, float]:
    """What `benchmarks.MODULE:function` returns in a process of its own. `cache`: dltrain's cache folder there."""
    module, _, name = function.partition(":")
    code = f"import json; from {module} import {name}; print(json.dumps({name}(*{arguments!r})))"
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
           "DLTRAIN_CACHE": str(cache or Path(tempfile.gettempdir()) / "dltrain-benchmarks")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    if result.returncode:
        raise RuntimeError(f"{function}: {result.stderr[-2000:]}")
    values: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return values
