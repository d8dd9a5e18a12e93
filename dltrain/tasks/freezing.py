"""Transfer learning: which stages of an encoder rest, when they wake, and what their batch normalisation does.

An encoder names its stages (`stages()`); it is the model itself, or what the model calls `encoder`. J. Yosinski et
al., 2014, arXiv 1411.1792, freeze up to a layer; J. Howard, S. Ruder, 2018, 1801.06146, section 3.2, wake a layer more
with each epoch, from the top.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dltrain.errors import UserError, nearest

ALL = "all"


class Resting:
    """`rest_until`: the stages up to this one rest, "all" for every stage, None for none. `wake_every_epochs`: after so
    many epochs the topmost one that rests is trained too, and so on; None: they rest to the end. `statistics`: `kept`:
    batch normalisation of stages that rest uses its saved mean and variance; `renewed`: it takes those of the new data.

    Raises UserError for a stage that the encoder has not."""

    def __init__(self, model: Any, rest_until: str | None = None, wake_every_epochs: int | None = None,
                 statistics: str = "kept"):
        self.every, self.renews = wake_every_epochs, statistics == "renewed"
        self.stages: list[list[nn.Module]] = []  # those that rest at first, from the image on
        self.now = 0  # how many of them
        if rest_until is None:
            return
        encoder = getattr(model, "encoder", model)
        at = f"task.transfer.rest_until={rest_until}: {type(encoder).__name__}"
        if not hasattr(encoder, "stages"):
            raise UserError(f"{at} has no stages that could rest")
        names = list(encoder.stages())
        if rest_until not in (*names, ALL):
            hint = nearest(rest_until, names) or f"; there are: {', '.join(names)}, or {ALL}"
            raise UserError(f"{at} has no such stage{hint}")
        count = len(names) if rest_until == ALL else names.index(rest_until) + 1
        self.stages = list(encoder.stages().values())[:count]
        self.rest(0 if self.wakes else count)  # one that will wake belongs to the optimizer from the beginning

    @property
    def wakes(self) -> bool:
        """Whether what rests now will be trained later."""
        return bool(self.stages) and self.every is not None

    def rest(self, count: int) -> None:
        """The first `count` stages rest, the others are trained."""
        self.now = count
        for place, modules in enumerate(self.stages):
            for module in modules:
                module.requires_grad_(place >= count)

    def begin(self, epoch: int) -> None:
        """Before a training step: how many rest is a function of the epoch; what rests is in evaluation mode."""
        if self.every is not None:
            wanted = max(0, len(self.stages) - epoch // self.every)
            if wanted != self.now:
                self.rest(wanted)
        for place, modules in enumerate(self.stages):
            trains = self.renews or place >= self.now
            for module in modules:
                if module.training != trains:
                    module.train(trains)
