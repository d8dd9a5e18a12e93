"""From config nodes to objects, with every mistake that can be seen before the first step named by its key."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from dltrain.batches import BatchError, seed_of
from dltrain.callbacks.boxes import Boxes
from dltrain.callbacks.captions import Sentences
from dltrain.callbacks.checkpointing import Saving
from dltrain.callbacks.masks import Masks
from dltrain.callbacks.metrics import Board, MetricsFile, Readings
from dltrain.callbacks.pictures import Pictures
from dltrain.callbacks.progress import Display
from dltrain.callbacks.samples import Samples
from dltrain.callbacks.step_seeds import StepSeeds
from dltrain.callbacks.stopping import Signals, StopAtNonFinite, StopAtStep
from dltrain.checkpoints import DurableIO
from dltrain.errors import DataError, MachineError, UserError
from dltrain.pretrained import NODE, load_pretrained, pretrained_of, without_pretrained


def build(node: DictConfig, key: str, class_names: Sequence[str] | None = None, **more: Any) -> Any:
    """Calls the `_target_` of the node at `key` with its other keys and `more`, and loads the weights that its node
    `pretrained` names, which is not passed on; nor is the `batch_type` of data and task. Nodes below that have a
    `_target_` are built first. `class_names`: those of the data, for a classifier.

    Raises UserError by key where the target cannot be imported, does not take the keys, or refuses a value with a
    ValueError."""
    pretrained = pretrained_of(node, key)
    skipped = {"_target_", *(["batch_type"] if key in ("data", "task") else []), *([NODE] if pretrained else [])}
    keys = {str(name): built(value, f"{key}.{name!s}") for name, value in node.items() if name not in skipped}
    at = f"{key} ({str(node._target_).rpartition('.')[2]})"
    try:
        target = hydra.utils.get_object(node._target_)
    except (ImportError, ValueError) as error:
        said = " ".join(str(error.__cause__ or error).split())
        hint = "; a module of your own must lie in this folder or on PYTHONPATH" if "No module" in said else ""
        raise UserError(f"{key}._target_={node._target_}: {said}{hint}") from error
    try:
        inspect.signature(target).bind(**keys, **more)
    except TypeError as error:
        raise UserError(f"{at}: {error}") from error
    try:
        made = target(**keys, **more)
    except ValueError as error:
        raise UserError(f"{at}: {error}") from error
    if pretrained is not None:
        load_pretrained(made, pretrained, class_names)
    return made


def built(value: Any, key: str) -> Any:
    """A config value as the class it is for should get it: plain, or built where it has a `_target_`."""
    if isinstance(value, ListConfig):
        return [built(one, f"{key}.{place}") for place, one in enumerate(value)]
    if isinstance(value, DictConfig):
        if "_target_" in value:
            return build(value, key)
        return {str(name): built(one, f"{key}.{name!s}") for name, one in value.items()}
    return value


def build_data(config: DictConfig, vocabularies: dict[str, list[str]] | None = None) -> Any:
    """The data, loaded, with the sizes that only the files know written into the config. `vocabularies`: a run's own,
    for text that is to be read with them."""
    data = build(config.data, "data", seed=config.seed)
    data.vocabularies = vocabularies or {}
    data.rank, data.world_size = int(os.environ.get("LOCAL_RANK", "0")), config.trainer.devices
    data.max_batches = config.trainer.smoke_steps
    data.load()
    for split in ("train", "val", "test"):
        if not data.num_samples(split):
            raise DataError(f"data={config.choices.data}: the {split} split has no samples")
    if not len(data.train_dataloader()):
        raise DataError(f"data={config.choices.data}: {data.num_samples('train')} training samples are fewer than the "
                        f"{data.world_size} processes")
    for key, value in data.sizes().items():
        if config.data[key] is None:
            config.data[key] = value
    return data


def build_task(config: DictConfig, fresh: bool = True) -> Any:
    """The task with its model, initialised as a function of the seed and, in a `fresh` run, of the weights that its
    config names."""
    torch.manual_seed(seed_of("init", config.seed))
    model = build(config.model if fresh else without_pretrained(config.model), "model",
                  config.get("class_names"))
    task = build(config.task, "task", model=model, seed=config.seed, **built_augment(config))
    if config.trainer.memory_format == "channels_last":
        task.model.to(memory_format=torch.channels_last)
    if config.trainer.compile:  # a net that drops blocks takes another way each step: its blocks are compiled alone
        for block in task.model.blocks if getattr(task.model, "drops_blocks", False) else [task.model]:
            block.compile()
    return task


def built_augment(config: DictConfig) -> dict[str, Any]:
    """The pipeline, for data that are images."""
    if "image_px" not in config.data:
        return {}
    return {"augment": build(config.augment, "augment", channels=config.data.channels, image_px=config.data.image_px)}


def check_first_step(config: DictConfig, data: Any, task: Any) -> None:
    """Before anything is written: the optimizer can be made, and a batch of the training and of the validation split
    is of its type and goes through the model."""
    pair = f"model={config.choices.model} does not take the batches of data={config.choices.data}"
    task.configure_optimizers()
    for split in ("train", "val"):
        few = torch.arange(min(2, data.num_samples(split)))
        batch = next(iter(data.read(split, [few])))
        training = task.training
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                task.eval().check(batch)
        except BatchError as error:
            raise DataError(f"{pair}: {error}") from None
        except UserError as error:
            raise type(error)(f"{pair}: {error}") from None
        except (RuntimeError, IndexError) as error:
            shapes = {name: tuple(value.shape) for name, value in batch._asdict().items() if hasattr(value, "shape")}
            raise UserError(f"{pair}, {shapes}: {str(error).splitlines()[0]}") from error
        finally:
            task.train(training)


def planned_steps(config: DictConfig, batches_per_epoch: int) -> tuple[int, int]:
    """Optimizer steps in all, and the epochs they take."""
    keys = config.trainer
    per_epoch = math.ceil(batches_per_epoch / keys.accumulate_batches)
    if keys.smoke_steps is not None:
        return per_epoch, 1
    if keys.max_epochs is None and keys.max_steps is None:
        raise UserError("trainer.max_epochs and trainer.max_steps are both null: one must say how long to train")
    limits = [keys.max_epochs * per_epoch] if keys.max_epochs is not None else []
    total = min([*limits, keys.max_steps] if keys.max_steps is not None else limits)
    return total, math.ceil(total / per_epoch)


def build_trainer(config: DictConfig, path: Path, data: Any, task: Any, signals: Signals,
                  saved: dict[str, Any] | None) -> tuple[pl.Trainer, Saving]:
    """Lightning's trainer with dltrain's callbacks, and the callback that keeps the checkpoints."""
    keys = config.trainer
    check_device(keys)
    task.total_steps, task.total_epochs = planned_steps(config, len(data.train_dataloader()))
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    saving = Saving(path, task.headline, task.headline_mode, {str(k): v for k, v in plain.items()}, signals,
                    keys.checkpoint_every_minutes, keys.checkpoint_every_steps, keys.log_every_n_steps)
    readings = Readings(keys.log_every_n_steps)
    loggers = [MetricsFile(path / "metrics.csv", keep_rows=saved["dltrain"]["metrics_rows"] if saved else 0),
               Board(path, name="", version="", default_hp_metric=False,
                    purge_step=saved["global_step"] + 1 if saved else 0)]
    strategy: Any = "auto"
    if keys.devices > 1:
        from pytorch_lightning.strategies import DDPStrategy

        unfreezes = task.freezing is not None and task.freezing.unfreezes  # frozen stages have no gradient
        strategy = DDPStrategy(find_unused_parameters=unfreezes or getattr(task.model, "drops_blocks", False))
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # time for nothing
    return pl.Trainer(
        accelerator=keys.accelerator, devices=keys.devices, strategy=strategy, precision=keys.precision,
        deterministic=keys.deterministic, gradient_clip_val=keys.gradient_clip_norm,
        accumulate_grad_batches=keys.accumulate_batches, max_epochs=-1, log_every_n_steps=keys.log_every_n_steps,
        callbacks=[StepSeeds(config.seed), StopAtNonFinite(keys.log_every_n_steps), StopAtStep(task.total_steps),
                   readings, Pictures(), Boxes(), Masks(), Sentences(), Samples(),
                   Display(readings, task.total_steps, task.total_epochs, task.headline, task.unit), saving],
        plugins=[DurableIO()], logger=loggers, default_root_dir=path, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    ), saving


def check_device(keys: DictConfig) -> None:
    if keys.accelerator == "gpu" and not torch.cuda.is_available():
        raise MachineError("trainer.accelerator=gpu: no GPU is visible to torch; trainer=cpu or trainer=auto goes on")
    if keys.accelerator == "mps" and not torch.backends.mps.is_available():
        raise MachineError("trainer.accelerator=mps: not available here; trainer=cpu or trainer=auto goes on")
    if keys.accelerator != "cpu" and torch.cuda.is_available() and keys.devices > torch.cuda.device_count():
        raise MachineError(f"trainer.devices={keys.devices}: only {torch.cuda.device_count()} GPUs are visible")


def device_name(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


