"""The kind of a problem by its batch type: the only place where the checks differ by it."""

from __future__ import annotations

from typing import Any

from dltrain.batches import (
    CaptionBatch,
    ClassificationBatch,
    DetectionBatch,
    LabelledBatch,
    PairBatch,
    SegmentationBatch,
    TaggedBatch,
    TokenBatch,
)
from dltrain.preflight.image_kinds import Boxes, Captions, Images, Masks
from dltrain.preflight.kind import Kind
from dltrain.preflight.text_kinds import Pairs, Sequences, Streams, Tags

KINDS: dict[type, Kind] = {
    ClassificationBatch: Images(), DetectionBatch: Boxes(), SegmentationBatch: Masks(), CaptionBatch: Captions(),
    LabelledBatch: Sequences(), TaggedBatch: Tags(), TokenBatch: Streams(), PairBatch: Pairs()}


def kind_of(task: Any) -> Kind:
    """A user's own task, whose loss may be any, is of a kind that the checks know nothing of."""
    is_own = not type(task).training_step.__module__.startswith("dltrain.tasks.")
    return Kind() if is_own else KINDS.get(task.batch_type, Kind())
