"""What `predict` takes and gives, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image
from rich.text import Text


@dataclass
class Input:
    """One input of `predict`: a picture file or a text. `load` gives an image (C, H, W) uint8, or the text. `output`:
    the name, without a suffix, of what is drawn of it."""

    name: str
    load: Callable[[], Any]
    output: str = ""


@dataclass
class Prediction:
    """What a task predicts for one input.

    `pieces` of text are printed one by one, as soon as there is one; `styled` is the same in colour, for a terminal.
    `records` are added to predictions.json. `pictures`, by suffix, are saved as <output of the input><suffix>.png."""

    name: str
    pieces: Iterable[str]
    styled: Text | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, Image] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All pieces together."""
        return "".join(self.pieces)
