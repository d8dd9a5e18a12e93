"""All faults of a person's files at once, not one a start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from dltrain.errors import DataError, FaultyData

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def refuse(faults: Sequence[str], summary: str) -> None:
    """Raises DataError for one fault, FaultyData with `summary` for several, nothing for none."""
    if len(faults) == 1:
        raise DataError(faults[0])
    if faults:
        raise FaultyData(summary, faults)


def read_each(items: Sequence[ItemT], read: Callable[[ItemT], ResultT], noun: str) -> list[ResultT]:
    """What `read` returns of each item. Raises DataError with all the faults that it raises. `noun`: of the items."""
    results, faults = [], []
    for item in items:
        try:
            results.append(read(item))
        except DataError as error:
            faults.append(str(error))
    refuse(faults, f"{len(faults)} of {len(items)} {noun} have faults")
    return results
