"""Reading samples of a data module, and the time that passes meanwhile."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from dltrain.batches import generator


class Samples:
    def __init__(self, data: Any, seed: int):
        self.data, self.seed = data, seed

    def indices(self, split: str, count: int) -> Tensor:
        """`count` sample indices at random, the same in each call; all of them where there are fewer."""
        order = torch.randperm(self.data.num_samples(split), generator=generator("check", split, self.seed))
        return order[:count]

    def read(self, split: str, indices: Tensor) -> Any:
        """A batch of these samples, on the host."""
        return next(iter(self.data.read(split, [indices])))


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started
