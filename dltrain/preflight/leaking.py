"""Samples of one split that are in another one too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dltrain.preflight.contents import Contents
from dltrain.preflight.findings import FAULT, OK, SKIPPED, WARNING, Finding
from dltrain.preflight.pair import Pair

CHECK = "leaks"
NEAR = 0.999  # correlation of two grey copies
FEW = 0.01  # share of a split: fewer equal images are a warning, fewer equal texts are what texts are like
PASSAGE = 50  # symbols of running text that are compared
MOST_SYMBOLS = 4_000_000  # of running text
COPIED = 0.1  # share of the passages of a text
PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))
ADVICE = "take them out of one of the two splits, or what is measured is memory"


def find_leaks(pair: Pair, contents: Mapping[str, Contents]) -> Finding:
    if pair.data.leaks:
        return Finding(CHECK, FAULT, "; ".join(pair.data.leaks))
    if pair.kind.is_stream:
        return find_copied_text(pair)
    if not all(of_split.count for of_split in contents.values()):
        return Finding(CHECK, SKIPPED, "the samples of this kind cannot be compared")
    status, figures = OK, []
    for split, other in PAIRS:
        same = count_equal(contents[split], contents[other])
        near = count_near(contents[split], contents[other]) - same
        if same or near > 0:
            share = max(same, near) / contents[split].count
            status = FAULT if share > FEW or status == FAULT else WARNING if "images" in pair.kind.inputs else status
            almost = f" and {near:,} nearly" if near > 0 else ""
            figures.append(f"{same:,}{almost} of {contents[split].count:,} {split} samples are in {other} too")
    compared = ", ".join(f"{one.count:,}{f' of {one.total:,}' if one.count < one.total else ''} {split}"
                         for split, one in contents.items())
    return Finding(CHECK, status, "; ".join(figures) or f"no sample is in two splits; compared: {compared}",
                   ADVICE if status != OK else "")


def count_equal(one: Contents, other: Contents) -> int:
    known = {*other.digests}
    return sum(digest in known for digest in one.digests)


def count_near(one: Contents, other: Contents) -> int:
    """How many images have one of the same content, up to brightness, contrast and noise, in the other split."""
    if not one.copies.numel() or not other.copies.numel():
        return 0
    known = other.copies.T
    return sum(int((some @ known).amax(1).gt(NEAR).sum()) for some in one.copies.split(256))


def find_copied_text(pair: Pair) -> Finding:
    """Running text is not divided into samples: passages of it are compared."""
    texts = {split: symbols_of(pair.data, split) for split in ("train", "val", "test")}
    if any(len(text) < PASSAGE for text in texts.values()):
        return Finding(CHECK, SKIPPED, f"a split has fewer than {PASSAGE} symbols")
    known = np.unique(passages(texts["train"]))
    shares = {split: float(np.isin(passages(texts[split])[::PASSAGE], known).mean()) for split in ("val", "test")}
    figure = ", ".join(f"{share:.1%} of {split}" for split, share in shares.items())
    is_copied = max(shares.values()) > COPIED
    return Finding(CHECK, FAULT if is_copied else OK,
                   f"passages of {PASSAGE} symbols that are in train too: {figure}", ADVICE if is_copied else "")


def symbols_of(data: Any, split: str) -> NDArray[np.int64]:
    """The running text of a split, stream after stream."""
    indices = torch.arange(data.num_samples(split)).split(1)
    windows = [batch.tokens for batch in data.read(split, [*indices])]
    text: NDArray[np.int64] = torch.cat(windows, 1).flatten()[:MOST_SYMBOLS].numpy()
    return text


def passages(text: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number for each PASSAGE symbols in a row, equal for equal ones: a polynomial modulo 2^64."""
    values = text.astype(np.uint64) + np.uint64(1)
    result = np.zeros(len(text) - PASSAGE + 1, np.uint64)
    for place in range(PASSAGE):
        result = result * np.uint64(0x9E3779B97F4A7C15) + values[place : len(result) + place]
    return result
