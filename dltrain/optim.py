"""From config values to an optimizer and a schedule in optimizer steps."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dltrain.errors import UserError, nearest

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}


def optimizer(module: nn.Module, name: str, lr: float, weight_decay: float, momentum: float = 0.0,
              beta2: float = 0.999, nesterov: bool = False, decay_all: bool = True, lr_factors: Sequence[str] = ()
              ) -> torch.optim.Optimizer:
    """An optimizer over the parameters of `module` that are trained.

    `momentum` is SGD's and RMSprop's own, and the first beta of Adam and AdamW; `beta2` their second. An own optimizer,
    named by its dotted path, is called with the parameters, lr and weight_decay. Without `decay_all`, biases and norm
    parameters (those of one dimension) are not decayed. `lr_factors`: NAME:FACTOR, for the parameters whose names begin
    so, or that are of the encoder's stage of this name; the longest name counts. Raises UserError for an unknown one.
    """
    groups = parameter_groups(module, lr, weight_decay, decay_all, factors_of(lr_factors))
    if nesterov and name != "sgd":
        raise UserError(f"task.optimizer.nesterov=true: only sgd has it, but task.optimizer.name is {name}")
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    if name in ("adam", "adamw"):
        return OPTIMIZERS[name](groups, lr=lr, betas=(momentum, beta2))
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr, momentum=momentum)
    path, _, own = name.rpartition(".")
    if not path:
        hint = nearest(name, list(OPTIMIZERS)) or f"; there are: {', '.join(OPTIMIZERS)}, or a dotted path"
        raise UserError(f"unknown task.optimizer.name '{name}'{hint}")
    try:
        return getattr(importlib.import_module(path), own)(groups, lr=lr)
    except (ImportError, AttributeError) as error:
        raise UserError(f"task.optimizer.name='{name}': {error}") from None


def factors_of(words: Sequence[str]) -> dict[str, float]:
    found = {}
    for word in words:
        name, _, factor = str(word).rpartition(":")
        try:
            found[name] = float(factor)
        except ValueError:
            found[name] = -1.0
        if not name or not 0 <= found[name] < math.inf:
            raise UserError(f"task.optimizer.lr_factors: '{word}' must be NAME:FACTOR, as encoder:0.1")
    return found


def parameter_groups(module: nn.Module, lr: float, weight_decay: float, decay_all: bool,
                     lr_factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """By learning rate and decay, those without a factor first."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    stages = stage_of_each(module)
    for start in lr_factors:
        if not any(name.startswith(start) or stages.get(p) == start for name, p in trained):
            known = sorted({name.partition(".")[0] for name, _ in trained} | {*stages.values()})
            raise UserError(f"task.optimizer.lr_factors.{start}: no parameter that is trained begins so"
                            f"{nearest(start, known) or '; there are: ' + ', '.join(known)}")
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in trained:
        start = max((start for start in lr_factors if name.startswith(start) or stages.get(parameter) == start),
                    key=len, default="")
        groups.setdefault((start, decay_all or parameter.dim() > 1), []).append(parameter)
    return [{"params": groups[start, decays], "lr": lr * lr_factors.get(start, 1.0),
             "weight_decay": weight_decay if decays else 0.0}
            for start in ("", *lr_factors) for decays in (True, False) if (start, decays) in groups]


def stage_of_each(module: nn.Module) -> dict[nn.Parameter, str]:
    """The stage of every parameter of the encoder, which is the module or what it calls `encoder`, where it has any."""
    encoder: Any = getattr(module, "encoder", module)
    found = encoder.stages().items() if hasattr(encoder, "stages") else ()
    return {parameter: name for name, units in found for unit in units for parameter in unit.parameters()}


def share_of_peak(step: int, total_steps: int, name: str, milestones: Sequence[float] = (), factor: float = 0.1,
                  warmup_steps: int = 0, warmup_factor: float = 0.1, warmup: str = "linear") -> float:
    """The learning rate at an optimizer step, as a share of its peak.

    `step`: times `factor` after each of `milestones`, shares in (0, 1) of the run. `cosine`: half a cosine from the
    end of the warm-up to 0 at the run's end. Warm-up `linear` rises from `warmup_factor` to 1; `constant` stays there
    and jumps (the ResNet-110 of He et al. 2015).
    """
    if step < warmup_steps:
        rise = (1 - warmup_factor) * step / warmup_steps if warmup == "linear" else 0.0
        return warmup_factor + rise
    if name == "step":
        return factor ** sum(step >= round(share * total_steps) for share in milestones)
    if name == "cosine":
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0


def schedule(over: torch.optim.Optimizer, total_steps: int, keys: Mapping[str, Any]
             ) -> torch.optim.lr_scheduler.LambdaLR:
    """`share_of_peak` as a scheduler to be stepped once an optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(over, lambda step: share_of_peak(step, total_steps, **keys))
