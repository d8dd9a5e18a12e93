"""A person's own labelled images: root/{train,val,test}/<class>/*, or root/<class>/* with a random split.

Headers are read and the classes of the splits compared before the first step; threads decode the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor
from torch.utils.data import default_collate

from dltrain.batches import IGNORED_LABEL, ClassificationBatch
from dltrain.data.classification import ImageKeys, LabelledImages
from dltrain.data.datamodule import SEE_CONFUSION, SPLITS, check_classes, require_root
from dltrain.data.decodable import settle_photos
from dltrain.data.decoded import decode_batches
from dltrain.data.faults import refuse
from dltrain.data.images import read_image
from dltrain.data.splits import find_split_folders, hold_out
from dltrain.errors import DataError
from dltrain.image_files import IMAGE_SUFFIXES, is_hidden

LAYOUT = "{train,val,test}/<class>/* or <class>/*"
ImagesByClass = list[list[Path]]


class ImageFolder(LabelledImages):
    """Images whose folder is their class. Classes are the folder names, sorted; the splits' folders may have the usual
    names (valid, Validation, testing). Hidden files and files that are no images are left out. Where there is no val
    (or test) folder, `val_share` (or `test_share`) of each class is held out. `decoding`: pillow, as in runs of earlier
    versions, or fast."""

    counted, if_unbalanced = "images", SEE_CONFUSION

    def __init__(self, *, root: str | None, val_share: float, test_share: float, num_workers: int,
                 decoding: str = "pillow", **keys: Unpack[ImageKeys]):
        super().__init__(**keys)
        self.root, self.shares, self.num_workers = root, {"val": val_share, "test": test_share}, num_workers
        self.decoding = decoding
        self.paths: dict[str, list[Path]] = {}
        self.labels: dict[str, Tensor] = {}

    def load(self) -> None:
        root = require_root(self.root, f"a folder with {LAYOUT}; data=digits needs no files")
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such folder; it must have {LAYOUT}")
        folders = find_split_folders(root)
        self.class_names = list_folders(folders.get("train", root))
        if len(self.class_names) < 2:
            raise DataError(f"data.root={root}: must have at least two class folders, but has {len(self.class_names)}; "
                            f"it must have {LAYOUT}")
        check_classes(self.num_classes, self.class_names, root)
        self.num_classes = len(self.class_names)
        if folders:
            others = [root / name for name in list_folders(root) if root / name not in folders.values()]
            self.leave_out("a folder that is no split", others)
        self.leave_out("a file outside of the class folders", [
            path for folder in sorted({root, *folders.values()}) for path in sorted(folder.iterdir())
            if not path.is_dir() and not is_hidden(path.name)])
        by_split = {split: self.list_split(folder) for split, folder in (folders or {"train": root}).items()}
        for split in ("test", "val"):
            if split not in by_split:
                cuts = [hold_out(paths, self.shares[split], split, f"images of class {name}", split, label)
                         for label, (name, paths) in enumerate(zip(self.class_names, by_split["train"], strict=True))]
                by_split["train"], by_split[split] = [kept for kept, _ in cuts], [held for _, held in cuts]
                self.held_out.append(split)
        samples = settle_photos(self, {split: [(path, label) for label, paths in enumerate(by_split[split])
                                               for path in paths] for split in SPLITS}, itemgetter(0))
        for split in SPLITS:
            self.paths[split] = [path for path, _ in samples[split]]
            self.list_photos(split, root, [(path, self.class_names[label]) for path, label in samples[split]])
            self.labels[split] = torch.tensor([label for _, label in samples[split]])
            if lost := {*range(self.num_classes)} - {label for _, label in samples[split]}:
                raise DataError(f"data.root={root}: data.on_bad={self.on_bad} and data.on_leak={self.on_leak} leave no "
                                f"{split} image of the class {self.class_names[min(lost)]}")

    def list_split(self, folder: Path) -> ImagesByClass:
        """Returns the images of each class. Raises DataError if the classes are not those of the training split."""
        names = list_folders(folder)
        if names != self.class_names:
            extra, missing = sorted({*names} - {*self.class_names}), sorted({*self.class_names} - {*names})
            faults = [f"classes that train does not have: {', '.join(extra)}"] if extra else []
            faults += [f"no folder for: {', '.join(missing)}"] if missing else []
            raise DataError(f"{folder}: {'; '.join(faults)}")
        by_class = [self.images_in(folder / name) for name in names]
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        empty = [f"{folder / name}: no images in this class ({suffixes})"
                 for name, images in zip(names, by_class, strict=True) if not images]
        refuse(empty, f"{len(empty)} of {len(names)} classes are empty")
        return by_class

    def describe(self) -> str:
        return f"{super().describe()}, {len(self.class_names)} classes"

    def class_counts(self) -> dict[str, int]:
        counts = torch.bincount(self.labels["train"], minlength=len(self.class_names)).tolist()
        return dict(zip(self.class_names, counts, strict=True))

    def num_samples(self, split: str) -> int:
        return len(self.paths[split])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[ClassificationBatch]:
        decode = partial(read_image, channels=self.channels, px=self.image_px, decoding=self.decoding)
        for indices, images in zip(batches, decode_batches(self.paths[split], decode, batches, self.num_workers,
                                                           default_collate), strict=True):
            labels = self.labels[split][indices].masked_fill(indices < 0, IGNORED_LABEL)
            yield ClassificationBatch(images, labels)

    def pixel_batches(self, at_most: int) -> Iterator[Tensor]:
        return super().pixel_batches(min(at_most, 2_000))  # more would take minutes and change little


def list_folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
