"""What the checks have to know of the kinds of problems on sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, PAD
from dltrain.preflight.features import Association, bag, following, neighbours, one_hot, sequence_features
from dltrain.preflight.kind import Kind, mean_loss, scored
from dltrain.preflight.samples import Samples

SYMBOLS_KEPT = 24  # of each sequence, where it may be cut
WINDOWS_PROBED = 3
STREAM_PROBED = 6000  # symbols of running text, or of tagged text


class Sequences(Kind):
    """One label for each sequence of symbols or of vectors."""

    inputs, content, counts_samples = ("tokens",), ("tokens",), True

    def association(self, batch: Any) -> Association | None:
        return Association(sequence_features(batch.tokens, batch.lengths)[:, None], one_hot(batch.labels)[:, None])

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        return mean_loss(task(batch), batch.labels, IGNORED_LABEL), (task.num_classes,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task(batch)

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.labels, IGNORED_LABEL)


class Tags(Kind):
    inputs, content = ("tokens",), ("tokens",)

    def association(self, batch: Any) -> Association | None:
        tokens, tags = (torch.cat([row[:length] for row, length in zip(rows, batch.lengths, strict=True)])
                        for rows in (batch.tokens, batch.tags))
        return neighbours(tokens[:STREAM_PROBED], tags[:STREAM_PROBED])

    def sample(self, source: Samples, count: int) -> Any:
        batch = super().sample(source, count)
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

    def probed(self, source: Samples) -> Any:
        places = torch.arange(min(WINDOWS_PROBED, source.data.num_samples("train")))
        windows = [source.read("train", place[None]) for place in places]
        return type(windows[0])(*(torch.cat(fields, 1) for fields in zip(*windows, strict=True)))

    def association(self, batch: Any) -> Association | None:
        return following(*(field.flatten()[:STREAM_PROBED] for field in batch))

    def resize(self, task: Any, samples: int) -> None:
        task.hold_streams(samples)

    def repeats_inputs(self, batch: Any) -> bool:
        return bool((batch.targets == batch.tokens).float().mean() > 0.9)

    def sample(self, source: Samples, count: int) -> Any:
        """The beginnings of the first streams."""
        batch = source.read("train", torch.tensor([0]))
        return type(batch)(*(field[:count, :SYMBOLS_KEPT] for field in batch))

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        return mean_loss(task.model(batch.tokens)[0], batch.targets, IGNORED_LABEL), (task.vocab_size,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task.model(batch.tokens)[0]

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.targets, IGNORED_LABEL)


class Pairs(Kind):
    inputs, content, symbols = ("source", "target"), ("source", "target"), "target"

    def association(self, batch: Any) -> Association | None:
        sources = sequence_features(batch.source, batch.source_lengths)
        targets = [bag(row, length) for row, length in zip(batch.target, batch.target_lengths, strict=True)]
        return Association(sources[:, None], torch.stack(targets)[:, None])

    def head_loss(self, task: Any, batch: Any) -> tuple[float, tuple[int, ...]] | None:
        return mean_loss(self.outputs(task, batch), batch.target[:, 1:], PAD), (task.target_size,)

    def outputs(self, task: Any, batch: Any) -> Any:
        return task.model(batch.source, batch.source_lengths, batch.target[:, :-1])

    def targets(self, batch: Any) -> Tensor | None:
        return scored(batch.target[:, 1:], PAD)
