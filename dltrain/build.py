"""Builds the objects of a run from its config. Errors name the key or the choice."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch import nn

from dltrain import trust
from dltrain.batches import BatchError, seed_of
from dltrain.config.interpolations import value_at
from dltrain.contracts import drops_blocks
from dltrain.data.datamodule import SPLITS, DataModule
from dltrain.data.loader import TIMEOUT
from dltrain.errors import DataError, UserError
from dltrain.image_files import readable
from dltrain.late_imports import leave_out_imports
from dltrain.out_of_memory import shortage_of
from dltrain.parallel.as_one import AsOne
from dltrain.pretrained import NODE, load_pretrained, pretrained_of, without_pretrained
from dltrain.ranks import rank, trains_as_one, world_size
from dltrain.shared_memory import check_shared_memory
from dltrain.tasks.task import Task

# Keys of a node that are not arguments of its class.
NOT_ARGUMENTS = {"data": {"batch_type", "timeout_seconds"}, "task": {"batch_type", "predict"}}
BUILT = ("data", "augment", "model", "task")


def build(node: DictConfig, key: str, class_names: Sequence[str] | None = None, **more: object) -> Any:
    """What the node at `key` describes: its `_target_` called with its other keys and `more`. Nodes below with a
    `_target_` of their own are built first; a model, and its backbone, then loads the weights of its `pretrained` node.
    `class_names`: the data's, since a pretrained head may be for other classes.

    Raises UserError with the key if the target cannot be imported, does not take the keys, or raises ValueError."""
    leave_out_imports()
    pretrained = pretrained_of(node, key)
    left_out = {"_target_"} | NOT_ARGUMENTS.get(key, set()) | ({NODE} if pretrained else set())
    arguments = {str(name): build_value(value, f"{key}.{name!s}") for name, value in node.items()
                 if name not in left_out}
    place = f"{key} ({str(node._target_).rpartition('.')[2]})"
    target = locate(node, key)
    try:
        inspect.signature(target).bind(**arguments, **more)
    except TypeError as error:
        raise UserError(f"{place}: {error}") from error
    try:
        result = target(**arguments, **more)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):  # which a class passes on to another one
            error.add_note(f"while building {place}")
            raise
        raise UserError(f"{place}: {error}") from error
    except Exception as error:
        error.add_note(f"while building {place}")
        raise
    if pretrained is not None:
        load_pretrained(result, pretrained, class_names)
    return result


def locate(node: DictConfig, key: str) -> Any:
    """What the `_target_` of a node names. Raises UserError, also for what a config may not name."""
    return trust.locate(f"{key}._target_", node._target_)


def locate_all(config: DictConfig, *keys: str) -> None:
    """To be called before anything is built: raises UserError for a name in the nodes at `keys` that a config may not
    have, or that names nothing. With `trainer` among them, also those of the optimizer and the schedule."""
    for key, path in trust.names_of(OmegaConf.to_container(config), partial(value_at, config)):
        if key.partition(".")[0] in keys and (key not in trust.NAMED or "trainer" in keys):
            trust.locate(key, path)


def build_value(value: object, key: str) -> object:
    """A config value as a class should get it: plain, or built where it has a `_target_`."""
    if isinstance(value, ListConfig):
        return [build_value(item, f"{key}.{index}") for index, item in enumerate(value)]
    if isinstance(value, DictConfig):
        if "_target_" in value:
            return build(value, key)
        return {str(name): build_value(item, f"{key}.{name!s}") for name, item in value.items()}
    return value


def build_data(config: DictConfig, vocabularies: dict[str, list[str]] | None = None) -> DataModule:
    """The loaded data. Sizes that only the files know are written into the config. `vocabularies`: those of a run whose
    symbols must be kept."""
    locate_all(config, *BUILT)
    data: DataModule = build(config.data, "data", seed=config.seed)
    data.vocabularies = vocabularies or {}
    data.rank, data.world_size, data.as_one = rank(), world_size(config.trainer), trains_as_one(config.trainer)
    data.max_batches, data.timeout_seconds = config.trainer.smoke_steps, config.data.get("timeout_seconds", TIMEOUT)
    data.eval_batch_size = min(data.eval_batch_size, config.trainer.get("eval_batch_size") or data.eval_batch_size)
    data.load()
    if repeated := sorted({name for name in data.class_names if data.class_names.count(name) > 1}):
        raise DataError(f"data={config.choices.data}: several classes are called {readable(', '.join(repeated))}")
    for split in SPLITS:
        if not data.num_samples(split):
            raise DataError(f"data={config.choices.data}: the {split} split has no samples")
    if not len(data.train_dataloader()):
        raise DataError(f"data={config.choices.data}: {data.num_samples('train')} training samples are fewer than the "
                        f"{data.world_size} processes")
    for key, value in data.sizes().items():
        if config.data[key] is None:
            config.data[key] = value
            data.sizes_read.append(key)
    return data


def build_unloaded_data(config: DictConfig, vocabularies: dict[str, list[str]]) -> DataModule:
    """A run's data module as `predict` needs it: it can read inputs, but none of its own files were read."""
    locate_all(config, *BUILT)
    data: DataModule = build(config.data, "data", seed=config.seed)
    data.vocabularies, data.class_names = vocabularies, list(config.get("class_names") or [])
    return data


def build_task(config: DictConfig, vocabularies: dict[str, list[str]] | None = None, fresh: bool = True) -> Task:
    """The task with its model, initialised from the seed and, in a `fresh` run, from the pretrained weights that the
    config names. `vocabularies`: those of the data."""
    locate_all(config, *BUILT)
    torch.manual_seed(seed_of("init", config.seed))
    model_node = config.model if fresh else without_pretrained(config.model)
    model = build(model_node, "model", config.get("class_names"))
    task: Task = build(config.task, "task", None, model=model, seed=config.seed, **build_augment(config))
    task.class_names, task.vocabularies = list(config.get("class_names") or []), vocabularies or {}
    if config.trainer.memory_format == "channels_last":
        task.model.to(memory_format=torch.channels_last)
    if trains_as_one(config.trainer):
        task.train_as_one(AsOne(rank(), world_size(config.trainer), not config.trainer.compile))
    if config.trainer.compile:
        for module in compiled_modules(task.model):
            module.compile(mode=config.trainer.get("compile_mode", "default"))
    return task


def compiled_modules(model: nn.Module) -> list[nn.Module]:
    """A net that drops blocks takes another path in each step: its blocks are compiled one by one."""
    return list(model.blocks) if drops_blocks(model) else [model]  # type: ignore[arg-type]


def build_augment(config: DictConfig) -> dict[str, object]:
    """The pipeline, for data that are images."""
    if "image_px" not in config.data:
        return {}
    return {"augment": build(config.augment, "augment", channels=config.data.channels, image_px=config.data.image_px)}


def check_first_step(config: DictConfig, data: DataModule, task: Task) -> None:
    """Before anything is written: the optimizer can be built, and a batch of the training and of the validation split
    is of its type and goes through the model."""
    pair = f"model={config.choices.model} does not take the batches of data={config.choices.data}"
    locate_all(config, *BUILT, "trainer")
    task.configure_optimizers()
    for split in ("train", "val"):
        indices = torch.arange(min(2, data.num_samples(split)))
        batch = next(iter(data.read(split, [indices])))
        check_shared_memory(batch, data.batch_size, int(vars(data).get("num_workers") or 0), data.world_size)
        training = task.training
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                task.eval().check(batch)
        except BatchError as error:
            raise DataError(f"{pair}: {error}") from None
        except UserError as error:
            raise type(error)(f"{pair}: {error}") from None
        except (RuntimeError, IndexError) as error:
            if shortage_of(error):
                raise
            shapes = {name: tuple(value.shape) for name, value in batch._asdict().items()
                      if isinstance(value, torch.Tensor)}
            raise UserError(f"{pair}, {shapes}: {str(error).splitlines()[0]}") from error
        except (TypeError, AttributeError) as error:
            name = type(task.model).__name__
            if f"{name}.forward()" in str(error):
                raise UserError(f"{pair}: {error}") from error
            if returned := re.search(r"'(tuple|list|dict|NoneType)' object has no attribute", str(error)):
                raise UserError(f"{pair}: {name} returns a {returned[1]}, but {type(task).__name__} needs a tensor"
                                ) from error
            raise
        finally:
            task.train(training)
    if data.batch_size > 1 and data.fewest_rows(data.batch_size) == 1 and not data.train_dataloader().is_cut:
        check_lone_sample(data, task)


def check_lone_sample(data: DataModule, task: Task) -> None:
    """Raises UserError where an epoch ends with a batch of one sample and the model's batch normalisation cannot be
    trained with it. The model is left as it was."""
    batch = next(iter(data.read("train", [torch.zeros(1, dtype=torch.int64)])))
    training, buffers = task.training, {name: value.clone() for name, value in task.model.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            task.train().check_training(batch)
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        count, among = data.num_samples("train"), f" among {data.world_size} processes" if data.world_size > 1 else ""
        sizes = range(data.batch_size + 1, count + 2)
        better = next((f"data.batch_size={size}" for size in sizes if data.fewest_rows(size) != 1), "no batch size")
        raise UserError(f"data.batch_size={data.batch_size}: the last batch of {count} samples{among} has one, with "
                        f"which the batch normalisation of {type(task.model).__name__} cannot be trained; {better} "
                        "leaves none alone") from None
    finally:
        task.train(training)
        for name, value in task.model.named_buffers():
            value.copy_(buffers[name])


def build_callbacks(config: DictConfig) -> list[pl.Callback]:
    """The user's: trainer.callbacks."""
    return build_own(config.trainer.get("callbacks"), "trainer.callbacks", "pytorch_lightning.callbacks", pl.Callback)


def build_loggers(config: DictConfig, folder: Path) -> list[Logger]:
    """The user's: trainer.loggers. `folder`: the run's. Those by the words csv and tensorboard are always there."""
    nodes = [trust.TRACKERS.get(node, node) if type(node) is str else node
             for node in config.trainer.get("loggers") or [] if node not in trust.ALWAYS]
    return build_own(nodes, "trainer.loggers", "pytorch_lightning.loggers", Logger, save_dir=str(folder))


def build_own(nodes: Sequence[Any] | None, key: str, library: str, kind: type, **defaults: object) -> list[Any]:
    """What a list of the config names: a name in `library`, or a node with `_target_`. `defaults`: given to those that
    take them. Raises UserError for what is not of its `kind`."""
    built = []
    for index, value in enumerate(nodes or []):
        place = f"{key}.{index}"
        node = value if isinstance(value, DictConfig) else OmegaConf.create(
            {"_target_": value if "." in str(value) else f"{library}.{value}"})
        if "_target_" not in node:
            raise UserError(f"{place}: must be a name or have _target_, as {{_target_: {library}.CLASS, ...}}")
        parameters = inspect.signature(locate(node, place)).parameters
        given = {name: default for name, default in defaults.items() if name in parameters and name not in node}
        item = build(node, place, None, **given)
        if not isinstance(item, kind):
            raise UserError(f"{place}: {node._target_} must be a {kind.__module__.partition('.')[0]} {kind.__name__}")
        built.append(item)
    return built
