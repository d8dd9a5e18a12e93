"""Metrics of labels in [0, num_classes), and how predictions of one label are presented."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dltrain.batches import IGNORED_LABEL
from dltrain.drawing.confusion import draw_confusion
from dltrain.tasks.task import Figure, Input, Prediction

MAX_PROBABILITIES, PREDICT_BATCH_SIZE, MAX_CHARACTERS = 5, 64, 60


class ConfusionMatrix(nn.Module):
    """Counts (true class, predicted class) over an evaluation. Labels equal to `ignored` are not counted."""

    counts: Tensor

    def __init__(self, num_classes: int, ignored: int = IGNORED_LABEL):
        super().__init__()
        self.num_classes, self.ignored = num_classes, ignored
        self.register_buffer("counts", torch.zeros(num_classes, num_classes, dtype=torch.long), persistent=False)
        self.last: Tensor | None = None  # (num_classes, num_classes), row = true class, of the last evaluation

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Logits (N, num_classes, ...) or classes (N, ...), and labels (N, ...) of one per prediction."""
        classes = predictions.argmax(1) if predictions.dim() > labels.dim() else predictions
        places = torch.where(labels == self.ignored, self.counts.numel(), labels * self.num_classes + classes)
        counts = torch.bincount(places.flatten(), minlength=self.counts.numel() + 1)
        self.counts += counts[:-1].view_as(self.counts)

    def compute(self, sum_over_processes: Callable[[Tensor], Tensor]) -> Tensor:
        """The matrix of what was added, over all processes; starts anew."""
        matrix = sum_over_processes(self.counts.clone())
        self.last = matrix.cpu()
        self.counts.zero_()
        return matrix

    def figures(self, class_names: Sequence[str]) -> dict[str, Figure]:
        return {"confusion": draw_confusion(self.last, class_names)} if self.last is not None else {}


class TopAccuracies(nn.Module):
    """The share of labels that are among the k most probable classes, over an evaluation. Labels equal to
    IGNORED_LABEL are not counted. Raises ValueError for a k that is no number in [1, num_classes)."""

    hits: Tensor

    def __init__(self, num_classes: int, ks: Sequence[int]):
        super().__init__()
        self.ks = list(ks)
        for k in self.ks:
            if type(k) is not int or not 1 <= k < num_classes:
                raise ValueError(f"top_k must have integers from 1 to {num_classes - 1}, but has {k}")
        self.register_buffer("hits", torch.zeros(len(self.ks) + 1, dtype=torch.long), persistent=False)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Logits (N, K) and labels (N,)."""
        if self.ks:
            places = logits.topk(max(self.ks), 1).indices == labels[:, None]
            self.hits += torch.stack([*(places[:, :k].sum() for k in self.ks), (labels != IGNORED_LABEL).sum()])

    def compute(self, sum_over_processes: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """By name, such as accuracy_top5; starts anew."""
        if not self.ks:
            return {}
        *hits, count = sum_over_processes(self.hits.clone())
        self.hits.zero_()
        return {f"accuracy_top{k}": hit / count for k, hit in zip(self.ks, hits, strict=True)}


def of_each_class(matrix: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """precision/NAME, recall/NAME and f1/NAME from counts (K, K), row = true class; a class that occurs neither in the
    truth nor in the predictions has none, nor has one without samples a recall, or without predictions a precision."""
    matrix = matrix.double()
    right, true, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    values = {"precision": right / predicted, "recall": right / true, "f1": 2 * right / (true + predicted)}
    return {f"{metric}/{name}": value.float() for metric, row in values.items()
            for name, value in zip(names, row, strict=False) if not value.isnan()}


def accuracy(matrix: Tensor) -> Tensor:
    return matrix.diag().sum() / matrix.sum()


def scored(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The class logits (N, K) and the labels (N,) of those that are scored."""
    kept = labels != IGNORED_LABEL
    return logits[kept], labels[kept]


def predict_labels(inputs: Sequence[Input], names: Sequence[str], kind: str, logits: Callable[[list], Tensor]
                   ) -> Iterator[Prediction]:
    """The most probable labels of each input. `kind`: the field of predictions.json that names the input, `file` or
    `text`; `logits`: from loaded inputs to (N, num_classes)."""
    titles = [Path(item.name).name if kind == "file" else shorten(item.name) for item in inputs]
    width = max(map(len, titles), default=0)
    for start in range(0, len(inputs), PREDICT_BATCH_SIZE):
        chunk = inputs[start : start + PREDICT_BATCH_SIZE]
        with torch.inference_mode():
            probabilities = logits([item.load() for item in chunk]).float().softmax(1).cpu()
        for item, title, row in zip(chunk, titles[start:], probabilities, strict=False):
            top = row.topk(min(MAX_PROBABILITIES, len(names)))
            labels = [{"label": names[index], "probability": round(value, 6)}
                      for value, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
            line = "  ".join(f"{label['label']} {label['probability']:.1%}" for label in labels)
            yield Prediction(item.name, [f"{title:<{width}}  {line}"], records=[{kind: item.name, "top": labels}])


def shorten(text: str) -> str:
    return text if len(text) < MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."
