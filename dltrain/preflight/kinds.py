"""What the checks have to know of each kind of problem, by its batch type: the only place that differs by kind.

B samples of a batch, T time steps, V symbols, K classes, R captions of an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import (
    END,
    IGNORED_LABEL,
    IGNORED_PIXEL,
    PAD,
    CaptionBatch,
    ClassificationBatch,
    DetectionBatch,
    LabelledBatch,
    PairBatch,
    SegmentationBatch,
    TaggedBatch,
    TokenBatch,
)

from dltrain.preflight.features import (
    Association,
    bag,
    crops,
    following,
    image_features,
    neighbours,
    one_hot,
    places,
    sequence_features,
    words_of,
)

if TYPE_CHECKING:
    from dltrain.preflight.pair import Pair

SYMBOLS_KEPT = 24  # of each sequence, where it may be cut
STREAM_PROBED = 6000  # symbols of running text, or of tagged text
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

    def sample(self, pair: Pair, count: int) -> Any:
        """A batch of up to `count` training samples, cut where they may be cut. Of samples with one label, several
        classes come first."""
        indices = pair.indices("train", MANY * count if self.counts_samples else count)
        if self.counts_samples:
            labels = pair.read("train", indices).labels.tolist()
            earlier = [labels[:place].count(label) for place, label in enumerate(labels)]
            indices = indices[torch.tensor(earlier).argsort(stable=True)[:count]]
        return pair.read("train", indices)

    def resize(self, task: Any, samples: int) -> None:
        """Prepares the task for batches of another size."""

    def association(self, pair: Pair) -> Association | None:
        """What a probe predicts from what: of `samples_probed` training samples."""
        return None

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        """The cross-entropy of the classes alone, without auxiliary terms and smoothing; the number of classes that it
        is over, or numbers that it may be. In training mode."""
        return None

    def outputs(self, task: Any, batch: Any) -> Any:
        """In evaluation mode, a tensor for each sample, in which time is the first dimension where there are symbols."""
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
        tokens = getattr(batch, self.symbols or "")
        return batch._replace(**{self.symbols or "": torch.cat([tokens[..., :place], other_symbols(tokens)[..., place:]],
                                                               -1)})


class Images(Kind):
    inputs, content, counts_samples = ("images",), ("images",), True

    def association(self, pair: Pair) -> Association | None:
        batch = pair.read("train", pair.indices("train", self.samples_probed))
        return Association(image_features(batch.images)[:, None], one_hot(batch.labels)[:, None])

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        output = task.model(task.augment(batch).images)
        logits = output[0] if isinstance(output, tuple) else output
        return float(F.cross_entropy(logits, batch.labels)), (task.num_classes,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task(batch.images)

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.labels, IGNORED_LABEL)


class Boxes(Kind):
    inputs, content = ("images",), ("images",)
    samples_fitted, samples_probed = 4, 300

    def association(self, pair: Pair) -> Association | None:
        batch = pair.read("train", pair.indices("train", self.samples_probed))
        return crops(batch.images, *([target[name] for target in batch.targets] for name in ("boxes", "labels")))

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        losses = task.model(*task.augment(batch))
        if "loss_classifier" not in losses:
            return None
        return float(losses["loss_classifier"]), (task.num_classes, task.num_classes + 1)  # with background or without

    def outputs(self, task: Any, batch: Any) -> Any:
        return [torch.cat([one["boxes"], one["scores"][:, None]], 1) for one in task(batch.images)]


class Masks(Kind):
    inputs, content = ("images",), ("images",)
    samples_fitted, samples_probed = 4, 120

    def association(self, pair: Pair) -> Association | None:
        batch = pair.read("train", pair.indices("train", self.samples_probed))
        return places(batch.images, batch.masks, IGNORED_PIXEL)

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        logits = task.model(task.augment(batch).images)
        return float(F.cross_entropy(logits, batch.masks, ignore_index=IGNORED_PIXEL)), (task.num_classes,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task(batch.images)

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.masks, IGNORED_PIXEL)


class Captions(Kind):
    inputs, content, symbols = ("images", "captions"), ("images",), "captions"
    samples_fitted, samples_probed = 4, 500

    def association(self, pair: Pair) -> Association | None:
        batch = pair.read("train", pair.indices("train", self.samples_probed))
        return Association(image_features(batch.images)[:, None], words_of(batch.captions)[:, None])

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        logits = task.model(task.augment(batch).images, batch.captions[:, :, :-1])
        return mean_loss(logits, batch.captions[:, :, 1:], PAD), (task.vocab_size,)

    def outputs(self, task: Any, batch: Any) -> Any:
        logits = task.model(task.augment(batch).images, batch.captions[:, :, :-1])
        return logits.transpose(1, 2)

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.captions[:, :, 1:], PAD)


class Sequences(Kind):
    """One label for each sequence of symbols or of vectors."""

    inputs, content, counts_samples = ("tokens",), ("tokens",), True

    def association(self, pair: Pair) -> Association | None:
        batch = pair.read("train", pair.indices("train", self.samples_probed))
        return Association(sequence_features(batch.tokens, batch.lengths)[:, None], one_hot(batch.labels)[:, None])

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        return mean_loss(task(batch), batch.labels, IGNORED_LABEL), (task.num_classes,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task(batch)

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.labels, IGNORED_LABEL)


class Tags(Kind):
    inputs, content = ("tokens",), ("tokens",)

    def association(self, pair: Pair) -> Association | None:
        batch = pair.read("train", pair.indices("train", self.samples_probed))
        tokens, tags = (torch.cat([row[:length] for row, length in zip(rows, batch.lengths, strict=True)])
                        for rows in (batch.tokens, batch.tags))
        return neighbours(tokens[:STREAM_PROBED], tags[:STREAM_PROBED])

    def sample(self, pair: Pair, count: int) -> Any:
        batch = super().sample(pair, count)
        lengths = tuple(min(length, SYMBOLS_KEPT) for length in batch.lengths)
        longest = max(lengths)
        return type(batch)(batch.tokens[:, :longest], lengths, batch.tags[:, :longest])

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        return mean_loss(task(batch), batch.tags, IGNORED_LABEL), (task.num_classes,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task(batch)

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.tags, IGNORED_LABEL)


class Streams(Kind):
    inputs, symbols, is_stream = ("tokens",), "tokens", True

    def association(self, pair: Pair) -> Association | None:
        windows = [pair.read("train", torch.tensor([place])) for place in range(min(3, pair.data.num_samples("train")))]
        tokens, targets = (torch.cat([getattr(window, name) for window in windows], 1).flatten()[:STREAM_PROBED]
                           for name in ("tokens", "targets"))
        return following(tokens, targets)

    def resize(self, task: Any, samples: int) -> None:
        task.hold_streams(samples)

    def repeats_inputs(self, batch: Any) -> bool:
        return bool((batch.targets == batch.tokens).float().mean() > 0.9)

    def sample(self, pair: Pair, count: int) -> Any:
        """The beginnings of the first streams."""
        batch = next(iter(pair.data.read("train", [torch.tensor([0])])))
        return type(batch)(*(field[:count, :SYMBOLS_KEPT] for field in batch))

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        return mean_loss(task.model(batch.tokens)[0], batch.targets, IGNORED_LABEL), (task.vocab_size,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task.model(batch.tokens)[0]

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.targets, IGNORED_LABEL)


class Pairs(Kind):
    inputs, content, symbols = ("source", "target"), ("source", "target"), "target"

    def association(self, pair: Pair) -> Association | None:
        batch = pair.read("train", pair.indices("train", self.samples_probed))
        targets = [bag(row, length) for row, length in zip(batch.target, batch.target_lengths, strict=True)]
        return Association(sequence_features(batch.source, batch.source_lengths)[:, None], torch.stack(targets)[:, None])

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        return mean_loss(self.outputs(task, batch), batch.target[:, 1:], PAD), (task.target_size,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task.model(batch.source, batch.source_lengths, batch.target[:, :-1])

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.target[:, 1:], PAD)


KINDS: dict[type, Kind] = {
    ClassificationBatch: Images(), DetectionBatch: Boxes(), SegmentationBatch: Masks(), CaptionBatch: Captions(),
    LabelledBatch: Sequences(), TaggedBatch: Tags(), TokenBatch: Streams(), PairBatch: Pairs()}


def kind_of(task: Any) -> Kind:
    """A user's own task, whose loss may be any, is of a kind that the checks know nothing of."""
    is_own = not type(task).training_step.__module__.startswith("dltrain.tasks.")
    return Kind() if is_own else KINDS.get(task.batch_type, Kind())


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
