"""What the jobs of a sweep take: seconds and disk of those that are done, and an estimate for the others, from some
steps of one job of each shape that are measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dltrain.benchmark.measure import Bench
from dltrain.benchmark.peaks import peak_mb
from dltrain.run_dir import RunDir
from dltrain.sweeps.cost import MB, UNKNOWN, Cost, Shape
from dltrain.trainer import planned_steps

STEPS = 6  # that are measured
FORWARD_SHARE = 1 / 3  # of the time of a training step, without gradients
STATES = {"adam": 2, "adamw": 2, "rmsprop": 1, "sgd": 1}  # tensors that an optimizer keeps for each weight


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


def costs_of(jobs: Iterable[tuple[RunDir, Shape, list[str]]], prepare: Callable[[list[str]], Bench]) -> list[Cost]:
    """A job: its folder, its shape and its words. One of each kind is measured."""
    measured: dict[str, tuple[float, Cost]] = {}
    costs = []
    for run_dir, shape, words in jobs:
        if run_dir.is_finished:
            costs.append(spent(run_dir))
            continue
        if not shape.kind:
            costs.append(UNKNOWN)
            continue
        if shape.kind not in measured:
            measured[shape.kind] = shape.length, measure(prepare(words))
        first_length, first = measured[shape.kind]
        costs.append(first._replace(seconds=first.seconds * shape.length / first_length))
    return costs
