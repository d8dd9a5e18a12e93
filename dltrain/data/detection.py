"""Photos of any size with boxes, from files: what their layouts share (voc.py, coco.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, NotRequired, Unpack

import torch
from torch import Tensor

from dltrain.batches import DetectionBatch
from dltrain.data.datamodule import SPLITS, DataKeys, DataModule, check_classes
from dltrain.data.decodable import settle_photos
from dltrain.data.decoded import decode_batches
from dltrain.data.faults import read_each
from dltrain.data.images import copy_images, read_central_squares, read_image
from dltrain.data.listing import digest_of
from dltrain.data.splits import hold_out_missing
from dltrain.image_files import Header, ImageSource

Target = dict[str, Tensor]


class AnnotationError(ValueError):
    """What is wrong with an annotation; the caller knows the file and the line."""


class BoxObject(NamedTuple):
    """An annotated object; box (x1, y1, x2, y2) in pixels."""

    box: list[float]
    label: int
    ignored: bool


def turn_upright(box: list[float], header: Header) -> list[float]:
    """A box (x1, y1, x2, y2) on the stored pixels as it is on the upright photo."""
    (w, h), (x1, y1, x2, y2) = header.stored, box
    if header.orientation in (2, 3, 6, 7):  # what becomes x is mirrored: of 6 and 7 that is y
        x1, x2, y1, y2 = (w - x2, w - x1, y1, y2) if header.orientation < 5 else (x1, x2, h - y2, h - y1)
    if header.orientation in (3, 4, 7, 8):
        x1, x2, y1, y2 = (x1, x2, h - y2, h - y1) if header.orientation < 5 else (w - x2, w - x1, y1, y2)
    return [y1, x1, y2, x2] if header.orientation >= 5 else [x1, y1, x2, y2]


class Photo(NamedTuple):
    """A photo with its boxes; size (width, height) in pixels; boxes (N, 4) float; labels (N,); ignored (N,) bool:
    objects that the benchmark neither rewards nor punishes, such as VOC's difficult ones and COCO's crowds."""

    image: Path
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    ignored: Tensor

    @classmethod
    def of(cls, image: Path, size: tuple[int, int], objects: list[BoxObject]) -> Photo:
        return cls(image, size, torch.tensor([obj.box for obj in objects], dtype=torch.float).reshape(-1, 4),
                   torch.tensor([obj.label for obj in objects]).long(),
                   torch.tensor([obj.ignored for obj in objects]).bool())


    def describe_objects(self) -> str:
        """Their number, and a digest of their boxes and labels."""
        digest = digest_of(self.boxes.tolist(), self.labels.tolist(), self.ignored.tolist())
        return f"{len(self.labels)} objects {digest}"


class PhotoFile(NamedTuple):
    """A photo that was not read yet. `read` reads its header and its boxes, and raises DataError."""

    image: Path
    read: Callable[[], Photo]


class PhotoBoxKeys(DataKeys):
    root: str | None
    channels: int
    image_px: int
    num_classes: int | None
    val_share: float
    test_share: NotRequired[float | None]
    bad_boxes: str
    box_coordinates: NotRequired[str]
    num_workers: int
    group_by_shape: bool


class PhotosWithBoxes(DataModule[DetectionBatch, Tensor]):
    """Photos with boxes from files. A subclass implements `find_photos`. Where the files name no test photos,
    `test_share` of the training photos is held out, and likewise `val_share` for validation. `test_share` is None in
    runs of versions that held out none, and for published sets whose val is the test split. Ignored objects are not
    trained on and do not count in evaluation.

    `bad_boxes`: refuse (with file and line) or repair a box without area or partly outside of its photo. A repaired box
    is cut at the border, or dropped if no area is left, and counted. `box_coordinates`: upright, or raw where the boxes
    of photos that EXIF turns are on the pixels as they are stored. `group_by_shape`: photos of similar shape share a
    batch."""

    batch_type = DetectionBatch
    input_kind = "image"
    counted, if_unbalanced = "boxes", "AP is the mean over the classes, result.json has that of each"

    def __init__(self, *, root: str | None, channels: int, image_px: int, num_classes: int | None, val_share: float,
                 bad_boxes: str, num_workers: int, group_by_shape: bool, box_coordinates: str = "upright",
                 test_share: float | None = None, **keys: Unpack[DataKeys]):
        super().__init__(**keys)
        self.box_coordinates = box_coordinates
        self.root, self.channels, self.num_classes = root, channels, num_classes
        self.val_share, self.test_share = val_share, test_share
        self.bad_boxes, self.num_workers = bad_boxes, num_workers
        self.group_by_shape = group_by_shape
        self.photos: dict[str, list[Photo]] = {}
        self.num_repaired = {"clipped": 0, "dropped": 0}

    def find_photos(self) -> dict[str, list[PhotoFile]]:
        """The photos of each split; those of val, or of test, are an empty list if the files name none. Must call
        `set_class_names`."""
        raise NotImplementedError

    def set_class_names(self, names: list[str]) -> None:
        """Keeps the class names of a run, else sets `names`. Raises DataError if they are not num_classes."""
        self.class_names = self.vocabularies.setdefault("labels", names)
        check_classes(self.num_classes, self.class_names, self.root)

    def load(self) -> None:
        files = self.find_photos()
        self.held_out = hold_out_missing(files, {"test": self.test_share, "val": self.val_share}, "photos",
                                         {"test": ("test", "boxes"), "val": ("voc",)})
        files = settle_photos(self, files, attrgetter("image"))
        places = [(split, file) for split in SPLITS for file in files[split]]
        photos = read_each(places, lambda place: place[1].read(), "photos")
        self.photos = {split: [photo for (owner, _), photo in zip(places, photos, strict=True) if owner == split]
                       for split in SPLITS}
        for split, photos in self.photos.items():
            self.list_photos(split, self.root, [(photo.image, photo.describe_objects()) for photo in photos])

    def annotated_size(self, header: Header, stated: tuple[int, int] | None, name: str) -> tuple[int, int]:
        """The (width, height) that the boxes of the photo `name` refer to. `stated`: what the annotation says of it.
        Raises AnnotationError where that is another one."""
        sizes = {"upright": header.size, "raw": header.stored}
        size = sizes.pop(self.box_coordinates)
        if stated is None or stated == size:
            return size
        ((other, other_size),) = sizes.items()
        if stated == other_size:
            raise AnnotationError(f"{stated[0]} x {stated[1]} is the size of {name} "
                                  f"{'before' if other == 'raw' else 'after'} its EXIF turn, and its boxes may lie "
                                  f"elsewhere; data.box_coordinates={other} reads such files")
        raise AnnotationError(f"width x height must be {size[0]} x {size[1]} as {name}'s, but is {stated[0]} x "
                              f"{stated[1]}")

    def upright(self, box: list[float], header: Header) -> list[float]:
        """The box (x1, y1, x2, y2) on the upright photo."""
        return turn_upright(box, header) if self.box_coordinates == "raw" else box

    def clip_box(self, corners: list[float], size: tuple[int, int], fault: str, text: str) -> list[float] | None:
        """Returns the box (x1, y1, x2, y2) clipped to a photo of this (width, height), or None if no area is left.

        `fault` says why the box has no area, "" if it has one; `text` is the box as the file has it. Raises
        AnnotationError if the box is bad and `bad_boxes` is refuse."""
        clipped = [min(max(value, 0.0), float(edge)) for value, edge in zip(corners, (*size, *size), strict=True)]
        is_outside = clipped != corners
        is_empty = bool(fault) or clipped[2] <= clipped[0] or clipped[3] <= clipped[1]
        if (is_empty or is_outside) and self.bad_boxes == "refuse":
            fault = fault or f"the box {text} lies outside of {size[0]} x {size[1]}"
            raise AnnotationError(f"{fault}; data.bad_boxes=repair clips and drops such boxes")
        self.num_repaired["dropped"] += is_empty
        self.num_repaired["clipped"] += is_outside and not is_empty
        return None if is_empty else clipped

    def sizes(self) -> dict[str, int]:
        return {"num_classes": len(self.class_names)}

    def describe(self) -> str:
        num_boxes = {split: sum(len(photo.labels) for photo in self.photos[split]) for split in SPLITS}
        counts = ", ".join(f"{len(self.photos[split]):,} {split} ({num_boxes[split]:,} boxes)" for split in SPLITS)
        repaired = ", ".join(f"{count} {action}" for action, count in self.num_repaired.items() if count)
        return f"{counts}, {len(self.class_names)} classes{f'; boxes {repaired}' if repaired else ''}"

    def class_counts(self) -> dict[str, int]:
        labels = torch.cat([photo.labels for photo in self.photos["train"]])
        return dict(zip(self.class_names, torch.bincount(labels, minlength=len(self.class_names)).tolist(),
                        strict=True))

    def num_samples(self, split: str) -> int:
        return len(self.photos[split])

    def bucket_keys(self) -> Tensor | None:
        """The quantised log aspect ratio; batches of similar shapes need little padding."""
        if not self.group_by_shape:
            return None
        return torch.tensor([round(16 * math.log2(photo.size[0] / photo.size[1])) for photo in self.photos["train"]])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[DetectionBatch]:
        """An index of -1 gives no sample."""
        training = split == "train" and self.validated_split != "train"
        decode = partial(decode_photo, channels=self.channels, training=training)
        return decode_batches(self.photos[split], decode, [batch[batch >= 0] for batch in batches], self.num_workers,
                              collate_photos, lambda photo: photo.image)

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, C, 64, 64) uint8: the central squares of the first photos, up to 200."""
        return read_central_squares([photo.image for photo in self.photos["train"][:200]], self.channels)

    def training_boxes(self) -> Tensor:
        boxes = [photo.boxes[~photo.ignored] for photo in self.photos["train"]]
        images = [torch.tensor(photo.size).expand(len(kept), 2) for photo, kept in
                  zip(self.photos["train"], boxes, strict=True)]
        return torch.cat([torch.cat([kept[:, 2:] - kept[:, :2], size], 1) for kept, size in
                          zip(boxes, images, strict=True)])

    def read_input(self, source: ImageSource) -> Tensor:
        return read_image(source, self.channels)

    def encode_inputs(self, inputs: list[Tensor]) -> DetectionBatch:
        return without_boxes(inputs)

    def write_samples(self, folder: Path) -> str:
        return copy_images([photo.image for photo in self.photos["test"][:4]], folder)


def decode_photo(photo: Photo, channels: int, training: bool) -> tuple[Tensor, Target]:
    """The image (C, H, W) uint8 and its boxes: in training without ignored objects, else with them as crowds."""
    image = read_image(photo.image, channels)
    if training:
        return image, {"boxes": photo.boxes[~photo.ignored], "labels": photo.labels[~photo.ignored]}
    return image, {"boxes": photo.boxes, "labels": photo.labels, "iscrowd": photo.ignored.long()}


def collate_photos(samples: list[tuple[Tensor, Target]]) -> DetectionBatch:
    return DetectionBatch([image for image, _ in samples], [target for _, target in samples])


def without_boxes(images: list[Tensor]) -> DetectionBatch:
    return DetectionBatch(images, [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
                                   for _ in images])
