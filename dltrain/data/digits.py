"""1,797 real handwritten digits, 8x8 grey, embedded in scikit-learn: E. Alpaydin, C. Kaynak, 1998 (UCI "optdigits")."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, LabelledBatch
from dltrain.data.classification import InMemoryImages, Split
from dltrain.data.datamodule import DataKeys, DataModule
from dltrain.image_files import ImageSource

NUM_TEST, NUM_VAL = 360, 180
CSV = "sklearn/datasets/data/digits.csv.gz"  # a line for each digit: 64 grey values and the label


def read_digits() -> dict[str, Split]:
    """Returns 1,257 training, 180 validation and 360 test digits, stratified, the same for every seed. Grey values are
    scaled from [0, 16] to [0, 255]."""
    table = read_table()
    images = torch.from_numpy(table[:, :64] * (255 / 16)).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64].astype(np.int64)
    kept, test = split_stratified(labels, NUM_TEST)
    train, val = split_stratified(labels[kept], NUM_VAL)
    return {split: Split(images[indices], torch.from_numpy(labels[indices])) for split, indices in
            {"train": kept[train], "val": kept[val], "test": test}.items()}


@cache
def read_table() -> NDArray[np.float64]:
    """A row for each digit; nobody changes it."""
    file = Path(str(distribution("scikit-learn").locate_file(CSV)))  # importing scikit-learn takes 0.7 s
    table: NDArray[np.float64] = np.loadtxt(file, delimiter=",")
    table.flags.writeable = False
    return table


def split_stratified(labels: NDArray[np.int64], num_held_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices that are kept and those that are held out, shuffled; each class has the same proportion in both. They
    are those of scikit-learn's train_test_split(stratify=labels, random_state=0)."""
    rng = np.random.RandomState(0)
    sizes = np.bincount(labels)
    num_kept = share_out(sizes, len(labels) - num_held_out, rng)
    num_held = share_out(sizes - num_kept, num_held_out, rng)
    shuffled = [np.flatnonzero(labels == label)[rng.permutation(size)] for label, size in enumerate(sizes)]
    kept = np.concatenate([indices[:n] for indices, n in zip(shuffled, num_kept, strict=True)])
    held_out = np.concatenate([indices[n:n + m] for indices, n, m in zip(shuffled, num_kept, num_held, strict=True)])
    return rng.permutation(kept), rng.permutation(held_out)


def share_out(sizes: NDArray[np.int64], count: int, rng: np.random.RandomState) -> NDArray[np.int64]:
    """`count` as one number for each class, proportional to `sizes`: the largest remainders are rounded up, and among
    equal ones a random choice."""
    exact = sizes / sizes.sum() * count
    numbers = np.floor(exact)
    missing = int(count - numbers.sum())
    for remainder in np.sort(np.unique(exact - numbers))[::-1] if missing else ():
        classes = np.flatnonzero(exact - np.floor(exact) == remainder)
        raised = rng.choice(classes, size=min(len(classes), missing), replace=False)
        numbers[raised] += 1
        missing -= len(raised)
        if not missing:
            break
    return numbers.astype(np.int64)


class Digits(InMemoryImages):
    def load(self) -> None:
        self.splits = read_digits()
        self.class_names = [str(digit) for digit in range(10)]


class DigitsRows(DataModule[LabelledBatch, Tensor]):
    """Each digit as a sequence of its eight rows from top to bottom: 8 steps of 8 grey values in [0, 1]."""

    batch_type = LabelledBatch
    input_kind = "image"

    def __init__(self, *, features: int, vocab_size: None, num_classes: int, **keys: Unpack[DataKeys]):
        super().__init__(**keys)
        self.eval_batch_size = max(self.batch_size, 256)
        self.images = Digits(channels=1, num_classes=num_classes, image_px=features, **keys)

    def load(self) -> None:
        self.images.load()
        self.class_names = self.images.class_names

    def num_samples(self, split: str) -> int:
        return self.images.num_samples(split)

    def read(self, split: str, batches: list[Tensor]) -> Iterator[LabelledBatch]:
        for images, labels in self.images.read(split, batches):
            yield as_rows(images, labels)

    def read_input(self, source: ImageSource) -> Tensor:
        return self.images.read_input(source)

    def encode_inputs(self, inputs: list[Tensor]) -> LabelledBatch:
        return as_rows(torch.stack(inputs), torch.full((len(inputs),), IGNORED_LABEL))

    def write_samples(self, folder: Path) -> str:
        return self.images.write_samples(folder)


def as_rows(images: Tensor, labels: Tensor) -> LabelledBatch:
    """(B, 1, H, W) to B sequences of H steps with W values."""
    rows = images[:, 0].float() / 255
    return LabelledBatch(rows, (rows.shape[1],) * len(rows), labels)
