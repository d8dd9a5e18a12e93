"""Which settings train faster on this device, and which of them keep the numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dltrain.benchmark.timing import TOLERANCE, Spread, spread

DIMENSIONS = ("threads", "memory_format", "compile", "precision")  # in the order in which they are tried
THREADS = "OMP_NUM_THREADS"  # of the environment; the others are keys of the config
MATMUL = "trainer.matmul_precision"
FASTER = 1.03  # a setting is worth a word from this ratio on
ROUNDS = 3
HOPELESS = 0.7  # of the plain rate in the steps that are compared: not measured any further


class Trial(NamedTuple):
    """One setting beside the plain one. `ratio`: of the rates, plain = 1. `difference`: the largest of the relative
    differences of the losses; None with `error`, the message of a setting that does not run."""

    words: list[str]
    ratio: Spread | None
    difference: float | None
    error: str | None = None

    @property
    def keeps_numbers(self) -> bool:
        return self.difference is not None and self.difference <= TOLERANCE

    @property
    def rate(self) -> float:
        return self.ratio["median"] if self.ratio else 0.0


class Measured(NamedTuple):
    """What a setting does in some steps: the seconds of one, and the losses (N,) of the first."""

    seconds: float
    losses: Tensor


# words, steps, whether for the losses (with a small learning rate and the random numbers of a run) -> what was measured
Measure = Callable[[Sequence[str], int, bool], Measured]


def alternatives(config: DictConfig, model: nn.Module, device: torch.device) -> dict[str, list[str]]:
    """The other values of each dimension, each one word or several; empty where there are none, as layouts for a model
    without filters of images."""
    keys = config.trainer
    words: dict[str, list[str]] = {name: [] for name in DIMENSIONS}
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in vars(os) else os.cpu_count() or 1
        counts = {1, cores // 2, cores} - {0, torch.get_num_threads()}
        words["threads"] = [f"{THREADS}={count}" for count in sorted(counts)]
    if any(parameter.dim() == 4 for parameter in model.parameters()):
        words["memory_format"] = [f"trainer.memory_format={name}" for name in ("contiguous", "channels_last")
                                  if name != keys.memory_format]
    if not keys.compile:
        words["compile"] = ["trainer.compile=true"]
    if keys.precision == "32-true":
        words["precision"] = ["trainer.precision=bf16-mixed"]
    if device.type == "cuda":
        if words["compile"] and "compile_mode" in keys:  # CUDA graphs
            words["compile"].append("trainer.compile=true trainer.compile_mode=reduce-overhead")
        if words["precision"]:
            words["precision"].append("trainer.precision=16-mixed")
            if keys.get("matmul_precision") == "highest":
                words["precision"].insert(0, f"{MATMUL}=high")  # TF32
    return words


def changed(config: DictConfig, words: Sequence[str]) -> DictConfig:
    """The config with the keys that the words set."""
    result = config.copy()
    for word in words:
        key, _, value = word.partition("=")
        if key != THREADS:
            OmegaConf.update(result, key, {"true": True}.get(value, value))
    return result


def try_words(words: Sequence[str], measure: Measure, plain: Tensor, num_steps: int) -> Trial:
    """`plain`: the losses of the plain setting; `num_steps`: of each round."""
    listed = list(words)
    try:
        first = measure(words, len(plain), True)
        difference = loss_difference(first.losses, plain)
        base = measure([], num_steps, False).seconds
        if base / first.seconds < HOPELESS and "trainer.compile=true" not in words:
            return Trial(listed, spread([base / first.seconds]), difference)
        pairs = [(measure([], num_steps, False).seconds, measure(words, num_steps, False).seconds)
                 for _ in range(ROUNDS)]
    except RuntimeError as error:  # an operation that does not exist in bfloat16, or no compiler
        return Trial(listed, None, None, (str(error).splitlines() or [type(error).__name__])[0][:200])
    return Trial(listed, spread([plain_seconds / other for plain_seconds, other in pairs]), difference)


def loss_difference(losses: Tensor, others: Tensor) -> float:
    """The largest relative difference of two rows of losses; infinite where one of them is not finite."""
    count = min(len(losses), len(others))
    a, b = losses[:count].double().cpu(), others[:count].double().cpu()
    if not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    return float(((a - b).abs() / b.abs().clamp_min(1e-12)).max())


def search(choices: Mapping[str, Sequence[str]], try_one: Callable[[Sequence[str]], Trial | None]) -> list[Trial]:
    """Tries each alternative of a dimension on top of the best words of the dimensions before it; None: not tried."""
    trials: list[Trial] = []
    for dimension in DIMENSIONS:
        words = best(trials).words
        tried = [try_one([*words, *alternative.split()]) for alternative in choices.get(dimension, ())]
        trials += [trial for trial in tried if trial is not None]
    return trials


def best(trials: Sequence[Trial], keeping: bool = True) -> Trial:
    """The fastest that keeps the numbers (or, without `keeping`, that changes them), if it is worth it; the plain
    setting otherwise."""
    plain = Trial([], spread([1.0]), 0.0)
    fitting = [trial for trial in trials if trial.keeps_numbers == keeping and trial.rate >= FASTER]
    fastest = plain
    for trial in fitting:
        if trial.rate > fastest.rate * (FASTER if len(trial.words) > len(fastest.words) else 1.0):
            fastest = trial
    return fastest
