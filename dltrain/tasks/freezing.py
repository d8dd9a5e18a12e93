"""Transfer learning: which stages of the backbone are frozen, when they are unfrozen, and what their batch norm does.

The stages are those of the model's backbone (contracts.Backbone). J. Yosinski et al., 2014, arXiv 1411.1792, freeze the
first n layers; J. Howard, S. Ruder, 2018, arXiv 1801.06146, section 3.2, unfreeze one more layer after each epoch, from
the top ("gradual unfreezing").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import nn

from dltrain.contracts import backbone_of
from dltrain.errors import UserError, suggest

ALL = "all"


class FreezingKeys(TypedDict, total=False):
    """The keys of task.freezing."""

    until: str | None
    unfreeze_every_epochs: int | None
    batch_norm: str


class Freezing:
    """`until`: the last frozen stage, "all" for the whole backbone, None for no stage. `unfreeze_every_epochs`: after
    so many epochs the topmost frozen stage is trained too, and so on; None: never. `batch_norm`: `frozen`: frozen
    stages are in evaluation mode, so they use their saved statistics and drop nothing out; `update`: they stay in
    training mode, so frozen batch norm keeps updating its running statistics.

    Raises UserError for a stage that the backbone does not have, and for a model without stages."""

    def __init__(self, model: object, until: str | None = None, unfreeze_every_epochs: int | None = None,
                 batch_norm: str = "frozen"):
        self.unfreeze_every_epochs, self.updates_statistics = unfreeze_every_epochs, batch_norm == "update"
        self.stages: list[Sequence[nn.Module]] = []  # those that are frozen at first, from the image on
        self.num_frozen = 0  # how many of them are frozen now
        if until is None:
            return
        key = f"task.freezing.until={until}"
        backbone = backbone_of(model)
        if backbone is None:
            raise UserError(f"{key}: must be null, for {type(model).__name__} has no backbone with stages")
        try:
            stages = backbone.stages()
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None
        names = list(stages)
        if until not in (*names, ALL):
            hint = suggest(until, names) or f"; there are: {', '.join(names)}, or {ALL}"
            raise UserError(f"{key}: {type(backbone).__name__} has no such stage{hint}")
        count = len(names) if until == ALL else names.index(until) + 1
        self.stages = list(stages.values())[:count]
        self.freeze(0 if self.unfreezes else count)  # what is trained later must be in the optimizer from the start

    @property
    def unfreezes(self) -> bool:
        """Whether stages that are frozen at first are trained later."""
        return bool(self.stages) and self.unfreeze_every_epochs is not None

    def freeze(self, count: int) -> None:
        """Freezes the first `count` of the stages and unfreezes the others."""
        self.num_frozen = count
        for index, layers in enumerate(self.stages):
            for layer in layers:
                layer.requires_grad_(index >= count)

    def apply(self, epoch: int) -> None:
        """Freezes what is to be frozen in this epoch, and sets the modes of the stages that are or were frozen. To be
        called before each training step: after a validation Lightning restores the modes that were set before it."""
        if self.unfreeze_every_epochs is not None:
            count = max(0, len(self.stages) - epoch // self.unfreeze_every_epochs)
            if count != self.num_frozen:
                self.freeze(count)
        for index, layers in enumerate(self.stages):
            training = self.updates_statistics or index >= self.num_frozen
            for layer in layers:
                if layer.training != training:
                    layer.train(training)
