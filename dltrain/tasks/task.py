"""What every task shares: metrics summed on the device without a host sync, the optimizer, clipping by norm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NotRequired, TypedDict, TypeVar, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchmetrics import Metric

from dltrain import optim, trust
from dltrain.batches import Batch, to_device
from dltrain.contracts import Model, drops_blocks
from dltrain.errors import UserError
from dltrain.parallel.as_one import AsOne
from dltrain.tasks.graphs import Form
from dltrain.tasks.predictions import Input as Input
from dltrain.tasks.predictions import Prediction as Prediction
from dltrain.tasks.step_sums import StepSums

ModelT = TypeVar("ModelT", bound=Model)
BatchT = TypeVar("BatchT", bound=Batch)
BITS = 1 / math.log(2)  # bits in a nat

Figure = Tensor | str  # a picture (3, H, W) uint8, or text


class TaskKeys(TypedDict):
    """The arguments of every task: `seed` of the run, and the keys that every task has."""

    seed: int
    optimizer: optim.OptimizerKeys
    schedule: optim.ScheduleKeys
    metrics: NotRequired[Mapping[str, Metric]]
    figures: NotRequired[Sequence[str]]


class Task(pl.LightningModule, Generic[ModelT, BatchT]):
    """Turns a batch of `batch_type` into a loss using a model. A subclass has `check`, `training_step`,
    `evaluation_step` and `evaluation_end`; `predict` and `figures` where there is something to predict and to draw.

    Metrics are logged as train/, val/ and test/ with a name; the headline decides which checkpoint is `best`.
    In each training step a task appends to `step_sums` the value of each of `training_metrics` times a count, and the
    count. Tasks of earlier versions add a tensor of these to `sums`.
    """

    model: ModelT
    batch_type: type[BatchT]
    headline: str
    headline_mode = "max"
    unit = "images"  # what throughput counts
    training_metrics: tuple[str, ...] = ("loss",)
    scales_loss = False  # whether gradients are those of a scaled loss until the optimizer's step: 16-bit floats
    validated_split = "val"  # or train: that which `dltrain eval split=train` measures
    clips = False  # whether gradients are clipped
    as_one: AsOne | None = None  # how several processes train; None: this one alone
    position: tuple[int, int, int, int] = (0, 0, 0, 0)  # seed, epoch, batch index, process rank; set before each step
    sums: Tensor
    evaluation_loss: Tensor

    def __init__(self, model: ModelT, *, seed: int, optimizer: optim.OptimizerKeys, schedule: optim.ScheduleKeys,
                 metrics: Mapping[str, Metric] | None = None, figures: Sequence[str] = ()):
        super().__init__()
        self.model, self.seed = model, seed
        self.own_metrics = nn.ModuleDict(metrics or {})
        self.own_figures = [trust.locate("task.figures", path) for path in figures]
        self.optimizer_keys, self.schedule_keys = optimizer, schedule
        self.class_names: list[str] = []  # the data's; like `vocabularies` set after construction
        self.vocabularies: dict[str, list[str]] = {}
        self.total_steps, self.total_epochs = 1, 1  # of the whole run, set before fit
        self.extended: Sequence[optim.Extension] = ()  # where it was made longer
        self.step_sums = StepSums(len(self.training_metrics) + 1)
        self.norm_sums = StepSums(3)  # of norms of the gradients, of steps that were clipped, of steps
        self.register_buffer("sums", torch.zeros(len(self.training_metrics) + 1))
        self.register_load_state_dict_pre_hook(read_gradients_of_earlier_version)
        self.register_buffer("evaluation_loss", torch.zeros(2), persistent=False)  # summed loss, scored targets

    def train_as_one(self, as_one: AsOne) -> None:
        """Called once, before any batch, where several processes train as one would."""
        self.as_one = as_one

    def fit_statistics(self, data: Any) -> None:
        """Takes statistics of the training split before the first step."""

    def check(self, batch: BatchT) -> None:
        """Called with a batch before the first step. Raises BatchError if the batch is not as its type states, and
        UserError if the model's output is not as its contract states."""
        raise NotImplementedError

    def check_training(self, batch: BatchT) -> None:
        """Calls the model as in training, on a batch of one sample, where an epoch ends with such a one. Raises what
        the model raises."""

    def count(self, batch: BatchT) -> int:
        """How many of `unit` a batch has."""
        return batch.size

    @property
    def has_unused_parameters(self) -> bool:
        """Whether trained parameters get no gradient in some steps."""
        return drops_blocks(self.model)

    # evaluation

    def evaluation_step(self, batch: BatchT, batch_idx: int) -> Any:
        """Adds a batch to the metrics and returns the model's outputs for `figures`."""
        raise NotImplementedError

    def evaluation_end(self, split: str) -> None:
        """Logs the metrics of the split by `log_metrics` and resets them."""
        raise NotImplementedError

    def add_loss(self, total: Tensor, count: Tensor) -> None:
        self.evaluation_loss += torch.stack([total, count.to(total)])

    def mean_loss(self) -> Tensor:
        """The mean of what was added by `add_loss`, over all processes; resets it."""
        total, count = self.reduce_sum(self.evaluation_loss)
        mean = total / count
        self.evaluation_loss.zero_()
        return mean

    def reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    def log_metrics(self, split: str, values: Mapping[str, Tensor | float]) -> None:
        """For the callback that writes them beside the training metrics."""
        values = {**values, **self.compute_own_metrics(values)}
        self.log_dict({f"{split}/{name}": value for name, value in values.items()}, logger=False)

    def update_own_metrics(self, predictions: Any, targets: Any) -> None:
        """To be called in `evaluation_step` with what the user's metrics (task.metrics) compare, of the samples that
        are scored."""
        for name, metric in cast(Mapping[str, Metric], self.own_metrics).items():
            try:
                metric.update(predictions, targets)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"task.metrics.{name} ({type(metric).__name__}): {error}") from error

    def compute_own_metrics(self, values: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
        """The user's metrics of the split, which are reset. A metric of each class gives NAME/CLASS, one that returns a
        mapping NAME_KEY. Raises UserError for a name that the task has itself."""
        results: dict[str, Tensor] = {}
        for name, metric in cast(Mapping[str, Metric], self.own_metrics).items():
            if name in values:
                raise UserError(f"task.metrics.{name}: {type(self).__name__} has a metric of this name; choose another")
            if not metric.update_called:
                raise UserError(f"task.metrics.{name}: {type(self).__name__} has nothing for it to compare")
            value = metric.compute()
            metric.reset()
            if isinstance(value, Mapping):
                results |= {f"{name}_{key}": one for key, one in value.items() if one.numel() == 1}
            elif value.numel() > 1:
                results |= {f"{name}/{label}": one for label, one in zip(self.class_names, value, strict=False)}
            else:
                results[name] = value
        return results

    def validation_step(self, batch: BatchT, batch_idx: int) -> Any:
        return self.evaluation_step(batch, batch_idx)

    def test_step(self, batch: BatchT, batch_idx: int) -> Any:
        return self.evaluation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.evaluation_end(self.validated_split)

    def on_test_epoch_end(self) -> None:
        self.evaluation_end("test")

    def copy_to(self, device: torch.device, batch: BatchT) -> BatchT:
        """The batch on a GPU, without waiting for it."""
        copied: BatchT = tree_map_only(Tensor, partial(to_device, device=device), batch)
        return copied

    # what people look at

    def class_name(self, label: int) -> str:
        """The number of the class where the data have no names, "-" for a label that is not scored."""
        if label < 0:
            return "-"
        return self.class_names[label] if self.class_names else str(label)

    def figures(self, batch: BatchT, outputs: Any) -> dict[str, Figure]:
        """Pictures and texts by name: the first batch of an evaluation with what `evaluation_step` returned for it."""
        return {}

    def all_figures(self, batch: BatchT, outputs: Any) -> dict[str, Figure]:
        """`figures`, and those of the user's functions (task.figures)."""
        own = [draw(self, batch, outputs) for draw in self.own_figures]
        return {name: figure for figures in (self.figures(batch, outputs), *own) for name, figure in figures.items()}

    def training_figures(self, batch: BatchT) -> dict[str, Figure]:
        """Like `figures`, for a training batch as the model sees it in the step at `position`."""
        return {}

    def summary_figures(self) -> dict[str, Figure]:
        """Like `figures`, for a whole split, after the last validation of a run and after the test."""
        return {}

    def encode(self, examples: list[Any], data: Any) -> Any:
        """What `Input.load` returned for some inputs as the model takes it, on its device: a batch without targets."""
        return move_data_to_device(data.encode_inputs(examples), self.device)

    def predict(self, inputs: Sequence[Input], data: Any, **options: Any) -> Iterator[Prediction]:
        """Predictions for a user's own inputs. `data`: the run's data module, not loaded; `options`: the keys of the
        task's node `predict`, but for `input`, `text` and `prompt`, which say what the inputs are."""
        raise UserError(f"{type(self).__name__} has no predict")

    def export_form(self) -> Form | None:
        """The graphs that `dltrain export` writes; None where the weights alone can be exported."""
        return None

    # training

    @property
    def paced(self) -> tuple[int, int]:
        """The steps and epochs over which augmentation and the like change: of the whole run, and of one that was made
        longer, unless its schedule was stretched, those that it had before."""
        lengths = self.total_steps, self.total_epochs
        for extension in reversed(self.extended):
            if extension.schedule == "stretch":
                break
            lengths = extension.total_steps, extension.total_epochs
        return lengths

    def read_training_metrics(self) -> dict[str, float]:
        """The means since the last reading: a host sync."""
        earlier = self.sums if self.as_one is None else self.reduce_sum(self.sums)
        *sums, count = map(sum, zip(self.step_sums.read(), earlier.tolist(), strict=True))
        norm, clipped, steps = self.norm_sums.read()
        self.sums.zero_()
        means = {}
        if count:
            means = {f"train/{name}": total / count for name, total in zip(self.training_metrics, sums, strict=True)}
        if steps:
            means["train/gradient_norm"] = norm / steps
        if steps and self.clips:
            means["train/clipped_fraction"] = clipped / steps
        return means

    def backward(self, loss: Tensor, *arguments: Any, **keys: Any) -> None:
        """`loss`: that of a batch, divided by trainer.accumulate_batches. The last step of an epoch may have fewer
        batches; its gradient is their mean too."""
        many = self.trainer.accumulate_grad_batches
        if many == 1:
            super().backward(loss, *arguments, **keys)
            return
        index = self.trainer.fit_loop.batch_idx
        present = min(many, int(self.trainer.num_training_batches) - index // many * many)
        super().backward(loss if present == many else loss * (many / present), *arguments, **keys)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
                                    gradient_clip_algorithm: str | None = None) -> None:
        """g <- g * min(1, v / |g|), |g| the norm of all gradients together (R. Pascanu et al., 2012, arXiv 1211.5063,
        algorithm 1). Without clipping, the norm of the step before each reading is noted."""
        if gradient_clip_val is None:
            step = self.trainer.global_step + 1
            if self.trainer.is_last_batch or step % vars(self.trainer)["log_every_n_steps"] == 0:
                gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
                self.norm_sums.append((nn.utils.get_total_norm(gradients), 0, 1))
            return
        if not self.clips:
            self.clips = True
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val).detach()
        self.norm_sums.append((norm, norm > gradient_clip_val, 1))

    def configure_optimizers(self) -> Any:
        keys = self.optimizer_keys  # fused kernels scale gradients back by themselves, after they are clipped
        optimizer = optim.optimizer(self.model, **({**keys, "fused": False} if self.scales_loss else keys))
        schedule = optim.schedule(optimizer, self.total_steps, self.schedule_keys, self.extended)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sums"] = {"steps": self.step_sums.settle(), "norms": self.norm_sums.settle()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "sums" in checkpoint:
            self.step_sums.totals = checkpoint["sums"]["steps"]
            self.norm_sums.totals = checkpoint["sums"]["norms"]


def read_gradients_of_earlier_version(task: Task[Any, Any], weights: dict[str, Tensor], prefix: str, *context: object
                                      ) -> None:
    """Checkpoints that have no `sums` beside the weights have those of the norms among them, as a buffer."""
    if (sums := weights.pop(f"{prefix}gradients", None)) is not None:
        task.norm_sums.totals = sums.tolist()
