"""Training as a run does it: Lightning's trainer with every callback, in a temporary folder, without validation."""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dltrain.build import build_callbacks
from dltrain.devices import place_on_gpu
from dltrain.signals import Signals
from dltrain.tasks.task import Task
from dltrain.trainer import build_trainer, planned_steps


def train_with_trainer(config: DictConfig, data: Any, task: Task, num_steps: int) -> None:
    """`num_steps` optimizer steps from the start of the order of samples, with the weights that the task has. The
    learning rate is that of the whole run. Raises KeyboardInterrupt where a signal ended it."""
    limited = limit_steps(config, num_steps)
    with tempfile.TemporaryDirectory(prefix="dltrain-bench-") as folder, redirect_stdout(io.StringIO()):
        with Signals() as signals:
            signals.record()
            trainer, _ = build_trainer(limited, Path(folder), data, task, signals, None, build_callbacks(limited))
            task.total_steps, task.total_epochs = planned_steps(config, len(data.train_dataloader()))
            trainer.limit_val_batches = 0
            data.load_state_dict({"position": 0})
            place_on_gpu(limited.trainer, data, task, trainer.strategy.root_device)
            trainer.fit(task, datamodule=data)
        if signals.received is not None:
            raise KeyboardInterrupt


def limit_steps(config: DictConfig, num_steps: int) -> DictConfig:
    """The config of a run that ends after `num_steps`."""
    limited = config.copy()
    limited.trainer.max_steps, limited.trainer.max_epochs = num_steps, None
    limited.trainer.smoke_steps = None  # the data are cut already
    return limited
