"""A finished run that the tests of a kind of problem read; and which blocks of a net were computed."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from dltrain.commands.stored import load_config
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.run_dir import RunDir


@dataclass
class FinishedRun:
    run_dir: RunDir
    result: dict[str, Any]

    @property
    def config(self) -> DictConfig:
        """As it stands in the run folder."""
        return load_config(self.run_dir, {}, ())


def count_computed_blocks(net: CifarResNet) -> list[int]:
    """How often each block was computed since this call; the list grows while the net runs."""
    counts = [0] * len(net.blocks)
    for number in range(len(counts)):
        def add_one(*_: object, number: int = number) -> None:
            counts[number] += 1

        net.get_submodule(f"blocks.{number}.convs.0").register_forward_hook(add_one)
    return counts
