"""Turns TaggedBatches into a loss using any model from a sequence to class logits of each symbol: many to many."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, groupby, islice
from typing import Any, Protocol, Unpack

import torch
import torch.nn.functional as F
from rich.text import Text
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, TaggedBatch
from dltrain.contracts import InputEncoder, SequenceModel
from dltrain.drawing.sequences import CHARACTERS, LINES, join_tagged
from dltrain.errors import UserError
from dltrain.tasks.classification import ClassLoss
from dltrain.tasks.multiclass import ConfusionMatrix, accuracy, of_each_class, scored
from dltrain.tasks.task import Figure, Input, Prediction, Task, TaskKeys
from dltrain.tasks.text_forms import SequenceForm

COLOURS = ("white", "cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta",
           "bright_green", "bright_yellow", "bright_blue", "bright_red", "bright_black")


class TaggedText(InputEncoder[str, TaggedBatch], Protocol):
    """The data. `reads_whole_files`: symbols are characters, and a file is one text."""

    @property
    def reads_whole_files(self) -> bool: ...

    def tokenize(self, text: str) -> list[str]: ...


class Tagging(Task[SequenceModel, TaggedBatch]):
    """Cross-entropy over one label per symbol.

    Metrics: train/, val/ and test/ loss (nats per symbol) and accuracy over the symbols."""

    batch_type = TaggedBatch
    unit = "symbols"
    headline, training_metrics = "val/accuracy", ("loss", "accuracy")

    def __init__(self, model: SequenceModel, num_classes: int, label_smoothing: float = 0.0,
                 balance_classes: bool = False, class_weights: Mapping[str, float] | None = None,
                 **keys: Unpack[TaskKeys]):
        super().__init__(model, **keys)
        self.num_classes = num_classes
        self.class_loss = ClassLoss(num_classes, label_smoothing, balance_classes, class_weights)
        self.metrics = ConfusionMatrix(num_classes)

    def count(self, batch: TaggedBatch) -> int:
        return sum(batch.lengths)

    def fit_statistics(self, data: Any) -> None:
        self.class_loss.fit(data, lambda batch: batch.tags)

    def check(self, batch: TaggedBatch) -> None:
        batch.check(self.num_classes)
        logits, expected = self(batch), (*batch.tags.shape, self.num_classes)
        if tuple(logits.shape) != expected:
            raise UserError(f"it must return logits {expected}, but returns {tuple(logits.shape)}")

    def forward(self, batch: TaggedBatch) -> Tensor:
        """Logits (B, T, num_classes)."""
        return self.model(batch.tokens, batch.lengths)

    def training_step(self, batch: TaggedBatch, batch_idx: int) -> Tensor:
        logits, tags = self(batch).flatten(0, 1), batch.tags.flatten()
        loss = self.class_loss.mean(logits, tags)
        count = (tags != IGNORED_LABEL).sum()
        self.step_sums.append((loss.detach() * count, (logits.argmax(1) == tags).sum(), count))
        return loss

    def evaluation_step(self, batch: TaggedBatch, batch_idx: int) -> None:
        logits, tags = self(batch).flatten(0, 1), batch.tags.flatten()
        self.metrics.update(logits, tags)
        if self.own_metrics:
            self.update_own_metrics(*scored(logits, tags))
        self.add_loss(F.cross_entropy(logits, tags, reduction="sum", ignore_index=IGNORED_LABEL),
                      (tags != IGNORED_LABEL).sum())

    def evaluation_end(self, split: str) -> None:
        matrix = self.metrics.compute(self.reduce_sum)
        values = {"accuracy": accuracy(matrix), "loss": self.mean_loss()}
        if split == "test":
            values |= of_each_class(matrix, self.class_names)
        self.log_metrics(split, values)

    def training_figures(self, batch: TaggedBatch) -> dict[str, Figure]:
        """The first sequences, cut off, with the tag after each word or stretch of characters."""
        lines, rows = [], zip(batch.tokens.tolist(), batch.tags.tolist(), batch.lengths, strict=True)
        for tokens, tags, length in islice(rows, LINES):
            end = min(length, CHARACTERS)
            names = [self.class_name(tag) for tag in tags[:end]]
            lines.append(join_tagged(tokens[:end], names, self.vocabularies.get("text", [])))
        return {"batch": "\n".join(lines)}

    def summary_figures(self) -> dict[str, Figure]:
        return self.metrics.figures(self.class_names)

    def export_form(self) -> SequenceForm:
        return SequenceForm(self, per_symbol=True)

    def predict(self, inputs: Sequence[Input], data: TaggedText, **options: object) -> Iterator[Prediction]:
        """The tag of each symbol: one line per word or, for characters, one line per stretch of equal tags; in a
        terminal the text coloured by tag, with a legend at the end."""
        styles = dict(zip(self.class_names, cycle(COLOURS), strict=False))
        glue = Text("" if data.reads_whole_files else " ")
        for number, item in enumerate(inputs):
            text = item.load()
            with torch.inference_mode():
                tags = self(self.encode([text], data))[0].argmax(1).tolist()
            pieces = list(zip(data.tokenize(text), (self.class_names[tag] for tag in tags), strict=True))
            if data.reads_whole_files:
                pieces = [("".join(symbol for symbol, _ in run), name)
                          for name, run in groupby(pieces, key=lambda piece: piece[1])]
            line = "\n".join(f"{json.dumps(piece, ensure_ascii=False) if data.reads_whole_files else piece}\t{name}"
                             for piece, name in pieces)
            styled = glue.join(Text(piece, styles[name]) for piece, name in pieces)
            if number == len(inputs) - 1:
                styled = styled + "\n" + Text("  ").join(Text(name, styles[name]) for name in self.class_names)
            record = {"text": text, "tags": [[piece, name] for piece, name in pieces]}
            yield Prediction(item.name, [line], styled, [record])
