"""Which samples are held out for validation and test. Each split is the same for every run, whatever its seed, so that
runs can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dltrain.batches import generator
from dltrain.data.datamodule import SPLITS
from dltrain.errors import DataError

SampleT = TypeVar("SampleT")
TextT = TypeVar("TextT", str, range, NDArray[np.int16 | np.int32])
# What people call the splits, in any case.
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"),
               "test": ("test", "testing")}


def split_of(name: str) -> str | None:
    """The split that a folder or file of this name holds, if it is the name of one."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def match_splits(names: Iterable[str], root: Path) -> dict[str, str]:
    """Those of the names of folders below `root` that are names of splits, by the split. Raises DataError where a split
    has two, or where there are such folders, but none to train on."""
    by_split: dict[str, str] = {}
    for name in sorted(names):
        if (split := split_of(name)) is None:
            continue
        if split in by_split:
            raise DataError(f"{root}: {by_split[split]} and {name} are both the {split} split; keep one")
        by_split[split] = name
    if by_split and "train" not in by_split:
        raise DataError(f"{root}: has {', '.join(by_split.values())}, but no folder train; if these are no splits, "
                        "rename them")
    return by_split


def find_split_folders(root: Path) -> dict[str, Path]:
    """The folders in `root` that are named as splits. Raises DataError as `match_splits` does."""
    names = match_splits((path.name for path in root.iterdir() if path.is_dir()), root)
    return {split: root / name for split, name in names.items()}


def hold_out(samples: Sequence[SampleT], fraction: float, split: str, noun: str,
             *purpose: int | str) -> tuple[list[SampleT], list[SampleT]]:
    """Returns the samples that are kept and those held out, `fraction` of all but at least one, both in their order.

    `purpose` names the random permutation. `split` and `noun` ("images") are for the message. Raises DataError where
    none would be kept."""
    count = max(1, round(fraction * len(samples)))
    if count >= len(samples):
        raise DataError(f"{len(samples)} {noun} are too few to hold out a {split} split (data.{split}_share)")
    order = torch.randperm(len(samples), generator=generator("split", *purpose)).tolist()
    return [samples[i] for i in sorted(order[count:])], [samples[i] for i in sorted(order[:count])]


def hold_out_missing(splits: dict[str, list[SampleT]], shares: Mapping[str, float | None], noun: str,
                     purposes: Mapping[str, tuple[int | str, ...]]) -> list[str]:
    """The rule of every data set of own files: a split that the files name is that split, and one that they do not name
    is held out of train, first the test split and then val. Fills those of `splits` that are empty, in place.

    `shares`: the fraction of each split that is held out, None for one that must be there. `purposes`: names the random
    permutation of each. Returns the names of those that were held out, for `DataModule.held_out`."""
    held_out = []
    for split in ("test", "val"):
        share = shares.get(split)
        if share is not None and not splits.get(split):
            splits["train"], splits[split] = hold_out(splits["train"], share, split, noun, *purposes[split])
            held_out.append(split)
    return held_out


def hold_out_of_texts(splits: dict[str, list[SampleT]], noun: str) -> list[str]:
    """The same for texts, of which a tenth is held out for each split."""
    return hold_out_missing(splits, {"test": 0.1, "val": 0.1}, noun, {"test": ("test", noun), "val": ("val", noun)})


def split_randomly(samples: Sequence[SampleT], labels: Sequence[str] | None = None) -> dict[str, list[SampleT]]:
    """Splits into 80 % train, 10 % val and 10 % test; with `labels`, each label separately."""
    splits: dict[str, list[SampleT]] = {split: [] for split in SPLITS}
    groups: dict[str, list[SampleT]] = {}
    for sample, label in zip(samples, labels or ["0"] * len(samples), strict=True):
        groups.setdefault(label, []).append(sample)
    for label in sorted(groups):
        group = groups[label]
        order = torch.randperm(len(group), generator=generator("split", label)).tolist()
        train_end, val_end = round(len(group) * 0.8), round(len(group) * 0.9)
        for split, indices in zip(SPLITS, (order[:train_end], order[train_end:val_end], order[val_end:]), strict=True):
            splits[split] += [group[i] for i in sorted(indices)]
    return splits


def stratified_indices(labels: Tensor, count: int) -> Tensor:
    """Returns the sorted indices of `count` samples. Each class has the proportion that it has in `labels` (N,)
    (largest remainder method)."""
    num_classes = int(labels.max()) + 1
    exact = torch.bincount(labels, minlength=num_classes).double() * count / len(labels)
    counts = exact.floor().long()
    for index in (exact - counts).argsort(descending=True, stable=True)[: count - int(counts.sum())]:
        counts[index] += 1
    shuffled = torch.randperm(len(labels), generator=generator("split", 0))
    indices = [shuffled[labels[shuffled] == label][: int(counts[label])] for label in range(num_classes)]
    return torch.cat(indices).sort().values


def cut_text(text: TextT, held_out: float = 0.1) -> dict[str, TextT]:
    """Splits a running text, or its indices: the share `held_out` at its end is for validation and test, half each."""
    train_end, val_end = int(len(text) * (1 - held_out)), int(len(text) * (1 - held_out / 2))
    return {"train": text[:train_end], "val": text[train_end:val_end], "test": text[val_end:]}
