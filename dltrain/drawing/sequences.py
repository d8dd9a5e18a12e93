"""Sequences of symbols as lines of text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby

from dltrain.batches import END

LINES = 16  # samples of a batch
CHARACTERS = 100  # of a sample


def are_words(symbols: Sequence[str]) -> bool:
    """Whether a vocabulary is of words, not of characters; its special symbols do not tell."""
    return any(len(symbol) > 1 for symbol in symbols[END + 1 :])


def join_symbols(indices: Sequence[int], symbols: Sequence[str]) -> str:
    """The text of these indices: words with blanks between them, or characters in quotes, so that each is seen. The
    indices themselves where the data have no symbols."""
    if not symbols:
        return " ".join(map(str, indices))
    if are_words(symbols):
        return " ".join(symbols[index] for index in indices)
    return json.dumps("".join(symbols[index] for index in indices), ensure_ascii=False)


def join_tagged(indices: Sequence[int], tags: Sequence[str], symbols: Sequence[str]) -> str:
    """word/TAG word/TAG, or stretches of characters of one tag."""
    if not symbols or are_words(symbols):
        return " ".join(f"{join_symbols([index], symbols)}/{tag}" for index, tag in zip(indices, tags, strict=True))
    stretches = [(tag, [index for index, _ in run])
                 for tag, run in groupby(zip(indices, tags, strict=True), key=lambda pair: pair[1])]
    return " ".join(f"{join_symbols(stretch, symbols)}/{tag}" for tag, stretch in stretches)
