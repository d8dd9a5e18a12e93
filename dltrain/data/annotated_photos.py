"""Photos with an xml file each in folders without lists: an xml beside its photo, as labelImg writes them, or a folder
of annotations and one of photos. A folder named train, val or test, at any depth, holds that split."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from dltrain.data.datamodule import SPLITS
from dltrain.data.splits import match_splits, split_of
from dltrain.errors import DataError
from dltrain.image_files import by_stem, scan_images

LeftOut = dict[str, list[Path]]  # files by the reason why they are left out


class AnnotatedPhoto(NamedTuple):
    image: Path
    annotation: Path


def find_annotated_photos(root: Path) -> tuple[dict[str, list[AnnotatedPhoto]], LeftOut]:
    """Returns the photos of each split, all in train where no folder is named as a split. Raises DataError for an xml
    without a photo, and where it is not clear which photo or which split is meant."""
    images, others = scan_images(root)
    annotations = sorted(path for paths in others.values() for path in paths
                         if path.suffix.lower() == ".xml" and path.is_file())
    left_out: LeftOut = {reason: [path for path in paths if path not in annotations and path != root / "classes.txt"]
                         for reason, paths in others.items()}
    folders = {path: name_of_split(path, root) for path in [*images, *annotations]}
    names = match_splits({name for name in folders.values() if name is not None}, root)
    splits: dict[str, list[AnnotatedPhoto]] = {split: [] for split in SPLITS}
    for split, name in names.items() if names else [("train", None)]:
        splits[split] = pair_by_name([path for path in images if folders[path] == name],
                                     [path for path in annotations if folders[path] == name], root)
    if names:
        left_out["a file in no folder of a split"] = [path for path in folders if folders[path] is None]
    used = {photo.image for photos in splits.values() for photo in photos}
    left_out["a photo without an xml"] = [path for path in images if path not in used
                                          and (not names or folders[path] is not None)]
    return splits, left_out


def name_of_split(path: Path, root: Path) -> str | None:
    """The name of the first folder between `root` and the file that is named as a split."""
    return next((name for name in path.relative_to(root).parts[:-1] if split_of(name)), None)


def pair_by_name(images: list[Path], annotations: list[Path], root: Path) -> list[AnnotatedPhoto]:
    """Finds the photo of each xml: that of its name in its folder, else the one of its name in another folder. Raises
    DataError where there is none, or several."""
    of_folder: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        of_folder[image.parent].append(image)
    beside = {folder: by_stem(paths) for folder, paths in of_folder.items()}
    pairs = [AnnotatedPhoto(beside[file.parent][file.stem], file) for file in annotations
             if file.stem in beside.get(file.parent, ())]
    used = {pair.annotation for pair in pairs} | {pair.image for pair in pairs}
    alone: dict[str, list[Path]] = defaultdict(list)
    for path in [*annotations, *images]:
        if path not in used:
            alone[path.stem].append(path)
    for annotation in annotations:
        if annotation in used:
            continue
        file, *candidates = alone[annotation.stem]
        if not candidates:
            raise DataError(f"{file}: no photo {file.stem}.jpg (or .png) beside it or in another folder of {root}")
        if len(candidates) > 1:
            raise DataError(f"{file}: {' and '.join(str(path.relative_to(root)) for path in candidates[:3])} have its "
                            "name too, so it is not clear which belong together; give each photo a name of its own")
        pairs.append(AnnotatedPhoto(candidates[0], file))
    return sorted(pairs)
