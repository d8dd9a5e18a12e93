"""What the checks have to know of a kind of problem; its subclasses know one each.

B samples of a batch, T time steps, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import END
from dltrain.preflight.features import Association
from dltrain.preflight.samples import Samples

MANY = 8  # so many times as many samples are read, to have several classes among them


class Kind:
    """A kind of problem that the checks know nothing of. None: it does not have what is requested."""

    inputs: tuple[str, ...] = ()  # the fields of a batch that a model reads
    content: tuple[str, ...] = ()  # those by which two samples are the same one
    is_stream = False  # running text, of which a batch is a window
    symbols: str | None = None  # the field whose next symbol is predicted
    counts_samples = False  # whether each sample has one label
    samples_fitted = 8  # that are to be learned by heart
    samples_probed = 800  # whose targets are to be predicted

    def sample(self, source: Samples, count: int) -> Any:
        """A batch of up to `count` training samples, cut where they may be cut. Of samples with one label, several
        classes come first."""
        indices = source.indices("train", MANY * count if self.counts_samples else count)
        if self.counts_samples:
            labels = source.read("train", indices).labels.tolist()
            earlier = [labels[:place].count(label) for place, label in enumerate(labels)]
            indices = indices[torch.tensor(earlier).argsort(stable=True)[:count]]
        return source.read("train", indices)

    @property
    def is_unknown(self) -> bool:
        return not self.inputs

    def resize(self, task: Any, samples: int) -> None:
        """Prepares the task for batches of another size."""

    def probed(self, source: Samples) -> Any:
        """A batch of `samples_probed` training samples."""
        return source.read("train", source.indices("train", self.samples_probed))

    def association(self, batch: Any) -> Association | None:
        """What a probe predicts from what."""
        return None

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        """The cross-entropy of the classes alone, without auxiliary terms and smoothing; the number of classes that it
        is over, or numbers that it may be. In training mode."""
        return None

    def outputs(self, task: Any, batch: Any) -> Any:
        """In evaluation mode: a tensor for each sample, whose first dimension is time where symbols are predicted."""
        return None

    def targets(self, batch: Any) -> Tensor | None:
        """(N,) int64: the classes that are scored, of the whole batch."""
        return None

    def blind_loss(self, batch: Any) -> float | None:
        """The least cross-entropy on this batch of a model that ignores its inputs: the entropy of the targets."""
        if (targets := self.targets(batch)) is None or not len(targets):
            return None
        shares = targets.unique(return_counts=True)[1].double() / len(targets)
        return float(-(shares * shares.log()).sum())

    def change(self, batch: Any, sample: int) -> Any:
        """The batch with other inputs in one sample."""
        return batch._replace(**{name: change_row(getattr(batch, name), sample) for name in self.inputs})

    def repeats_inputs(self, batch: Any) -> bool:
        """Whether the targets are the inputs of the same place, so that there is nothing to predict."""
        return False

    def change_future(self, batch: Any, place: int) -> Any:
        """The batch with other symbols from `place` on."""
        name = self.symbols or ""
        tokens = getattr(batch, name)
        return batch._replace(**{name: torch.cat([tokens[..., :place], other_symbols(tokens)[..., place:]], -1)})


def scored(targets: Tensor, ignored: int) -> Tensor:
    return targets[targets != ignored]


def mean_loss(logits: Tensor, targets: Tensor, ignored: int) -> float:
    """Logits (..., K) and targets (...)."""
    return float(F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignored))


def other_symbols(tokens: Tensor) -> Tensor:
    """Each symbol replaced by another one of the same tensor; the special ones stay."""
    kept = tokens.unique()
    kept = kept[kept > END]
    if len(kept) < 2:
        return tokens
    following = torch.arange(int(tokens.max()) + 1, device=tokens.device)
    following[kept] = kept.roll(1)
    return following[tokens]


def change_row(field: Any, row: int) -> Any:
    """A field of a batch with other values in one row: pixels inverted, vectors negated, symbols replaced."""
    if isinstance(field, list):
        return [255 - image if index == row else image for index, image in enumerate(field)]
    changed = field.clone()
    if field.dtype == torch.uint8:
        changed[row] = 255 - field[row]
    elif field.is_floating_point():
        changed[row] = 1 - field[row]
    else:
        changed[row] = other_symbols(field)[row]
    return changed
