"""The model and the data that are examined together: reading samples, training some steps, undoing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from dltrain import optim
from dltrain.augment.pipeline import Augment, Transform
from dltrain.batches import seed_of
from dltrain.benchmark.loops import Position, precision_of
from dltrain.preflight.kind import Kind
from dltrain.preflight.samples import Samples
from dltrain.tasks.task import Task

RATES = ("p", "drop_prob", "dropout")  # what layers call the probability of dropping


class Pair:
    """A task with its model and a data module, both ready for the first step, on `device`. `total_steps` and
    `total_epochs`: of the run. `source`: reads samples. `is_pretrained`: the model starts from weights that were
    trained before."""

    def __init__(self, config: DictConfig, data: Any, task: Task, kind: Kind, device: torch.device,
                 is_pretrained: bool, total_steps: int, total_epochs: int):
        self.config, self.data, self.task, self.kind, self.device = config, data, task, kind, device
        self.is_pretrained = is_pretrained
        task.total_steps, task.total_epochs = total_steps, total_epochs
        task.trainer = Position()  # type: ignore[assignment]  # the task reads the two numbers of it
        name = config.trainer.precision  # without a scaler small gradients would be zeros in 16 bits
        self.precision = precision_of("32-true" if name == "16-mixed" else name, device)
        self.precision.convert_module(task.to(device))
        self.source = Samples(data, config.seed)

    def samples(self, count: int) -> Any:
        """A batch of `count` training samples, as small as the kind allows, on the host."""
        return self.kind.sample(self.source, count)

    def to_device(self, batch: Any) -> Any:
        batch = self.task.copy_to(self.device, batch) if self.device.type != "cpu" else batch
        return self.precision.convert_input(batch)

    @property
    def augment(self) -> Augment | None:
        return getattr(self.task, "augment", None)

    @contextmanager
    def without_augmentation(self) -> Iterator[None]:
        """Without dltrain's random transforms; a user's own callables stay, which may be a normalisation."""
        augment = self.augment
        if augment is None:
            yield
            return
        before = augment.on_pixels, augment.on_normalized
        augment.on_pixels, augment.on_normalized = ([one for one in transforms if not isinstance(one, Transform)]
                                                    for transforms in before)
        try:
            yield
        finally:
            augment.on_pixels, augment.on_normalized = before

    @contextmanager
    def kept(self, samples: int) -> Iterator[None]:
        """For batches of so many samples. Afterwards the weights, the buffers, the modes and torch's generator are
        those of before."""
        state = {name: value.clone() for name, value in self.task.state_dict().items()}
        own = dict(self.task.named_buffers(recurse=False))
        modes = {module: module.training for module in self.task.modules()}
        with torch.random.fork_rng(devices=[]):
            try:
                self.kind.resize(self.task, samples)
                yield
            finally:
                self.kind.resize(self.task, self.data.batch_size)
                for name, tensor in own.items():
                    setattr(self.task, name, tensor)
                self.task.load_state_dict(state)
                self.task.step_sums.clear()
                self.task.zero_grad()
                for module, mode in modes.items():
                    module.training = mode

    def begin_step(self, batch: Any, number: int, place: int = 0) -> None:
        """Seeds as a run does: the model by the number of the step, what the task samples by `place`."""
        self.task.position = (self.config.seed, 0, place, 0)
        torch.manual_seed(seed_of("model", self.config.seed, 0, number, 0))
        self.task.on_train_batch_start(batch, 0)

    def loss(self, batch: Any, number: int, place: int = 0) -> Tensor:
        """The loss of a training step, with its graph."""
        self.begin_step(batch, number, place)
        with self.precision.train_step_context():
            return cast(Tensor, self.task.training_step(batch, 0))

    def optimizer(self) -> torch.optim.Optimizer:
        """That of the run, at the peak of its schedule."""
        return optim.optimizer(self.task.model, **self.task.optimizer_keys)

    def step(self, optimizer: torch.optim.Optimizer, batch: Any, number: int, place: int = 0) -> float:
        """One optimizer step. Returns the loss before it; the gradients stay."""
        loss = self.loss(batch, number, place)
        optimizer.zero_grad()
        loss.backward()
        if (norm := self.config.trainer.gradient_clip_norm) is not None:
            nn.utils.clip_grad_norm_([p for p in self.task.model.parameters() if p.requires_grad], norm)
        optimizer.step()
        return float(loss.detach())


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The layers keep their mode, since batch normalisation is to train."""
    changed = [(module, name, value) for module in model.modules() for name in RATES
               if isinstance(value := getattr(module, name, None), float)]
    for module, name, _ in changed:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def rows(batch: Any, indices: Sequence[int]) -> Any:
    """The samples `indices` of a batch, in that order."""
    def pick(field: Any) -> Any:
        if isinstance(field, Tensor):
            return field[torch.as_tensor(indices, device=field.device)]
        return type(field)(field[index] for index in indices)

    return type(batch)(*map(pick, batch))
