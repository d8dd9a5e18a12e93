"""Turns a ClassificationBatch into a loss using any model from images to class logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.augment.pipeline import Augment
from dltrain.batches import IGNORED_LABEL, ClassificationBatch, generator
from dltrain.contracts import Classifier, auxiliary_weight
from dltrain.drawing.captions import draw_caption
from dltrain.drawing.images import arrange
from dltrain.errors import UserError, suggest
from dltrain.tasks.freezing import FreezingKeys
from dltrain.tasks.image_forms import ClassificationForm
from dltrain.tasks.images import AUGMENTED_SHOWN, ImageTask
from dltrain.tasks.multiclass import ConfusionMatrix, TopAccuracies, accuracy, of_each_class, predict_labels, scored
from dltrain.tasks.task import Figure, Input, Prediction, TaskKeys

MOST_COUNTED = 20_000  # samples of the training split that are read to count classes, where the data cannot tell
IMAGES_SHOWN = 32  # of an evaluation
LABELLED_PX = 72  # least side of an image above its label


class Classification(ImageTask[Classifier, ClassificationBatch]):
    """Cross-entropy over one label per image.

    In training a model may return (logits, logits of an auxiliary classifier, ...): the cross-entropies of the latter
    count `model.auxiliary_weight` times in the loss (C. Szegedy et al., 2014, arXiv 1409.4842, section 5).

    Metrics: train/, val/ and test/ loss (nats per image) and accuracy. The training metrics are of augmented images,
    and of smoothed and weighted classes. val/ and test/ accuracy_topK for each K of `top_k`; test/ also precision,
    recall and f1 of each class, as test/recall/NAME.

    Raises ValueError for a transform that mixes labels of another number of classes."""

    batch_type = ClassificationBatch
    headline, training_metrics = "val/accuracy", ("loss", "accuracy")

    def __init__(self, model: Classifier, augment: Augment, num_classes: int, label_smoothing: float = 0.0,
                 balance_classes: bool = False, class_weights: Mapping[str, float] | None = None,
                 top_k: Sequence[int] = (), freezing: FreezingKeys | None = None, **keys: Unpack[TaskKeys]):
        super().__init__(model, augment, freezing, **keys)
        self.num_classes = num_classes
        self.class_loss = ClassLoss(num_classes, label_smoothing, balance_classes, class_weights)
        self.metrics = ConfusionMatrix(num_classes)
        self.top_accuracies = TopAccuracies(num_classes, top_k)
        for name, transform in augment.transforms.items():
            if transform.num_classes not in (None, num_classes):
                raise ValueError(f"augment.{name}: num_classes must be {num_classes}, that of the data, but is "
                                 f"{transform.num_classes}; write ${{data.num_classes}}")

    def fit_statistics(self, data: Any) -> None:
        super().fit_statistics(data)
        self.class_loss.fit(data, lambda batch: batch.labels)

    def check(self, batch: ClassificationBatch) -> None:
        batch.check(self.num_classes)
        logits, expected = self(batch.images), (batch.size, self.num_classes)
        if tuple(logits.shape) != expected:
            raise UserError(f"it must return logits {expected} for {batch.size} images, but returns "
                            f"{tuple(logits.shape)}")

    def check_training(self, batch: ClassificationBatch) -> None:
        self.model(self.augment.normalize(batch.images))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 pixels (B, C, H, W) to logits, or log-probabilities, (B, num_classes), as in evaluation."""
        classify = cast(Callable[[Tensor], Tensor], self.model)  # no auxiliary logits in evaluation mode
        return self.augment.test_views(classify, self.augment.normalize(images))

    def training_step(self, batch: ClassificationBatch, batch_idx: int) -> Tensor:
        images, labels = self.augment(batch, generator("augment", *self.position))
        output = self.model(images)
        logits, *auxiliary = output if isinstance(output, tuple) else (output,)
        loss = self.class_loss.mean(logits, labels)
        for other in auxiliary:
            loss = loss + auxiliary_weight(self.model) * self.class_loss.mean(other, labels)
        count = len(labels)
        self.step_sums.append((loss.detach() * count, num_correct(logits.argmax(1), labels), count))
        return loss

    def evaluation_step(self, batch: ClassificationBatch, batch_idx: int = 0) -> Tensor:
        logits = self(batch.images)
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

    def training_figures(self, batch: ClassificationBatch) -> dict[str, Figure]:
        """Images as the model sees them, above their labels; of mixed samples above the two largest shares."""
        images, labels = self.augmented(batch)
        pictures = []
        for image, label in zip(images[:AUGMENTED_SHOWN], labels, strict=False):
            pixels = self.augment.normalize.invert(image[None])[0].cpu()
            pictures.append(draw_caption(pixels, [self.describe(label)], least_px=LABELLED_PX))
        return {"augmented_batch": arrange(pictures, columns=8)}

    def describe(self, label: Tensor) -> str:
        if label.dim() == 0:
            return self.class_name(int(label))
        shares, classes = label.topk(min(2, len(label)))
        return ", ".join(f"{self.class_name(index)} {share:.2f}" for share, index in
                         zip(shares.tolist(), classes.tolist(), strict=True) if share > 0)

    def figures(self, batch: ClassificationBatch, outputs: Tensor) -> dict[str, Figure]:
        """The first images, with the predicted class and its probability: green where it is right, else red, above the
        true class."""
        probabilities, predicted = outputs[:IMAGES_SHOWN].float().softmax(1).max(1)
        pictures = []
        for image, label, guess, probability in zip(batch.images, batch.labels.tolist(), predicted.tolist(),
                                                    probabilities.tolist(), strict=False):
            if label != IGNORED_LABEL:
                pictures.append(draw_caption(image.cpu(), [f"{self.class_name(guess)} {probability:.0%}"],
                                             [] if guess == label else [self.class_name(label)],
                                             least_px=LABELLED_PX, colour="green" if guess == label else "red"))
        return {"truth_and_prediction": arrange(pictures, columns=8)} if pictures else {}

    def summary_figures(self) -> dict[str, Figure]:
        return self.metrics.figures(self.class_names)

    def export_form(self) -> ClassificationForm:
        return ClassificationForm(self)

    def predict(self, inputs: Sequence[Input], data: object, **options: object) -> Iterator[Prediction]:
        """The five most probable labels of each image."""
        return predict_labels(inputs, self.class_names, "file",
                              lambda images: self(torch.stack(images).to(self.device)))


def num_correct(predictions: Tensor, labels: Tensor) -> Tensor:
    """How many predicted classes are right; of mixed labels (B, num_classes), the share of the predicted class."""
    if labels.dim() == 2:
        return labels.gather(1, predictions[:, None]).sum()
    return (predictions == labels).count_nonzero()


class CountedClasses(Protocol):
    """What is needed of the data."""

    class_names: Sequence[str]

    def class_counts(self) -> dict[str, int]:
        """Training samples by class; empty where they would have to be read."""

    def num_samples(self, split: str) -> int: ...

    def read(self, split: str, batches: list[Tensor]) -> Iterator[Any]: ...


class ClassLoss(nn.Module):
    """The mean, over the samples, of the weight of the class times the cross-entropy. With `balanced`, a class of n of
    all N training samples, of K classes, has the weight N / (K n), so that the mean weight is 1; `by_name`: factors of
    single classes, beside that. torch's own mean divides by the sum of the weights instead of by the number of samples.

    `smoothing`: the share of each target that is spread over all classes (C. Szegedy et al., 2015, arXiv 1512.00567,
    section 7). Targets equal to `ignored` are not scored. Only training is smoothed and weighted: the losses val/ and
    test/ are plain. `background`: which of K + 1 logits of a detector is that of no object; its weight is 1.

    Raises ValueError for weights that are no finite numbers of at least 0."""

    weights: Tensor | None

    def __init__(self, num_classes: int, smoothing: float = 0.0, balanced: bool = False,
                 by_name: Mapping[str, float] | None = None, ignored: int = IGNORED_LABEL,
                 background: int | None = None):
        super().__init__()
        self.background = background
        self.num_classes, self.smoothing, self.balanced = num_classes, smoothing, balanced
        self.by_name, self.ignored = {str(name): weight for name, weight in (by_name or {}).items()}, ignored
        if any(type(weight) not in (int, float) or not 0 <= weight < float("inf") for weight in self.by_name.values()):
            raise ValueError(f"class_weights must be numbers of at least 0, but are {self.by_name}")
        count = num_classes + (background is not None)
        self.register_buffer("weights", torch.ones(count) if balanced or self.by_name else None)

    @property
    def is_plain(self) -> bool:
        """Whether it is the mean cross-entropy."""
        return self.weights is None and not self.smoothing

    def fit(self, data: CountedClasses, targets: Callable[[Any], Tensor]) -> None:
        """Sets the weights before the first step. `targets`: the classes in a batch. Raises UserError for a name that
        no class has."""
        if self.weights is None:
            return
        names = list(data.class_names)
        for name in self.by_name:
            if name not in names:
                raise UserError(f"task.class_weights.{name}: no class has this name{suggest(name, names)}; there are: "
                                f"{', '.join(names[:10])}")
        factors = torch.tensor([float(self.by_name.get(name, 1)) for name in names])
        if self.balanced:
            counts = self.count(data, targets)
            factors *= torch.where(counts > 0, counts.sum() / (self.num_classes * counts.clamp_min(1)), 0.0).float()
        if self.background is not None:
            factors = torch.cat([factors[: self.background], torch.ones(1), factors[self.background :]])
        self.weights.copy_(factors)

    def count(self, data: CountedClasses, targets: Callable[[Any], Tensor]) -> Tensor:
        """(K,): how many training targets are of each class."""
        if counts := data.class_counts():
            return torch.tensor([counts[name] for name in data.class_names], dtype=torch.float64)
        indices = torch.arange(min(data.num_samples("train"), MOST_COUNTED)).split(64)
        return count_targets(map(targets, data.read("train", [*indices])), self.num_classes, self.ignored)

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (N, K) and classes (N,), or probabilities of the classes (N, K), to the mean over the scored ones."""
        if self.weights is None:
            return F.cross_entropy(logits, targets, ignore_index=self.ignored, label_smoothing=self.smoothing)
        count = len(targets) if targets.is_floating_point() else (targets != self.ignored).sum().clamp_min(1)
        return self.total(logits, targets) / count

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (N, K, ...) and classes (N, ...) to the sum over the scored ones. On a GPU the kernel that adds up by
        itself has no fixed order, which a deterministic run refuses."""
        keys: dict[str, Any] = {"weight": self.weights, "label_smoothing": self.smoothing, "ignore_index": self.ignored}
        if logits.is_cpu:
            return F.cross_entropy(logits, targets, reduction="sum", **keys)
        return F.cross_entropy(logits, targets, reduction="none", **keys).sum()


def count_targets(batches: Iterable[Tensor], num_classes: int, ignored: int) -> Tensor:
    counts = torch.zeros(num_classes, dtype=torch.float64)
    for targets in batches:
        counts += torch.bincount(targets[targets != ignored].flatten(), minlength=num_classes)
    return counts
