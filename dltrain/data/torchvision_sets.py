"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN through torchvision's own classes, which check their checksums."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from dltrain.batches import generator
from dltrain.data.classification import ResidentImages, Split
from dltrain.errors import DataError

# where torchvision looks, below root; and where the files come from (facts of the data sets' own pages)
PLACES = {
    "MNIST": ("MNIST/raw", "train-images-idx3-ubyte and three more", datasets.MNIST.mirrors[-1]),
    "FashionMNIST": ("FashionMNIST/raw", "train-images-idx3-ubyte and three more", datasets.FashionMNIST.mirrors[0]),
    "CIFAR10": ("cifar-10-batches-py", "data_batch_1 to 5 and test_batch", datasets.CIFAR10.url),
    "CIFAR100": ("cifar-100-python", "train and test", datasets.CIFAR100.url),
    "SVHN": ("", "train_32x32.mat and test_32x32.mat", datasets.SVHN.split_list["train"][0]),
}
SPLIT_SEED = 0  # the validation cut is the same for every run, so that runs can be compared


class TorchvisionImages(ResidentImages):
    """`source` is the class's name in torchvision.datasets. A stratified validation split of `num_val` images is cut
    from the training split (He et al. 2015 on CIFAR: 45k / 5k); of the rest `num_train` are kept, None for all; the
    test split is torchvision's."""

    def __init__(self, *, source: str, root: str, num_val: int, num_train: int | None = None, download: bool = True,
                 **keys: Any):
        super().__init__(**keys)
        self.num_train = num_train
        self.source, self.root, self.num_val, self.download = source, Path(root).expanduser(), num_val, download

    def load(self) -> None:
        images, labels, self.class_names = self.fetch(train=True)
        if not 0 < self.num_val < len(labels):
            raise DataError(f"data.num_val={self.num_val}: must be above 0 and below the {len(labels):,} training "
                            "images")
        val = stratified(labels, self.num_val)
        train = torch.ones(len(labels), dtype=torch.bool)
        train[val] = False
        if self.num_train is not None:
            rest = train.nonzero().flatten()
            if not self.num_train <= len(rest):
                raise DataError(f"data.num_train={self.num_train}: must be at most the {len(rest):,} images that are "
                                "left of the training split")
            kept = rest[stratified(labels[rest], self.num_train)]
            train = torch.zeros_like(train).scatter_(0, kept, True)
        test_images, test_labels, _ = self.fetch(train=False)
        self.splits = {"train": Split(images[train], labels[train]), "val": Split(images[val], labels[val]),
                      "test": Split(test_images, test_labels)}

    def fetch(self, train: bool) -> tuple[Tensor, Tensor, list[str]]:
        """images (N, C, H, W) uint8, labels (N,) int64, class names. Downloads what is missing, if it may."""
        which: dict[str, Any] = {"split": "train" if train else "test"} if self.source == "SVHN" else {"train": train}
        make = getattr(datasets, self.source)
        try:
            found = make(self.root, download=False, **which)
        except RuntimeError:
            found = self.fetched(make, which)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{self.root}: {self.source} cannot be read: {error}") from error
        pixels = torch.as_tensor(np.asarray(found.data))
        if pixels.dim() == 3:  # (N, H, W)
            pixels = pixels.unsqueeze(1)
        elif pixels.shape[3] == 3:  # (N, H, W, 3)
            pixels = pixels.permute(0, 3, 1, 2)
        labels = torch.as_tensor(np.asarray(found.labels if self.source == "SVHN" else found.targets)).long()
        names = list(getattr(found, "classes", [str(digit) for digit in range(10)]))
        return pixels.contiguous(), labels, [name.partition(" - ")[0] for name in names]

    def fetched(self, make: Any, which: dict[str, Any]) -> Any:
        place, files, address = PLACES[self.source]
        where = f"{address} unpacked into {self.root / place} ({files})"
        free = "data=digits needs no download"
        if not self.download:
            raise DataError(f"{self.source} is not in {self.root}: put {where}; {free}")
        print(f"downloading {self.source} into {self.root}", flush=True)
        try:
            return make(self.root, download=True, **which)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())[:80]
            raise DataError(f"{self.source} is not in {self.root} and cannot be downloaded ({reason}): put {where}, "
                            f"or set data.root; {free}") from None


def stratified(labels: Tensor, count: int) -> Tensor:
    """Sorted indices of `count` samples, the classes in the shares that they have in `labels` (largest remainder)."""
    num_classes = int(labels.max()) + 1
    exact = torch.bincount(labels, minlength=num_classes).double() * count / len(labels)
    taken = exact.floor().long()
    for index in (exact - taken).argsort(descending=True, stable=True)[: count - int(taken.sum())]:
        taken[index] += 1
    shuffled = torch.randperm(len(labels), generator=generator("split", SPLIT_SEED))
    chosen = [shuffled[labels[shuffled] == c][: int(taken[c])] for c in range(num_classes)]
    return torch.cat(chosen).sort().values
