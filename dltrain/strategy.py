"""How the processes of a run train one model together."""

from __future__ import annotations

from datetime import timedelta

from omegaconf import DictConfig
from pytorch_lightning.strategies import DDPStrategy, Strategy

from dltrain.ranks import world_size


def dist_timeout_of(keys: DictConfig) -> float:
    """Seconds. `keys`: the trainer's, of which older runs do not have it."""
    return float(keys.get("dist_timeout_seconds", 900))


def strategy_of(keys: DictConfig, has_unused_parameters: bool) -> Strategy | str:
    """`keys`: the trainer's. `has_unused_parameters`: whether some have no gradient in some steps, as those of frozen
    stages that unfreeze later, and of blocks that are dropped."""
    if world_size(keys) == 1:
        return "auto"
    return RanksStrategy(find_unused_parameters=has_unused_parameters,
                         timeout=timedelta(seconds=dist_timeout_of(keys)))


class RanksStrategy(DDPStrategy):
    """DistributedDataParallel. The processes do not wait for one another in a save: rank 0 alone writes, also at times
    at which the others do not."""

    def barrier(self, name: str | None = None, *more: object, **keys: object) -> None:
        if name != "Trainer.save_checkpoint":
            super().barrier(name, *more, **keys)
