"""From config values to an optimizer, and to a learning rate schedule counted in optimizer steps."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Required, TypedDict

import torch
from torch import Tensor, nn

from dltrain.contracts import Model, backbone_of
from dltrain.errors import UserError, suggest

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
BACKBONE = "backbone"  # in lr_factors: all stages of the backbone


class OptimizerKeys(TypedDict, total=False):
    """The keys of task.optimizer."""

    name: Required[str]
    lr: Required[float]
    weight_decay: Required[float]
    momentum: float
    beta2: float
    nesterov: bool
    decay_all: bool
    lr_factors: Sequence[str]
    fused: bool


class ScheduleKeys(TypedDict, total=False):
    """The keys of task.schedule."""

    name: Required[str]
    milestones: Sequence[float]
    factor: float
    warmup_steps: int
    warmup_factor: float
    warmup: str
    peak_at: float
    final_factor: float


def optimizer(module: Model, name: str, lr: float, weight_decay: float, momentum: float = 0.0,
              beta2: float = 0.999, nesterov: bool = False, decay_all: bool = True, lr_factors: Sequence[str] = (),
              fused: bool = True, **own: Any) -> torch.optim.Optimizer:
    """An optimizer over the parameters of `module` that require a gradient.

    `momentum` is that of SGD and RMSprop, and the first beta of Adam and AdamW; `beta2` is their second one. An
    optimizer of the user's own, named by its dotted path, is called with the parameter groups, which contain
    weight_decay, with lr and with `own`, the keys that are not those of OptimizerKeys. Without `decay_all`, biases and
    norm parameters (those of one dimension) are not decayed.
    `lr_factors`: "NAME:FACTOR", where NAME is a stage of the backbone, `backbone` for all of its stages, what names of
    parameters begin with, or a pattern of names such as *.bias; a parameter that several of them name has the factor of
    the one that names the fewest parameters. `fused`: where all of them are on a GPU, sgd, adam and adamw update them
    in one kernel.

    Raises UserError for an unknown optimizer, or for a factor that fits no parameter.
    """
    groups = parameter_groups(module, lr, weight_decay, decay_all, parse_factors(lr_factors))
    one_kernel = True if fused and all(parameter.is_cuda for group in groups for parameter in group["params"]) else None
    if nesterov and name != "sgd":
        raise UserError(f"task.optimizer.nesterov=true: only sgd has it, but task.optimizer.name is {name}")
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=one_kernel)
    if own and name in OPTIMIZERS:
        raise UserError(f"task.optimizer.{next(iter(own))}: {name} does not take it here; name the optimizer by its "
                        f"dotted path, as torch.optim.{OPTIMIZERS[name].__name__}")
    if name in ("adam", "adamw"):
        return OPTIMIZERS[name](groups, lr=lr, betas=(momentum, beta2), fused=one_kernel)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr, momentum=momentum)
    if "." not in name:
        hint = suggest(name, list(OPTIMIZERS)) or f"; there are: {', '.join(OPTIMIZERS)}, or a dotted path"
        raise UserError(f"unknown task.optimizer.name '{name}'{hint}")
    try:
        return import_name("task.optimizer.name", name)(groups, lr=lr, **own)
    except TypeError as error:
        raise UserError(f"task.optimizer.name={name}: {error}") from error


def import_name(key: str, path: str) -> Any:
    """What a dotted path names; `build.locate_all` has compared it with what a config may name. Raises UserError with
    the key."""
    module, _, name = path.rpartition(".")
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{key}={path}: {error}; a module of your own must lie in this folder or beside --config-dir"
                        ) from error
    if name not in vars(imported):
        raise UserError(f"{key}={path}: {module} has no '{name}'{suggest(name, list(vars(imported)))}")
    return vars(imported)[name]


def parse_factors(lr_factors: Sequence[str]) -> dict[str, float]:
    """["backbone:0.1"] to {"backbone": 0.1}. Raises UserError."""
    factors = {}
    for text in lr_factors:
        name, _, factor = str(text).rpartition(":")
        try:
            factors[name] = float(factor)
        except ValueError:
            factors[name] = -1.0
        if not name or not 0 <= factors[name] < math.inf:
            raise UserError(f"task.optimizer.lr_factors: '{text}' must be NAME:FACTOR, as backbone:0.1")
    return factors


def parameter_groups(module: Model, lr: float, weight_decay: float, decay_all: bool,
                     lr_factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trained parameters by learning rate and decay, those without a factor first."""
    trained = {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        raise UserError("the model has no parameters to train: its layers must be attributes of the module (a list of "
                        "layers an nn.ModuleList), and task.freezing must leave some of them")
    stages = stage_parameters(module) if lr_factors else {}
    named: dict[str, set[nn.Parameter]] = {}
    for key in lr_factors:
        named[key] = {p for p, name in trained.items() if
                      name.startswith(key) or fnmatchcase(name, key) or p in stages.get(key, ())}
        if not named[key]:
            known = sorted({name.partition(".")[0] for name in trained.values()} | {*stages})
            hint = suggest(key, known) or "; there are: " + ", ".join(known)
            raise UserError(f"task.optimizer.lr_factors: '{key}' is neither a stage of the backbone nor what names of "
                            f"trained parameters begin with{hint}")
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in trained:
        key = min((key for key in lr_factors if parameter in named[key]), key=lambda key: len(named[key]), default="")
        groups.setdefault((key, decay_all or parameter.dim() > 1), []).append(parameter)
    return [{"params": groups[key, decays], "lr": lr * lr_factors.get(key, 1.0),
             "weight_decay": weight_decay if decays else 0.0}
            for key in ("", *lr_factors) for decays in (True, False) if (key, decays) in groups]


def stage_parameters(module: Model) -> dict[str, set[nn.Parameter]]:
    """The parameters of each stage of the model's backbone, and of all of them as `backbone`; empty where the model has
    no stages."""
    backbone = backbone_of(module)
    if backbone is None:
        return {}
    try:
        stages = backbone.stages()
    except ValueError:  # a model whose layers are not listed by stage: factors go by the names of its parameters
        return {}
    parameters = {name: {parameter for layer in layers for parameter in layer.parameters()}
                  for name, layers in stages.items()}
    return {**parameters, BACKBONE: {parameter for stage in parameters.values() for parameter in stage}}


def fraction_of_peak(step: int, total_steps: int, name: str, milestones: Sequence[float] = (), factor: float = 0.1,
                     warmup_steps: int = 0, warmup_factor: float = 0.1, warmup: str = "linear", peak_at: float = 0.25,
                     final_factor: float = 0.0) -> float:
    """The learning rate at an optimizer step, as a fraction of its peak.

    `name="step"`: multiplied by `factor` at each of `milestones`, fractions in (0, 1) of the run. `name="cosine"`: half
    a cosine from the end of the warm-up down to 0 at the end of the run. Warm-up `linear` rises from `warmup_factor` to
    1; `constant` stays there and jumps (the ResNet-110 of He et al. 2015). `name="triangular"`: a line from
    `warmup_factor` up to 1 at the fraction `peak_at` of the run, then a line down to `final_factor` at its end (L.
    Smith, N. Topin, 2017, arXiv 1708.07120).
    """
    if name == "triangular":
        done = step / total_steps
        if done < peak_at:
            return warmup_factor + (1 - warmup_factor) * done / peak_at
        return final_factor + (1 - final_factor) * max(0.0, 1 - done) / (1 - peak_at)
    if step < warmup_steps:
        rise = (1 - warmup_factor) * step / warmup_steps if warmup == "linear" else 0.0
        return warmup_factor + rise
    if name == "step":
        return factor ** sum(step >= round(milestone * total_steps) for milestone in milestones)
    if name == "cosine":
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0


class Extension(NamedTuple):
    """An earlier end of a run that was made longer: after `at` steps of a run of `total_steps`. `schedule`: how its
    learning rate continues from there."""

    at: int
    total_steps: int
    total_epochs: int
    schedule: str


def fraction_in_extended(step: int, total_steps: int, extended: Sequence[Extension],
                         fraction: Callable[[int, int], float]) -> float:
    """The learning rate at a step of a run that was made longer, as a fraction of its peak. `fraction`: that of a run
    that was not, from a step and the number of all steps. After the last extension: `stretch`: the rates of a run that
    was so long from its start; `continue`: the rate of the last step before; `warm`: the schedule begins again, over
    the steps that were added (warm restarts: I. Loshchilov, F. Hutter, 2016, arXiv 1608.03983)."""
    if not extended or extended[-1].schedule == "stretch":
        return fraction(step, total_steps)
    *before, last = extended
    if step < last.at or last.schedule == "continue":
        return fraction_in_extended(min(step, last.at - 1), last.total_steps, before, fraction)
    return fraction(step - last.at, total_steps - last.at)


def schedule(optimizer: torch.optim.Optimizer, total_steps: int, keys: ScheduleKeys,
             extended: Sequence[Extension] = ()) -> torch.optim.lr_scheduler.LRScheduler:
    """A scheduler that is stepped once after each optimizer step: `fraction_of_peak`, or what a dotted path names. That
    is a function (step, total_steps, ...) -> fraction of the peak, or one of torch's LRScheduler, which gets the
    optimizer and, where it takes it, total_steps; both get the keys beside those of ScheduleKeys. `extended`: where the
    run was made longer.

    Raises UserError for a path that names nothing or does not take the keys."""
    name = keys["name"]
    if name == "triangular" and keys.get("warmup_steps", 0):
        raise UserError(f"task.schedule.warmup_steps={keys['warmup_steps']}: must be 0 with name=triangular, whose "
                        "warm-up ends at the fraction task.schedule.peak_at of the run")
    if "." not in name:
        return FractionOfPeak(optimizer, lambda step: fraction_in_extended(
            step, total_steps, extended, lambda step, total: fraction_of_peak(step, total, **keys)))
    target = import_name("task.schedule.name", name)
    own: dict[str, Any] = {key: value for key, value in keys.items() if key not in ScheduleKeys.__annotations__}
    try:
        if not isinstance(target, type):
            target(0, total_steps, **own)
            return FractionOfPeak(optimizer, lambda step: fraction_in_extended(
                step, total_steps, extended, lambda step, total: target(step, total, **own)))
        if any(extension.schedule != "stretch" for extension in extended):
            raise UserError(f"task.schedule.name={name}: torch's schedules end with the run; dltrain extend can only "
                            "make it longer with schedule=stretch")
        if "total_steps" in inspect.signature(target).parameters:
            own.setdefault("total_steps", total_steps)
        scheduler: torch.optim.lr_scheduler.LRScheduler = target(optimizer, **own)
        return scheduler
    except TypeError as error:
        raise UserError(f"task.schedule.name={name}: {error}") from error


class FractionOfPeak(torch.optim.lr_scheduler.LambdaLR):
    """The rate of each parameter group at a step is its first one times `lr_lambda(step)`. As torch's, without the
    contexts and copies that schedulers of other kinds need."""

    def step(self, epoch: int | None = None) -> None:
        self._step_count += 1
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        rates: list[float | Tensor] = []
        for group, base, fraction in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * fraction(self.last_epoch)
            rates.append(group["lr"])
        self._last_lr = rates
