"""1,797 real handwritten digits, 8x8 grey, embedded in scikit-learn: E. Alpaydin, C. Kaynak, 1998 (UCI "optdigits")."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, LabelledBatch
from dltrain.data.classification import InMemoryImages, Split
from dltrain.data.datamodule import DataKeys, DataModule
from dltrain.image_files import ImageSource

TEST_FRACTION, VAL_FRACTION = 0.2, 0.1  # of all 1,797


def read_digits() -> dict[str, Split]:
    """Returns 1,257 training, 180 validation and 360 test digits, stratified, the same for every seed. Grey values are
    scaled from [0, 16] to [0, 255]."""
    source = load_digits()
    images = torch.from_numpy(source.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(source.target).long()
    kept, test = train_test_split(range(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=0)
    val_fraction = VAL_FRACTION / (1 - TEST_FRACTION)
    train, val = train_test_split(kept, test_size=val_fraction, stratify=labels[kept], random_state=0)
    return {split: Split(images[indices], labels[indices]) for split, indices in
            {"train": train, "val": val, "test": test}.items()}


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
