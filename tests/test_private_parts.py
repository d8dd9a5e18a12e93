"""The private parts of other libraries that dltrain uses: each is there, and there are no others. pyproject.toml has a
ceiling for the versions of these libraries."""

import ast
import importlib
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

import dltrain

# where they are used for what has no public counterpart: "module:name.of.attribute"
PRIVATE = [
    "hydra._internal.config_loader_impl:ConfigLoaderImpl",
    "hydra._internal.config_loader_impl:ConfigLoaderImpl._process_config_searchpath",
    "hydra._internal.config_loader_impl:ConfigLoaderImpl._compose_config_from_defaults_list",
    "hydra._internal.config_loader_impl:ConfigLoaderImpl._apply_overrides_to_config",
    "hydra._internal.config_repository:CachingConfigRepository",
    "hydra._internal.config_repository:IConfigRepository",
    "hydra._internal.callbacks:Callbacks",
    "hydra._internal.core_plugins.basic_sweeper:BasicSweeper",
    "hydra._internal.core_plugins.file_config_source:FileConfigSource",
    "hydra._internal.defaults_list:DefaultsList",
    "hydra._internal.defaults_list:create_defaults_list",
    "hydra._internal.hydra:Hydra",
    "hydra._internal.sources_registry:SourcesRegistry",
    "hydra._internal.utils:_run_hydra",
    "hydra._internal.utils:create_config_search_path",
    "omegaconf:DictConfig._get_node",
    "omegaconf:DictConfig._is_none",
    "omegaconf._utils:get_yaml_loader",
    "pytorch_lightning.core.module:LightningModule._on_before_batch_transfer",
    "pytorch_lightning.core.module:LightningModule._current_fx_name",
    "pytorch_lightning.loops.fetchers:_DataFetcher",
    "pytorch_lightning.loops.training_epoch_loop:_TrainingEpochLoop._batches_that_stepped",
    "pytorch_lightning.loops.training_epoch_loop:_TrainingEpochLoop._results",
    "pytorch_lightning.loops.training_epoch_loop:_TrainingEpochLoop._should_accumulate",
    "pytorch_lightning.loops.training_epoch_loop:_TrainingEpochLoop._num_ready_batches_reached",
    "pytorch_lightning:Trainer._logger_connector._first_loop_iter",
    "torch.nn:LSTM._flat_weights",
    "torch.optim.lr_scheduler:LambdaLR._last_lr",
    "torch.optim.lr_scheduler:LambdaLR._step_count",
    "torch.utils._python_dispatch:TorchDispatchMode",
    "torch.utils._pytree:tree_leaves",
    "torch.utils._pytree:tree_map",
    "torch.utils._pytree:tree_map_only",
]
PUBLIC = {"_replace", "_asdict", "_target_", "_fields", "_exit", "_current_frames"}  # of NamedTuple, Hydra, os, sys
FILES = sorted(Path(dltrain.__file__).parent.rglob("*.py"))


def private_names() -> set[str]:
    """Private modules that are imported, private names imported from modules, and private attributes of others."""
    names: set[str] = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and "._" in f".{node.module}" and node.module != "__future__":
                names |= {f"{node.module}:{alias.name}" for alias in node.names}
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                owner = node.value
                own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
                if not own and node.attr not in PUBLIC:
                    names.add(node.attr)
    return names


def instance_of(owner: object) -> object:
    """Of a class whose objects have the private attribute once they are built."""
    if owner is torch.nn.LSTM:
        return torch.nn.LSTM(1, 1)
    if owner is torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([torch.zeros(1)]), lambda step: 1.0)
    if owner is pl.LightningModule:
        return pl.LightningModule()
    if owner is pl.Trainer:
        return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    if owner is _TrainingEpochLoop:
        return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop.epoch_loop
    return owner


def test_every_private_part_is_there():
    for path in PRIVATE:
        module, _, names = path.partition(":")
        owner: object = importlib.import_module(module)
        for name in names.split("."):
            owner = instance_of(owner)
            assert hasattr(owner, name), path
            owner = getattr(owner, name)


def test_no_other_is_used():
    listed = {*PRIVATE, *(name for path in PRIVATE for name in path.partition(":")[2].split("."))}
    assert private_names() - listed == set()
