"""Whether an output depends on what it must not see: other samples of the batch, and symbols that come later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dltrain.preflight.findings import FAULT, OK, SKIPPED, Finding
from dltrain.preflight.pair import Pair

SAMPLES, FUTURE = "samples alone", "no future"
TOLERANCE = 1e-5  # of the largest output


def check_samples(pair: Pair, batch: Any) -> Finding:
    """In evaluation mode: another input in one sample must change no output of the others."""
    if pair.kind.is_unknown or batch.size < 2:
        return Finding(SAMPLES, SKIPPED, "what the model gives for each sample is not known here")
    outputs = outputs_of(pair, batch)
    if not all(bool(output.isfinite().all()) for output in outputs):
        return Finding(SAMPLES, SKIPPED, "the outputs are not finite")
    if any(map(differs, outputs, outputs_of(pair, batch))):
        return Finding(SAMPLES, FAULT, "two calls with the same batch give different outputs in evaluation mode",
                       "look for dropout or random numbers that do not end with model.eval()")
    for sample in (0, batch.size - 1):
        changed = outputs_of(pair, pair.kind.change(batch, sample))
        others = [other for other in range(batch.size) if other != sample]
        if seen := [other for other in others if differs(outputs[other], changed[other])]:
            return Finding(SAMPLES, FAULT, f"another input in sample {sample} of {batch.size} changes the outputs of "
                                           f"{len(seen)} others in evaluation mode",
                           "look for a layer that normalises, sorts or averages over the batch (dimension 0)")
    return Finding(SAMPLES, OK, f"another input in one of {batch.size} samples changes no output of the others in "
                                "evaluation mode")


def check_future(pair: Pair, batch: Any) -> Finding:
    """In evaluation mode: other symbols from a place on must change no output before it."""
    if pair.kind.symbols is None:
        return Finding(FUTURE, SKIPPED, "no next symbol is predicted")
    outputs = outputs_of(pair, batch)
    length = outputs[0].shape[0]
    if pair.kind.repeats_inputs(batch):
        return Finding(FUTURE, FAULT, "the targets are the symbols that the model reads at the same place",
                       "let the targets be the symbols that come after: targets[:, t] = tokens[:, t + 1]")
    for place in sorted({1, length // 2, length - 1}):
        changed = outputs_of(pair, pair.kind.change_future(batch, place))
        if any(differs(before[:place], after[:place]) for before, after in zip(outputs, changed, strict=True)):
            return Finding(FUTURE, FAULT, f"other symbols from place {place} on change what is predicted before them",
                           "look for a layer that reads backwards, or a mask of attention that does not hide later "
                           "symbols")
    return Finding(FUTURE, OK, f"other symbols at the end of {length} change nothing before them")


def outputs_of(pair: Pair, batch: Any) -> Sequence[Tensor]:
    """In evaluation mode, one for each sample."""
    pair.task.eval()
    with torch.no_grad():
        outputs: Sequence[Tensor] = pair.kind.outputs(pair.task, batch)
    return outputs


def differs(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return True
    if not one.numel():
        return False
    return bool((one - other).abs().max() > TOLERANCE * one.abs().max().clamp_min(1e-6))
