"""Photos with a PNG mask each, which has the class of every pixel: what their layouts share (mask_folders.py, voc.py).

A mask is grey or has a palette; the value of a pixel is its class, or IGNORED_PIXEL = 255, which is not scored;
`mask_values` may state other values. The size of each mask is compared with its photo's, and its values with the
classes, before the first step.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, NotRequired, Unpack

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor

from dltrain.batches import IGNORED_PIXEL, SegmentationBatch
from dltrain.data.datamodule import SPLITS, DataKeys, DataModule, check_classes, require_root
from dltrain.data.decodable import settle_photos
from dltrain.data.decoded import decode_batches
from dltrain.data.images import copy_images, read_central_squares, read_image
from dltrain.data.splits import hold_out_missing
from dltrain.errors import DataError, FaultyData
from dltrain.image_files import NO_FILE, ImageSource, read_header

Table = npt.NDArray[np.uint8]  # (256,): the class of each value of a pixel, IGNORED_PIXEL or UNKNOWN_VALUE
UNKNOWN_VALUE = 254


class MaskPair(NamedTuple):
    image: Path
    mask: Path


class MaskKeys(DataKeys):
    root: str | None
    channels: int
    image_px: int
    num_classes: int | None
    val_share: NotRequired[float]
    mask_values: NotRequired[list[int] | None]
    num_workers: int


class PhotosWithMasks(DataModule[SegmentationBatch, Tensor]):
    """Photos with masks from files. A subclass implements `find_pairs`. Photos whose long side is above `image_px` are
    scaled to it; then all are padded below and on the right to the largest one's size, with pixels that are not scored.

    `val_share`: fraction of the training photos held out for validation, if `find_pairs` finds none for it. `shares`:
    the fractions of all splits that may be held out.
    `mask_values`: the value of each class in the masks, in the order of the classes; None for 0, 1, 2 and so on.
    `ignored_value`: a further mask value that is read as IGNORED_PIXEL."""

    batch_type = SegmentationBatch
    input_kind = "image"
    ignored_value: int | None = None
    has_known_values = False  # whether the data set is a published one, in which 255 is known to be no class

    def __init__(self, *, root: str | None, channels: int, image_px: int, num_classes: int | None, num_workers: int,
                 val_share: float = 0.1, mask_values: list[int] | None = None, **keys: Unpack[DataKeys]):
        super().__init__(**keys)
        self.mask_values = mask_values
        self.root, self.channels, self.image_px, self.num_classes = root, channels, image_px, num_classes
        self.shares, self.num_workers = {"val": val_share}, num_workers
        self.pairs: dict[str, list[MaskPair]] = {}
        self.padded_size = (0, 0)  # height and width of every image of a batch
        self.absent: list[str] = []  # classes without a pixel in the training masks

    def find_pairs(self, root: Path) -> dict[str, list[MaskPair]]:
        """Sets `class_names` and returns the pairs of each split; that of val, or of test, is empty if a share of train
        is to be held out."""
        raise NotImplementedError

    def load(self) -> None:
        root = require_root(self.root, "the folder with the images and masks")
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such folder")
        self.pairs = self.find_pairs(root)
        self.held_out = hold_out_missing(self.pairs, self.shares, "images",
                                         {"test": ("test", "masks"), "val": ("val", "masks")})
        check_classes(self.num_classes, self.class_names, self.root)
        self.table = self.build_table()
        self.pairs = settle_photos(self, self.pairs, attrgetter("image"))
        sizes, counts, digests = self.check_pairs([pair for split in SPLITS for pair in self.pairs[split]])
        masks = iter(digests)
        for split in SPLITS:
            self.list_photos(split, root, [(pair.image, f"mask {next(masks)}") for pair in self.pairs[split]])
        self.check_counts(sum(counts[: len(self.pairs["train"])], np.zeros(256, np.int64)))
        self.padded_size = (max(h for h, _ in sizes), max(w for _, w in sizes))

    def build_table(self) -> Table:
        """Raises DataError where data.mask_values does not name one value per class."""
        values = list(range(len(self.class_names))) if self.mask_values is None else self.mask_values
        if len({*values}) != len(self.class_names) or not all(0 <= value <= 255 for value in values):
            raise DataError(f"data.mask_values={as_word(values)}: must be {len(self.class_names)} different values "
                            f"from 0 to 255, one for each of {', '.join(self.class_names[:10])}")
        table = np.full(256, UNKNOWN_VALUE, np.uint8)
        table[[value for value in (IGNORED_PIXEL, self.ignored_value) if value is not None]] = IGNORED_PIXEL
        table[values] = np.arange(len(values))
        return table

    def check_counts(self, counts: npt.NDArray[np.int64]) -> None:
        """`counts` (256,): how often each value occurs in the training masks. Raises DataError where 255, which is
        not scored, seems to be a class: masks of 0 and 255 are common, and no model is wrong about what is not
        scored."""
        labelled = {name: int(counts[self.table == label].sum()) for label, name in enumerate(self.class_names)}
        self.absent = [name for name, count in labelled.items() if not count]
        ignored = counts[self.table == IGNORED_PIXEL].sum() / max(1, counts.sum())
        is_stated = self.has_known_values or self.mask_values is not None
        if is_stated or not ignored or (not self.absent and ignored <= 0.5):
            return
        numbers = list(range(len(self.class_names)))
        candidate = (self.absent or self.class_names)[-1]
        example = [IGNORED_PIXEL if name == candidate else label for label, name in enumerate(self.class_names)]
        missing = f", and none is of '{candidate}'" if self.absent else ""
        raise DataError(f"data.root={self.root}: {ignored:.1%} of the pixels of the training masks are "
                        f"{IGNORED_PIXEL}, which is not scored{missing}; data.mask_values={as_word(example)} reads "
                        f"{IGNORED_PIXEL} as '{candidate}', data.mask_values={as_word(numbers)} leaves it not scored")

    def check_pairs(self, pairs: list[MaskPair]
                    ) -> tuple[list[tuple[int, int]], list[npt.NDArray[np.int64]], list[str]]:
        """Returns the size (height, width) at which each pair is read, and how often each value occurs in its mask,
        and a digest of the mask. Raises DataError with the bad ones."""
        sizes, counts, digests, faults = [], [], [], []
        with ThreadPoolExecutor(8) as pool:
            for size, count, digest, fault in track(pool.map(self.check_pair, pairs), f"checking {len(pairs)} masks",
                                            len(pairs), transient=True, disable=not sys.stdout.isatty()):
                sizes.append(size)
                counts.append(count)
                digests.append(digest)
                faults += [fault] if fault else []
        if faults:
            raise FaultyData(f"{len(faults)} of {len(pairs)} masks do not fit", faults)
        return sizes, counts, digests

    def check_pair(self, pair: MaskPair) -> tuple[tuple[int, int], npt.NDArray[np.int64], str, str]:
        """Returns the size (height, width) at which the pair is read, how often each value occurs in the mask (256,), a
        digest of the mask, and what is wrong with the pair or ""."""
        try:
            header, mask = read_header(pair.image), read_mask(pair.mask)
        except DataError as error:
            return (0, 0), np.zeros(256, np.int64), "", str(error)
        size, counts, fault = header.size, np.bincount(mask.ravel(), minlength=256), ""
        wrong = np.flatnonzero((counts > 0) & (self.table == UNKNOWN_VALUE))
        if mask.shape[::-1] == header.stored != size:
            fault = (f"{pair.mask}: is {mask.shape[1]} x {mask.shape[0]} as the stored pixels of {pair.image.name}, "
                     f"which EXIF turns; it must be {size[0]} x {size[1]}: turn the mask, or save the photo upright")
        elif mask.shape[::-1] != size:
            fault = (f"{pair.mask}: must be {size[0]} x {size[1]} px as {pair.image.name}, but is {mask.shape[1]} x "
                     f"{mask.shape[0]}")
        elif len(wrong):
            values = "from 0 on" if self.mask_values is None else f"of the values {as_word(self.mask_values)}"
            fault = (f"{pair.mask}: has {', '.join(map(str, wrong[:5]))}, but there are {len(self.class_names)} "
                     f"classes, {values}; {IGNORED_PIXEL} is not scored")
        return scaled_size(size, self.image_px), counts, f"{zlib.crc32(mask.data):08x}", fault

    def sizes(self) -> dict[str, int]:
        return {"num_classes": len(self.class_names)}

    def describe(self) -> str:
        height, width = self.padded_size
        absent = f"; no training pixel of {', '.join(self.absent)}" if self.absent else ""
        return f"{super().describe()}, {len(self.class_names)} classes, {width} x {height} px{absent}"

    def num_samples(self, split: str) -> int:
        return len(self.pairs[split])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[SegmentationBatch]:
        """An index of -1 is skipped."""
        decode = partial(decode_pair, channels=self.channels, image_px=self.image_px, padded_size=self.padded_size,
                         table=self.table)
        return decode_batches(self.pairs[split], decode, [batch[batch >= 0] for batch in batches], self.num_workers,
                              collate_pairs, lambda pair: pair.image)

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, C, 64, 64) uint8: the central squares of the first photos, up to 200."""
        return read_central_squares([pair.image for pair in self.pairs["train"][:200]], self.channels)

    def read_input(self, source: ImageSource) -> Tensor:
        return read_image(source, self.channels)

    def encode_inputs(self, inputs: list[Tensor]) -> SegmentationBatch:
        return without_masks(inputs, self.image_px)

    def write_samples(self, folder: Path) -> str:
        return copy_images([pair.image for pair in self.pairs["test"][:4]], folder)


def as_word(values: list[int]) -> str:
    """As typed on the command line."""
    return str(values).replace(" ", "")


def decode_pair(pair: MaskPair, channels: int, image_px: int, padded_size: tuple[int, int], table: Table
                ) -> tuple[Tensor, Tensor]:
    """Reads image (C, H, W) uint8 and mask (H, W) int64, both padded to `padded_size`."""
    image = scale_image(read_image(pair.image, channels), image_px)
    h, w = image.shape[1:]
    classes = Image.fromarray(table[read_mask(pair.mask)]).resize((w, h), Image.Resampling.NEAREST)
    mask = torch.from_numpy(np.asarray(classes).copy()).long()
    padding = (0, padded_size[1] - w, 0, padded_size[0] - h)
    return F.pad(image, padding), F.pad(mask, padding, value=IGNORED_PIXEL)


def collate_pairs(samples: list[tuple[Tensor, Tensor]]) -> SegmentationBatch:
    return SegmentationBatch(torch.stack([image for image, _ in samples]), torch.stack([mask for _, mask in samples]))


def without_masks(images: list[Tensor], image_px: int) -> SegmentationBatch:
    """Returns images (C, Hi, Wi) uint8 scaled as in training and padded to the largest one's size; no pixel is
    scored."""
    scaled = [scale_image(image, image_px) for image in images]
    height, width = (max(image.shape[side] for image in scaled) for side in (1, 2))
    padded = torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in scaled])
    return SegmentationBatch(padded, torch.full((len(images), height, width), IGNORED_PIXEL))


def scaled_size(size: tuple[int, int], image_px: int) -> tuple[int, int]:
    """Returns the (height, width) of an image (width, height) after its long side is scaled down to image_px."""
    scale = min(1.0, image_px / max(size))
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def scale_image(image: Tensor, image_px: int) -> Tensor:
    """Scales an image (C, H, W) uint8 so that its long side has at most image_px."""
    size = scaled_size((image.shape[2], image.shape[1]), image_px)
    if size == tuple(image.shape[1:]):
        return image
    scaled = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)


def read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Reads a mask as (H, W) uint8: the value of each pixel, in an image with a palette its place in the palette.
    Raises DataError."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: {NO_FILE}")
        with Image.open(path) as opened:
            if opened.mode not in ("L", "P", "1"):
                raise DataError(f"{path}: a mask must have one value of 8 bits per pixel (grey or palette), but is "
                                f"{opened.mode}")
            return np.asarray(opened).astype(np.uint8)
    except FileNotFoundError:
        raise DataError(f"no mask {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {str(error) or type(error).__name__}") from None
