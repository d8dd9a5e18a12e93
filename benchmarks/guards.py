"""What the guards of a run cost in a step of ResNet-20, on one core: the check that the loss is finite, the seeds of
each step, the handlers of signals, and the questions whether to save or to stop."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

import pytorch_lightning as pl

from benchmarks.random_data import build_images, images_config
from benchmarks.timing import Row, cores, measure, time_run
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.signals import Signals

STEPS, WARM_UP, BATCH = 32, 8, 128
SAVING = ("on_train_batch_end", "on_train_start")


class NoSignals(Signals):
    """Leaves the handlers of signals as they are."""

    def __enter__(self) -> NoSignals:
        return self


def run() -> list[Row]:
    with cores(1):
        config = images_config(32, 3, BATCH, "augment=cifar")
        data, task = build_images(config, BATCH * (STEPS + 1))

        def guarded() -> float:
            return 1e3 * time_run(config, data, task, STEPS, WARM_UP)

        def unguarded() -> float:
            with ExitStack() as off:
                for name in ("StopAtNonFinite", "StepSeeds"):
                    off.enter_context(patch(f"dltrain.trainer.{name}", lambda *_: pl.Callback()))
                for name in SAVING:
                    off.enter_context(patch.object(Checkpointing, name, getattr(pl.Callback, name)))
                off.enter_context(patch("dltrain.benchmark.trainer_run.Signals", NoSignals))
                return guarded()

        return [measure("a step of ResNet-20, 32 px, batch 128", "ms", {"dltrain": guarded, "no guards": unguarded},
                        "<= 1.01 of the step without guards")]
