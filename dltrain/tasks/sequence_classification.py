"""Turns LabelledBatches into a loss using any model from a sequence to class logits: many to one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, LabelledBatch
from dltrain.contracts import InputEncoder, SequenceModel
from dltrain.drawing.captions import draw_caption
from dltrain.drawing.images import arrange
from dltrain.drawing.sequences import CHARACTERS, LINES, join_symbols
from dltrain.errors import UserError
from dltrain.tasks.classification import ClassLoss
from dltrain.tasks.multiclass import ConfusionMatrix, TopAccuracies, accuracy, of_each_class, predict_labels, scored
from dltrain.tasks.task import Figure, Input, Prediction, Task, TaskKeys
from dltrain.tasks.text_forms import SequenceForm

ROWS_PX = 72  # least side of a sequence of vectors, drawn as a picture


class SequenceClassification(Task[SequenceModel, LabelledBatch]):
    """Cross-entropy over one label per sequence.

    Metrics: train/, val/ and test/ loss (nats per sequence) and accuracy."""

    batch_type = LabelledBatch
    unit = "sequences"
    headline, training_metrics = "val/accuracy", ("loss", "accuracy")

    def __init__(self, model: SequenceModel, num_classes: int, label_smoothing: float = 0.0,
                 balance_classes: bool = False, class_weights: Mapping[str, float] | None = None,
                 top_k: Sequence[int] = (), **keys: Unpack[TaskKeys]):
        super().__init__(model, **keys)
        self.num_classes = num_classes
        self.class_loss = ClassLoss(num_classes, label_smoothing, balance_classes, class_weights)
        self.metrics = ConfusionMatrix(num_classes)
        self.top_accuracies = TopAccuracies(num_classes, top_k)

    def fit_statistics(self, data: Any) -> None:
        self.class_loss.fit(data, lambda batch: batch.labels)

    def check(self, batch: LabelledBatch) -> None:
        batch.check(self.num_classes)
        logits, expected = self(batch), (batch.size, self.num_classes)
        if tuple(logits.shape) != expected:
            raise UserError(f"it must return logits {expected}, but returns {tuple(logits.shape)}")

    def forward(self, batch: LabelledBatch) -> Tensor:
        """Logits (B, num_classes)."""
        return self.model(batch.tokens, batch.lengths)

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        logits, labels = self(batch), batch.labels
        loss = self.class_loss.mean(logits, labels)
        count = (labels != IGNORED_LABEL).sum()
        self.step_sums.append((loss.detach() * count, (logits.argmax(1) == labels).sum(), count))
        return loss

    def evaluation_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        logits = self(batch)
        self.metrics.update(logits, batch.labels)
        self.top_accuracies.update(logits, batch.labels)
        if self.own_metrics:
            self.update_own_metrics(*scored(logits, batch.labels))
        self.add_loss(F.cross_entropy(logits, batch.labels, reduction="sum", ignore_index=IGNORED_LABEL),
                      (batch.labels != IGNORED_LABEL).sum())
        return logits

    def evaluation_end(self, split: str) -> None:
        matrix = self.metrics.compute(self.reduce_sum)
        values = {"accuracy": accuracy(matrix), "loss": self.mean_loss()}
        values |= self.top_accuracies.compute(self.reduce_sum)
        if split == "test":
            values |= of_each_class(matrix, self.class_names)
        self.log_metrics(split, values)

    def training_figures(self, batch: LabelledBatch) -> dict[str, Figure]:
        """The label and the text, cut off, of the first sequences; vectors are drawn as the rows of a picture."""
        return {"batch": self.describe(batch, [self.class_name(label) for label in batch.labels[:LINES].tolist()])}

    def figures(self, batch: LabelledBatch, outputs: Tensor) -> dict[str, Figure]:
        """The first sequences with the predicted class and, where it is another one, the true class."""
        pairs = zip(batch.labels[:LINES].tolist(), outputs.argmax(1).tolist(), strict=False)
        return {"truth_and_prediction": self.describe(batch, [
            self.class_name(guess) + ("" if guess == label else f" (is {self.class_name(label)})")
            for label, guess in pairs])}

    def describe(self, batch: LabelledBatch, names: Sequence[str]) -> Figure:
        """The first sequences, each with a name."""
        if batch.tokens.is_floating_point():
            low, high = batch.tokens.min(), batch.tokens.max()
            pixels = ((batch.tokens - low) / (high - low).clamp_min(1e-9) * 255).to(torch.uint8).cpu()
            return arrange([draw_caption(rows[None, :length], [name], least_px=ROWS_PX)
                            for rows, length, name in zip(pixels, batch.lengths, names, strict=False)], 8)
        rows = zip(batch.tokens.tolist(), batch.lengths, names, strict=False)
        symbols = self.vocabularies.get("text", [])
        return "\n".join(f"{name}\t{join_symbols(tokens[: min(length, CHARACTERS)], symbols)}"
                         for tokens, length, name in rows)

    def summary_figures(self) -> dict[str, Figure]:
        return self.metrics.figures(self.class_names)

    def export_form(self) -> SequenceForm:
        return SequenceForm(self, per_symbol=False)

    def predict(self, inputs: Sequence[Input], data: InputEncoder[Any, LabelledBatch], **options: object
                ) -> Iterator[Prediction]:
        """The five most probable labels of each text, or of each picture where the data read those as sequences."""
        kind = "text" if data.input_kind == "text" else "file"
        return predict_labels(inputs, self.class_names, kind,
                              lambda items: self(self.encode(items, data)))
