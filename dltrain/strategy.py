"""How the processes of a run train one model together."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning.strategies import DDPStrategy, Strategy

from dltrain.config.free_keys import FREE
from dltrain.config.interpolations import to_plain
from dltrain.dotted import flatten
from dltrain.errors import UserError
from dltrain.ranks import world_size


def dist_timeout_of(keys: DictConfig) -> float:
    """Seconds. `keys`: the trainer's, of which older runs do not have it."""
    return float(keys.get("dist_timeout_seconds", 900))


def strategy_of(config: DictConfig, has_unused_parameters: bool) -> Strategy | str:
    """`has_unused_parameters`: whether some have no gradient in some steps, as those of frozen stages that unfreeze
    later, and of blocks that are dropped."""
    if world_size(config.trainer) == 1:
        return "auto"
    return RanksStrategy(fingerprint(config), find_unused_parameters=has_unused_parameters,
                         timeout=timedelta(seconds=dist_timeout_of(config.trainer)))


def fingerprint(config: DictConfig) -> str:
    """A hash of the keys that a run keeps to its end."""
    kept = {key: value for key, value in flatten(to_plain(config)).items()
            if not FREE & {key, key.partition(".")[0]}}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


class RanksStrategy(DDPStrategy):
    """DistributedDataParallel. The processes do not wait for one another in a save: rank 0 alone writes, also at times
    at which the others do not. Raises UserError where their fingerprints differ, as those of nodes may."""

    def __init__(self, fingerprint: str, **keys: Any):
        super().__init__(**keys)
        self.fingerprint = fingerprint

    def setup_environment(self) -> None:
        super().setup_environment()
        fingerprints = [self.fingerprint] * self.world_size
        torch.distributed.all_gather_object(fingerprints, self.fingerprint)
        if len({*fingerprints}) > 1:
            raise UserError("the commands of the nodes have different configs: type the same words on each node")

    def barrier(self, name: str | None = None, *more: object, **keys: object) -> None:
        if name != "Trainer.save_checkpoint":
            super().barrier(name, *more, **keys)
