"""The training steps of an epoch, in order.

Lightning's own loop spends 0.4 ms on a step: it asks every callback for every hook, each time in a context for its
profiler, wraps the loss in a chain of closures, and collects values that nobody logged (LOG.md, 2026-11-26). This loop
calls the same hooks in the same order, but only those that a callback or the task defines. The epochs, the validation,
the counters and the checkpoints are Lightning's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from types import MethodType
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins import Precision
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

HOOKS = ("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
         "on_before_optimizer_step", "on_train_batch_end")
TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class StepLoop(_TrainingEpochLoop):
    """Trains on the batches of an epoch. A task with manual optimization, with an `optimizer_step` of its own, or with
    a schedule that is not counted in steps goes through Lightning's own loop.

    `every_epochs`, `every_steps`: how often there is a validation; 0: not by this count."""

    def __init__(self, trainer: pl.Trainer, every_epochs: int = 1, every_steps: int = 0):
        super().__init__(trainer)
        self.every_epochs, self.every_steps = every_epochs, every_steps

    def run(self, data_fetcher: _DataFetcher) -> None:
        self.task = task = self.trainer.lightning_module
        schedules = self.trainer.lr_scheduler_configs
        if (not task.automatic_optimization or defines(task, "optimizer_step", pl.LightningModule)
                or any(s.interval != "step" or s.frequency != 1 or s.reduce_on_plateau for s in schedules)):
            if (as_one := vars(task).get("as_one")) is not None:
                as_one.draws.is_active = False  # one gradient, but random numbers and losses of each process's own
            super().run(data_fetcher)
            return
        self.reset()
        self.on_run_start(data_fetcher)
        self.on_iteration_done()  # from here on a resumed run is like any other
        self.val_loop.restarting = False
        if self.done:
            return
        self.prepare()
        task._current_fx_name = "training_step"  # Lightning's `log` wants it
        for batch in cast(Iterable[Any], self.trainer.train_dataloader):  # past the bookkeeping of `data_fetcher`
            if not self.train_batch(batch):
                break
            if self.batch_progress.is_last_batch or self.trainer.should_stop or (
                    self.every_steps and self.validation_is_due()):
                self.on_advance_end(data_fetcher)  # validates where that is due
                if self.done:
                    break
            elif not self.accumulates:
                self._batches_that_stepped += 1
        task._current_fx_name = None

    def validation_is_due(self) -> bool:
        """After the last batch: at the end of the run, of each so many epochs, and after each so many steps."""
        if self.trainer.should_stop:
            return True
        epoch = self.trainer.current_epoch + 1
        if self.every_epochs and epoch % self.every_epochs == 0 and self._num_ready_batches_reached():
            return True
        return bool(self.every_steps) and self.global_step % self.every_steps == 0 and not self._should_accumulate()

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        return self.trainer.enable_validation and self.validation_is_due()

    @property
    def global_step(self) -> int:
        """As Lightning's, by a shorter way: five callbacks ask for it in each step."""
        return self.automatic_optimization.optim_progress.optimizer.step.total.completed or super().global_step

    def prepare(self) -> None:
        """Looks up, once an epoch, what the steps need."""
        trainer: Any = self.trainer
        data = trainer.datamodule
        self.strategy, self.precision = trainer.strategy, trainer.precision_plugin
        self.optimizer, self.logs = trainer.optimizers[0], trainer._logger_connector
        is_plain = type(self.precision) is Precision and self.strategy.model is self.task
        self.training_step = (self.task if is_plain else self.strategy).training_step
        self.scaler: torch.amp.GradScaler | None = vars(self.precision).get("scaler")  # with trainer.precision=16-mixed
        self.many, self.accumulates = trainer.accumulate_grad_batches, False
        self.num_batches = trainer.num_training_batches
        if (as_one := vars(self.task).get("as_one")) is not None:
            self.training_step = partial(as_one.training_step, self.training_step, vars(self.task)["step_sums"],
                                         trainer.train_dataloader)
        takes_index = is_param_in_hook_signature(self.task.training_step, "batch_idx", min_args=2)
        self.num_arguments = 2 if takes_index else 1
        self.hooks: dict[str, list[Callable[..., Any]]] = {
            name: [getattr(callback, name) for callback in trainer.callbacks if defines(callback, name, pl.Callback)]
            for name in HOOKS}
        self.task_hooks: dict[str, list[Callable[..., Any]]] = {
            name: [getattr(self.task, name)] if defines(self.task, name, pl.LightningModule) else [] for name in HOOKS}
        owners = [(self.task, pl.LightningModule), *([(data, pl.LightningDataModule)] if data else [])]
        self.transfers = self.strategy.root_device.type != "cpu" or any(
            defines(owner, name, base) for owner, base in owners for name in TRANSFERS)

    def call(self, name: str, *arguments: object) -> None:
        for hook in self.hooks[name]:
            hook(self.trainer, self.task, *arguments)
        for hook in self.task_hooks[name]:
            hook(*arguments)

    def train_batch(self, batch: Any) -> bool:
        """The gradients of a batch and, unless those of more batches belong to it, a step of the optimizer and of the
        schedule. False if the task's on_train_batch_start returned -1, which ends the epoch."""
        batch_idx = self.batch_progress.current.ready
        is_last = batch_idx + 1 == self.num_batches
        batch = self.precision.convert_input(batch)
        if self.transfers:
            batch = self.strategy.batch_to_device(self.task._on_before_batch_transfer(batch), dataloader_idx=0)
        self.batch_progress.is_last_batch = is_last
        self.batch_progress.increment_ready()
        self.accumulates = (batch_idx + 1) % self.many != 0 and not is_last
        self._results.batch, self._results.batch_size = batch, None  # in case somebody logs
        self.logs._first_loop_iter = self.logs._first_loop_iter is None
        for hook in self.hooks["on_train_batch_start"]:
            hook(self.trainer, self.task, batch, batch_idx)
        if any(hook(batch, batch_idx) == -1 for hook in self.task_hooks["on_train_batch_start"]):
            self.batch_progress.increment_by(0, is_last_batch=True)
            self.batch_progress.increment_processed()
            self.step_schedules()
            return False
        self.batch_progress.increment_started()
        outputs = self.optimize(batch, batch_idx)
        self.batch_progress.increment_processed()
        if not self.accumulates:
            self.step_schedules()
        self.call("on_train_batch_end", outputs, batch, batch_idx)
        self.batch_progress.increment_completed()
        if self._results:
            self.logs.on_batch_end()
            self.logs.update_train_step_metrics()
        return True

    def step_schedules(self) -> None:
        for config in self.trainer.lr_scheduler_configs:
            self.scheduler_progress.increment_ready()
            self.task.lr_scheduler_step(config.scheduler, None)
            self.scheduler_progress.increment_completed()

    def optimize(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Returns what `training_step` returned, as a mapping with the loss, which has no graph any more."""
        task, optimizer, outputs = self.task, self.optimizer, dict[str, Any]()
        counts = self.automatic_optimization.optim_progress.optimizer

        def gradients() -> Tensor | None:
            loss = self.loss(batch, batch_idx, outputs)
            if batch_idx % self.many == 0:
                counts.zero_grad.increment_ready()
                self.call("on_before_zero_grad", optimizer)
                counts.zero_grad.increment_started()
                task.optimizer_zero_grad(self.trainer.current_epoch, batch_idx, optimizer)
                counts.zero_grad.increment_completed()
            if loss is not None:
                self.backward(loss)
            return loss

        def gradients_of_step() -> Any:  # an optimizer such as L-BFGS calls it several times
            loss = gradients()
            self.before_step()
            return loss

        if self.accumulates:
            with self.strategy.block_backward_sync() if isinstance(self.strategy, ParallelStrategy) else nullcontext():
                gradients()
            return outputs
        counts.step.increment_ready()
        if self.scaler is None:
            optimizer.step(closure=gradients_of_step)
        elif gradients() is not None:
            self.scaler.unscale_(optimizer)
            self.before_step()
            self.scaler.step(optimizer)  # not where a gradient is not finite
            self.scaler.update()
        counts.step.increment_completed()
        return outputs

    def loss(self, batch: Any, batch_idx: int, outputs: dict[str, Any]) -> Tensor | None:
        """The loss with its graph. `outputs` gets what `training_step` returned beside it. None: the task skips the
        batch."""
        returned = self.training_step(*(batch, batch_idx)[: self.num_arguments])
        if returned is None:
            return None
        if isinstance(returned, Mapping):
            outputs.update(returned)
            returned = returned["loss"]
        loss: Tensor = returned if self.many == 1 else returned / self.many
        outputs["loss"] = loss.detach()
        return loss

    def backward(self, loss: Tensor) -> None:
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        self.call("on_before_backward", loss)
        self.task.backward(loss)
        self.call("on_after_backward")

    def before_step(self) -> None:
        self.call("on_before_optimizer_step", self.optimizer)
        self.task.configure_gradient_clipping(self.optimizer, self.trainer.gradient_clip_val,
                                              self.trainer.gradient_clip_algorithm)


def defines(owner: object, name: str, base: type) -> bool:
    """Whether an object overrides a method of its base class."""
    return bool(getattr(owner, name) != MethodType(getattr(base, name), owner))
