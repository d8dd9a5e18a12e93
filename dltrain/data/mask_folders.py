"""Photos with masks in folders: a person's own, or CamVid."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from dltrain.data.datamodule import SPLITS
from dltrain.data.segmentation import MaskKeys, MaskPair, PhotosWithMasks
from dltrain.data.splits import split_of
from dltrain.data.texts import read_lines, read_names
from dltrain.errors import DataError
from dltrain.image_files import by_stem, no_image_called


class MaskFolder(PhotosWithMasks):
    """A person's own photos and masks: root/images/*, root/masks/*.png of the same names, and root/classes.txt with the
    name of each mask value from 0 on, one per line. The splits are lists of names in root/{train,val,test}.txt. Those
    without a list are held out of train, or of all photos if there are no lists: `test_share` and then `val_share`."""

    def __init__(self, *, test_share: float, **keys: Unpack[MaskKeys]):
        super().__init__(**keys)
        self.shares["test"] = test_share

    def find_pairs(self, root: Path) -> dict[str, list[MaskPair]]:
        classes = root / "classes.txt"
        if not classes.is_file():
            raise DataError(f"{root}: no classes.txt; it must name each mask value, one per line, from 0 on")
        names = [line.strip() for _, line in read_lines(classes)]
        self.class_names = self.vocabularies.setdefault("labels", names)
        pairs = {name: MaskPair(image, root / f"masks/{name}.png") for name, image in
                 images_by_stem(self, root / "images").items()}
        self.leave_out("a mask without a photo", [mask for mask in self.images_in(root / "masks")
                                                  if mask.stem not in pairs])
        lists = {split: file for file in sorted(root.glob("*.txt")) if (split := split_of(file.stem))}
        if not lists:
            return {"train": [*pairs.values()], "val": [], "test": []}
        if "train" not in lists:
            raise DataError(f"{root}: has {', '.join(file.name for file in lists.values())}, but no train.txt")
        splits: dict[str, list[MaskPair]] = {split: [] for split in SPLITS}
        for split, file in lists.items():
            for name in read_names(file):
                stem = name if name in pairs else Path(name).stem
                if stem not in pairs:
                    raise DataError(f"{file}: {no_image_called(stem, root / 'images')}")
                splits[split].append(pairs[stem])
        listed = {pair.image for split in SPLITS for pair in splits[split]}
        self.leave_out("a photo that no list names", [pair.image for pair in pairs.values()
                                                      if pair.image not in listed])
        return splits


class CamVid(PhotosWithMasks):
    """CamVid: root/{train,val,test}/* and root/{train,val,test}annot/*.png. 11 classes, numbered from 0; the value 11
    marks pixels that are not scored (G. Brostow et al., 2008; the splits and classes of V. Badrinarayanan et al., 2015,
    arXiv 1511.00561)."""

    ignored_value, has_known_values = 11, True

    def find_pairs(self, root: Path) -> dict[str, list[MaskPair]]:
        self.class_names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
                            "bicyclist"]
        return {split: [MaskPair(image, root / f"{split}annot/{name}.png")
                        for name, image in images_by_stem(self, root / split).items()] for split in SPLITS}


def images_by_stem(data: PhotosWithMasks, folder: Path) -> dict[str, Path]:
    """Returns the images by their names without suffix. Raises DataError where the folder has none."""
    images = by_stem(data.images_in(folder, recursive=False))
    if not images:
        raise DataError(f"{folder}: no images")
    return images
