"""The bare loop: what a careful person writes by hand to train the same model on the same batches, with the same
augmentation, loss, optimizer, clipping and learning rate, and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from omegaconf import DictConfig
from pytorch_lightning.plugins import DoublePrecision, MixedPrecision, Precision
from torch import Tensor, nn

from dltrain import optim
from dltrain.batches import seed_of
from dltrain.benchmark.timing import COMPARED_STEPS
from dltrain.tasks.task import Task


@dataclass
class Position:
    """What a task reads of its trainer while it trains."""

    global_step: int = 0
    current_epoch: int = 0


def ignore(name: str) -> None:
    """A mark that nobody reads."""


@contextmanager
def watched(task: Task, before_step: Callable[[Any], None], losses: list[Tensor] | None = None) -> Iterator[None]:
    """Calls `before_step` with the batch at the start of each training step. Appends the first COMPARED_STEPS losses to
    `losses`."""
    training_step = task.training_step

    def step(*arguments: Any) -> Any:
        before_step(arguments[0])
        loss = cast(Tensor, training_step(*arguments))
        if losses is not None and len(losses) < COMPARED_STEPS:
            losses.append(loss.detach().clone())
        return loss

    task.training_step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        del task.training_step


def train_bare(config: DictConfig, data: Any, task: Task, device: torch.device, num_steps: int, *,
               mark: Callable[[str], None] = ignore, seeded: bool = False) -> None:
    """`num_steps` optimizer steps from the start of the order of samples, with the weights that the task has.

    `mark`: called at the end of each phase of a step with its name. `seeded`: seeds torch's generators before each step
    as a run does, so that a model that draws random numbers draws the same ones; a loop by hand does not."""
    keys, loader, position = config.trainer, data.train_dataloader(), Position()
    task.trainer = position  # type: ignore[assignment]  # the task reads the two numbers of it
    precision = precision_of(keys.precision, device)
    precision.convert_module(task.to(device)).train()
    scaler = torch.amp.GradScaler(device.type, enabled=keys.precision == "16-mixed")
    optimizer_keys = task.optimizer_keys
    if scaler.is_enabled():  # as tasks/task.py
        optimizer_keys = {**optimizer_keys, "fused": False}
    optimizer = optim.optimizer(task.model, **optimizer_keys)
    set_rate = rate_setter(optimizer, task)
    parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    data.load_state_dict({"position": 0})
    for epoch in itertools.count():
        position.current_epoch = epoch
        for index, batch in enumerate(loader):
            batch = task.copy_to(device, batch) if device.type != "cpu" else batch
            batch = precision.convert_input(batch)
            mark("data")
            task.position = (config.seed, epoch, index, 0)
            if seeded:
                seed_step(task.position, device)
            task.on_train_batch_start(batch, index)
            first = index // keys.accumulate_batches * keys.accumulate_batches
            count = min(keys.accumulate_batches, len(loader) - first)
            with precision.train_step_context():
                loss = cast(Tensor, task.training_step(batch, index))
            mark("forward")
            if index == first:
                optimizer.zero_grad()
                mark("optimizer")
            scaler.scale(loss / count if count > 1 else loss).backward()
            mark("backward")
            if index - first < count - 1:
                continue
            if keys.gradient_clip_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(parameters, keys.gradient_clip_norm)
            set_rate(position.global_step)
            scaler.step(optimizer)
            scaler.update()
            mark("optimizer")
            position.global_step += 1
            if position.global_step == num_steps:
                return


def rate_setter(optimizer: torch.optim.Optimizer, task: Task) -> Callable[[int], None]:
    """A function that sets the learning rate of a step, counted from 0. Steps come one after the other."""
    keys = task.schedule_keys
    if "." in keys["name"]:  # the user's own
        scheduler = optim.schedule(optimizer, task.total_steps, keys)

        def step_scheduler(step: int) -> None:
            if step:
                scheduler.step()

        return step_scheduler
    peaks = [group["lr"] for group in optimizer.param_groups]

    def set_rate(step: int) -> None:
        fraction = optim.fraction_of_peak(step, task.total_steps, **keys)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * fraction

    return set_rate


def precision_of(name: str, device: torch.device) -> Precision:
    """What trainer.precision means: how weights and batches are converted, and the context of the loss."""
    if name == "64-true":
        return DoublePrecision()
    if name == "32-true":
        return Precision()
    return MixedPrecision(cast(Literal["16-mixed", "bf16-mixed"], name), device.type)


def seed_step(position: Sequence[int], device: torch.device) -> None:
    """As callbacks/step_seeds.py."""
    seed = seed_of("model", *position)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    if device.type == "mps":
        torch.mps.manual_seed(seed)
