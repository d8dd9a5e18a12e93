"""What the jobs of a sweep take: seconds and disk of those that are done, and an estimate for the others, from some
steps of one job of each shape that are measured here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from dltrain.benchmark.measure import Bench
from dltrain.benchmark.peaks import peak_mb
from dltrain.build import planned_steps
from dltrain.run_dir import RunDir
from dltrain.sweeps.cost import MB, Cost

STEPS = 6  # that are measured
FORWARD_SHARE = 1 / 3  # of the time of a training step, without gradients
STATES = {"adam": 2, "adamw": 2, "rmsprop": 1, "sgd": 1}  # tensors that an optimizer keeps for each weight


def shape_of(config: Mapping[str, Any]) -> str:
    """Equal for jobs whose steps take the same: they differ in the seed, the optimizer's numbers or the length."""
    task = {key: value for key, value in config["task"].items() if key not in ("optimizer", "schedule")}
    trainer = {key: value for key, value in config["trainer"].items() if not key.startswith("max_")}
    kinds = [config["model"], config["data"], config.get("augment"), task, trainer, config["task"]["optimizer"]["name"]]
    return json.dumps(kinds, sort_keys=True, default=str)


def length_of(config: Mapping[str, Any]) -> float:
    """A number in proportion to the steps, among jobs of one shape."""
    trainer = config["trainer"]
    return float(trainer.get("max_steps") or trainer.get("max_epochs") or 1)


def spent(run_dir: RunDir) -> Cost:
    """Of a job that is done."""
    size = sum(file.stat().st_size for file in run_dir.path.rglob("*") if file.is_file())
    return Cost(float(run_dir.read_result().get("seconds", 0)), None, size / MB, is_estimate=False)


def measure(bench: Bench) -> Cost:
    """An estimate from some steps. Checkpoints: last and previous have weights and optimizer, best the weights."""
    seconds = 0.0

    def some_steps() -> None:
        nonlocal seconds
        seconds = bench.measure([], STEPS, False).seconds

    memory = peak_mb(bench.device, some_steps)
    total_steps, epochs = planned_steps(bench.config, bench.batches_per_epoch)
    evaluated = sum(len(bench.data.eval_loader(split).batches) * times
                    for split, times in (("val", epochs), ("test", 1)))
    steps = total_steps * int(bench.config.trainer.accumulate_batches)
    weights = sum(value.numel() * value.element_size() for value in bench.weights.values())
    states = STATES.get(str(bench.config.task.optimizer.name).lower(), 2)
    return Cost(seconds * (steps + FORWARD_SHARE * evaluated), memory, weights * (3 + 2 * states) / MB,
                is_estimate=True)


def costs_of(jobs: Sequence[tuple[RunDir, DictConfig, Mapping[str, Any]]], prepare: Callable[[DictConfig], Bench]
             ) -> list[Cost]:
    """A job: its folder, its config, and that as plain values. One of each shape is measured."""
    measured: dict[str, tuple[float, Cost]] = {}
    costs = []
    for run_dir, config, plain in jobs:
        if run_dir.is_finished:
            costs.append(spent(run_dir))
            continue
        shape, length = shape_of(plain), length_of(plain)
        if shape not in measured:
            measured[shape] = length, measure(prepare(config))
        first_length, first = measured[shape]
        costs.append(first._replace(seconds=first.seconds * length / first_length))
    return costs
