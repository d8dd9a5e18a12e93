"""Whether the metrics that a run waits for are those that it will have: its headline, and what callbacks monitor."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytorch_lightning as pl
import torch

from dltrain.callbacks.ending import StopWhen
from dltrain.data.datamodule import DataModule
from dltrain.errors import UserError, suggest
from dltrain.tasks.task import Task


def check_monitored(data: DataModule, task: Task, callbacks: Iterable[pl.Callback]) -> None:
    """Before the first step, where a user's own task states the headline or a callback monitors a metric. Raises
    UserError with the names that there are."""
    names = {"trainer.stop_when.metric" if type(callback) is StopWhen else
             f"trainer.callbacks ({type(callback).__name__}, monitor)": str(monitor) for callback in callbacks
             if (monitor := vars(callback).get("monitor")) is not None}
    if not type(task).__module__.startswith("dltrain."):
        names[f"headline of {type(task).__name__}"] = task.headline
    if not names or not (known := validation_metrics(data, task)):
        return
    for place, name in names.items():
        if name not in known:
            raise UserError(f"{place}: no metric '{name}'{suggest(name, known)} (there are: {', '.join(known)})")


def validation_metrics(data: DataModule, task: Task) -> list[str]:
    """What a validation logs, by a copy of the task that validates the first batch; empty where a task of a user's
    cannot do so outside of a run."""
    trial, names = copy.deepcopy(task).eval(), dict[str, None]()

    def note(name: str, value: object, **_: object) -> None:
        names[name] = None

    vars(trial).update(log=note, reduce_sum=lambda values: values)
    batch = next(iter(data.read("val", [torch.arange(min(2, data.num_samples("val")))])))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            trial.on_validation_epoch_start()
            trial.evaluation_step(batch, 0)
            trial.evaluation_end("val")
    except Exception:  # it may need a trainer; the first validation shows what is wrong with it
        return []
    return list(names)
