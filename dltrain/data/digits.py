"""1,797 real handwritten digits, 8x8 grey, embedded in scikit-learn: E. Alpaydin, C. Kaynak, 1998 (UCI "optdigits")."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from dltrain.data.classification import ResidentImages, Split

TEST_SHARE, VAL_SHARE = 0.2, 0.1  # of all 1,797; the split is stratified and the same for every seed


class Digits(ResidentImages):
    """train 1,257, val 180, test 360. Grey values 0 to 16 are scaled to [0, 255]."""

    def load(self) -> None:
        found = load_digits()
        images = torch.from_numpy(found.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(found.target).long()
        rest, test = train_test_split(range(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=0)
        val_share = VAL_SHARE / (1 - TEST_SHARE)
        train, val = train_test_split(rest, test_size=val_share, stratify=labels[rest], random_state=0)
        self.splits = {name: Split(images[indices], labels[indices]) for name, indices in
                      {"train": train, "val": val, "test": test}.items()}
        self.class_names = [str(digit) for digit in range(10)]
