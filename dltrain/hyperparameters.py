"""The keys and metrics of a finished run that TensorBoard compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl

from dltrain.callbacks.metrics import TensorBoard
from dltrain.dotted import flatten

# What TensorBoard compares of every run, beside the keys that were typed.
HYPERPARAMETERS = ("choices.model", "choices.data", "choices.augment", "seed", "data.batch_size", "task.optimizer.name",
                   "task.optimizer.lr", "task.optimizer.weight_decay", "trainer.max_epochs")
NOT_HYPERPARAMETERS = ("name", "output_dir", "data.root", "data.num_workers")


def log_hyperparameters(trainer: pl.Trainer, config: Mapping[str, object], result: Mapping[str, Any],
                        typed: Iterable[str]) -> None:
    """HYPERPARAMETERS and the keys that were typed, beside the best value of the headline and the test
    metrics, for TensorBoard's comparison of runs. Numbers stay numbers."""
    flat = flatten(config)
    compared = [key for key in {**dict.fromkeys(HYPERPARAMETERS), **dict.fromkeys(sorted(typed))}
                if flat.get(key) is not None and key not in NOT_HYPERPARAMETERS]
    values = {key.removeprefix("choices."): value if type(value := flat[key]) in (bool, int, float, str) else str(value)
              for key in compared}
    metrics = {key: value for key, value in result.items() if key.startswith("test/") and key.count("/") == 1}
    metrics[f"best/{result['headline'].partition('/')[2]}"] = result[result["headline"]]
    for logger in trainer.loggers:
        board = isinstance(logger, TensorBoard)
        logger.log_hyperparams(values, *([metrics, result["steps"]] if board else []))
        logger.finalize("success")
