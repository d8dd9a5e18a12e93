"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN through torchvision's own classes, which check their checksums."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torchvision import datasets

from dltrain.data.classification import ImageKeys, InMemoryImages, Split
from dltrain.data.download import download_dataset
from dltrain.data.splits import stratified_indices
from dltrain.errors import DataError

# where torchvision looks, below root; and where the files come from (as the pages of the data sets say)
PLACES = {
    "MNIST": ("MNIST/raw", "train-images-idx3-ubyte and three more", datasets.MNIST.mirrors[-1]),
    "FashionMNIST": ("FashionMNIST/raw", "train-images-idx3-ubyte and three more", datasets.FashionMNIST.mirrors[0]),
    "CIFAR10": ("cifar-10-batches-py", "data_batch_1 to 5 and test_batch", datasets.CIFAR10.url),
    "CIFAR100": ("cifar-100-python", "train and test", datasets.CIFAR100.url),
    "SVHN": ("", "train_32x32.mat and test_32x32.mat", datasets.SVHN.split_list["train"][0]),
}


class TorchvisionImages(InMemoryImages):
    """A data set by the name of its class in torchvision.datasets, `source`. A stratified validation split of `num_val`
    images is held out of the training split (He et al. 2015 on CIFAR: 45k / 5k); of the others `num_train` are trained
    on, None for all; the test split is torchvision's."""

    def __init__(self, *, source: str, root: str, num_val: int, num_train: int | None = None, download: bool = True,
                 **keys: Unpack[ImageKeys]):
        super().__init__(**keys)
        self.num_train = num_train
        self.source, self.root, self.num_val, self.download = source, Path(root).expanduser(), num_val, download

    def load(self) -> None:
        images, labels = self.read_split("train")
        if not 0 < self.num_val < len(labels):
            raise DataError(f"data.num_val={self.num_val}: must be above 0 and below the {len(labels):,} training "
                            "images")
        val = stratified_indices(labels, self.num_val)
        train = torch.ones(len(labels), dtype=torch.bool).scatter_(0, val, False).nonzero().flatten()
        if self.num_train is not None:
            if not self.num_train <= len(train):
                raise DataError(f"data.num_train={self.num_train}: must be at most the {len(train):,} training images "
                                "that are not held out for validation")
            train = train[stratified_indices(labels[train], self.num_train)]
        self.splits = {"train": Split(images[train], labels[train]), "val": Split(images[val], labels[val]),
                       "test": self.read_split("test")}

    def read_split(self, split: str) -> Split:
        """Reads a split and sets `class_names`. Downloads missing files if `download` allows it."""
        construct = partial(getattr(datasets, self.source), self.root,
                            **{"split": split} if self.source == "SVHN" else {"train": split == "train"})
        place, files, url = PLACES[self.source]
        try:
            source = construct(download=False)
        except RuntimeError:
            source = download_dataset(
                partial(construct, download=True), self.source, self.root,
                f"put {url} unpacked into {self.root / place} ({files}), or set data.root; data=digits needs no "
                "download", self.download)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{self.root}: {self.source} cannot be read: {error}") from error
        pixels = torch.as_tensor(np.asarray(source.data))
        if pixels.dim() == 3:  # (N, H, W)
            pixels = pixels.unsqueeze(1)
        elif pixels.shape[3] == 3:  # (N, H, W, 3)
            pixels = pixels.permute(0, 3, 1, 2)
        labels = source.labels if self.source == "SVHN" else source.targets
        names = map(str, range(10)) if self.source == "SVHN" else source.classes
        self.class_names = [name.partition(" - ")[0] for name in names]
        return Split(pixels.contiguous(), torch.as_tensor(np.asarray(labels)).long())
