"""A person's own images: root/{train,val,test}/<class>/*, or root/<class>/* with a split by shares.

Headers are decoded and every class list compared before the first step; pixels are decoded by workers to uint8.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dltrain.batches import IGNORED_LABEL, ClassificationBatch, generator
from dltrain.data.classification import PICTURES, ImageData, read_image
from dltrain.errors import DataError

SPLITS = ("train", "val", "test")
Samples = list[tuple[Path, int]]


class Decoded(Dataset[tuple[Tensor, int]]):
    """One sample: (C, H, W) uint8 and its label. Runs in a worker process."""

    def __init__(self, samples: Samples, channels: int, image_px: int):
        self.samples, self.channels, self.image_px = samples, channels, image_px

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return read_image(path, self.channels, self.image_px), label if index >= 0 else IGNORED_LABEL


class ImageFolder(ImageData):
    """Classes are the folder names, sorted. Hidden files and folders are left out, and files that are no pictures."""

    def __init__(self, *, root: str | None, val_share: float, test_share: float, num_workers: int, **keys: Any):
        super().__init__(**keys)
        self.root, self.val_share, self.test_share, self.num_workers = root, val_share, test_share, num_workers
        self.samples: dict[str, Samples] = {}

    def load(self) -> None:
        if self.root is None:
            raise DataError("data=image_folder needs data.root=FOLDER with {train,val,test}/<class>/* or <class>/*; "
                            "data=digits needs no files")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such folder; expected {{train,val,test}}/<class>/* or <class>/*")
        self.class_names = folders(root / "train" if (root / "train").is_dir() else root)
        if len(self.class_names) < 2:
            raise DataError(f"data.root={root}: {len(self.class_names)} class folders, at least 2 are needed; expected "
                            "{train,val,test}/<class>/* or <class>/*")
        if self.num_classes not in (None, len(self.class_names)):
            raise DataError(f"data.num_classes={self.num_classes}, but {root} has {len(self.class_names)} classes: "
                            f"{', '.join(self.class_names[:10])}")
        self.num_classes = len(self.class_names)
        if (root / "train").is_dir():
            given = {split: self.listed(root / split) for split in SPLITS if (root / split).is_dir()}
            train = given["train"]
        else:
            given, train = {}, self.listed(root)
        if "test" not in given:
            train, given["test"] = split(train, self.test_share, "test")
        if "val" not in given:
            train, given["val"] = split(train, self.val_share, "val")
        self.samples = {"train": train, "val": given["val"], "test": given["test"]}
        check_headers([path for split in SPLITS for path, _ in self.samples[split]])

    def listed(self, folder: Path) -> Samples:
        """The pictures of a split with their labels. Raises DataError if its classes are not the training split's."""
        mine = folders(folder)
        if mine != self.class_names:
            unknown, missing = sorted({*mine} - {*self.class_names}), sorted({*self.class_names} - {*mine})
            said = [f"classes that train does not have: {', '.join(unknown)}"] if unknown else []
            said += [f"no folder for: {', '.join(missing)}"] if missing else []
            raise DataError(f"{folder}: {'; '.join(said)}")
        found: Samples = []
        for label, name in enumerate(self.class_names):
            pictures = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in PICTURES
                              and not any(name.startswith(".") for name in path.relative_to(folder).parts))
            if not pictures:
                raise DataError(f"{folder / name}: no pictures in this class ({', '.join(sorted(PICTURES))})")
            found += [(path, label) for path in pictures]
        return found

    def num_samples(self, split: str) -> int:
        return len(self.samples[split])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[ClassificationBatch]:
        """Workers read ahead; the batches are the same, in the same order, with any number of them."""
        decoded = Decoded(self.samples[split], self.channels, self.image_px)
        loader = DataLoader(decoded, batch_sampler=[batch.tolist() for batch in batches], num_workers=self.num_workers,
                            generator=torch.Generator())
        for images, labels in loader:
            yield ClassificationBatch(images, labels)

    def training_pixels(self, at_most: int) -> Tensor:
        return super().training_pixels(min(at_most, 2_000))  # decoding more would take minutes and move little


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def split(samples: Samples, share: float, purpose: str) -> tuple[Samples, Samples]:
    """The rest, and a share of every class (at least one picture), the same for every run."""
    rest: Samples = []
    cut: Samples = []
    for label in sorted({label for _, label in samples}):
        mine = [sample for sample in samples if sample[1] == label]
        order = torch.randperm(len(mine), generator=generator("split", purpose, label)).tolist()
        count = max(1, round(share * len(mine)))
        if count >= len(mine):
            raise DataError(f"{mine[0][0].parent}: {len(mine)} pictures are too few to cut a {purpose} split from")
        chosen = {*order[:count]}
        cut += [sample for number, sample in enumerate(mine) if number in chosen]
        rest += [sample for number, sample in enumerate(mine) if number not in chosen]
    return rest, cut


def check_headers(paths: list[Path]) -> None:
    """Opens every file once and reads its header. Raises DataError that names the first bad ones and counts all."""

    def fault(path: Path) -> str | None:
        try:
            with Image.open(path):
                return None
        except Exception as error:
            return f"{path}: {'empty' if path.stat().st_size == 0 else str(error) or type(error).__name__}"

    with ThreadPoolExecutor(8) as pool:
        bad = [said for said in pool.map(fault, paths) if said]
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(f"{len(bad)} of {len(paths)} pictures cannot be read: {'; '.join(bad[:3])}{more}")
