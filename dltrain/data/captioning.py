"""Images with captions: the base classes of their data sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, NotRequired, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from dltrain.batches import END, START, UNKNOWN, CaptionBatch
from dltrain.data.datamodule import SPLITS, DataKeys, DataModule, require_root
from dltrain.data.decodable import settle_photos
from dltrain.data.decoded import decode_batches
from dltrain.data.faults import refuse
from dltrain.data.images import copy_images, read_image
from dltrain.data.listing import digest_of
from dltrain.data.sequences import Tokenizer, count_unknown, index_symbols, pad_sequences
from dltrain.data.splits import hold_out_missing
from dltrain.data.texts import read_word_vectors
from dltrain.errors import FaultyData
from dltrain.image_files import ImageSource, exists, no_image

HYPHEN = re.compile(r"(?<=\w) - (?=\w)")


class CaptionKeys(DataKeys):
    channels: int
    image_px: int
    vocab_size: int | None
    min_count: int
    max_length: int
    bucket_by_length: bool


class CaptionedImages(DataModule[CaptionBatch, Tensor]):
    """Images with reference captions. A subclass implements `captions_by_split` and `read_images`. The vocabulary has
    the words that occur at least `min_count` times in the training captions. Captions of more than `max_length` words
    are not trained on; evaluation compares with all references of an image.

    `bucket_by_length`: training images whose captions have similar length share a batch, which saves steps of the
    decoder. Not for a backbone whose batch normalisation trains: similar captions have similar images, so its batch
    statistics would reveal the length."""

    batch_type = CaptionBatch
    input_kind = "image"
    decoding = "pillow"  # of photos, see images.py

    def __init__(self, *, channels: int, image_px: int, vocab_size: int | None, min_count: int, max_length: int,
                 bucket_by_length: bool, **keys: Unpack[DataKeys]):
        super().__init__(**keys)
        self.channels, self.image_px, self.vocab_size, self.max_length = channels, image_px, vocab_size, max_length
        self.bucket_by_length = bucket_by_length
        self.tokenizer = Tokenizer(words=True, lower=True, min_count=min_count)
        self.texts: dict[str, list[list[str]]] = {}  # the references of each image, as they were written
        self.captions: dict[str, list[list[list[int]]]] = {}  # the same as indices, from START to END

    def captions_by_split(self) -> dict[str, list[list[str]]]:
        """The references of each image, by split."""
        raise NotImplementedError

    def read_images(self, split: str, batches: list[Tensor]) -> Iterator[Tensor]:
        """Yields (B, C, H, W) uint8 for each tensor of indices >= 0."""
        raise NotImplementedError

    def load(self) -> None:
        self.texts = self.captions_by_split()
        self.set_vocabulary([text for texts in self.texts["train"] for text in texts])
        indices = index_symbols(self.vocabularies["words"])
        for split in SPLITS:
            max_length = self.max_length if split == "train" else None
            self.captions[split] = [self.encode_captions(texts, indices, max_length) for texts in self.texts[split]]

    def set_vocabulary(self, texts: list[str]) -> None:
        """Keeps an existing vocabulary, else sets that of these training captions."""
        if "words" not in self.vocabularies:
            self.vocabularies["words"] = self.tokenizer.vocabulary(texts)

    def encode_captions(self, texts: list[str], indices: dict[str, int], max_length: int | None) -> list[list[int]]:
        """The captions of one image that have up to `max_length` words; if none has, the first one, cut off."""
        rows = [self.tokenizer.encode(text, indices) for text in texts]
        short = [row for row in rows if max_length is None or len(row) <= max_length]
        return [[START, *row, END] for row in short or [rows[0][:max_length]]]

    def unknown_counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        return {"words": {split: count_unknown(row[1:-1] for image in self.captions[split] for row in image)
                          for split in SPLITS}}

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["words"])}

    def describe(self) -> str:
        counts = ", ".join(f"{len(self.texts[split]):,} {split} ({sum(map(len, self.texts[split])):,} captions)"
                           for split in SPLITS)
        return f"{counts}, {len(self.vocabularies['words']):,} words"

    def num_samples(self, split: str) -> int:
        return len(self.texts[split])

    def bucket_keys(self) -> Tensor | None:
        if not self.bucket_by_length:
            return None
        return torch.tensor([max(map(len, captions)) for captions in self.captions["train"]])

    def read(self, split: str, batches: list[Tensor]) -> Iterator[CaptionBatch]:
        """An index of -1 gives the first image without captions."""
        images = self.read_images(split, [batch.clamp_min(0) for batch in batches])
        for indices, pixels in zip(batches, images, strict=True):
            yield CaptionBatch(pixels, self.stack(split, indices), indices)

    def read_rows(self, split: str, batches: list[Tensor]) -> Iterator[CaptionBatch]:
        """The captions are padded to the longest of the batch of all."""
        images = self.read_images(split, [self.own_rows(batch) for batch in batches])
        for indices, pixels in zip(batches, images, strict=True):
            yield CaptionBatch(pixels, self.own_rows(self.stack(split, indices)), self.own_rows(indices))

    def stack(self, split: str, indices: Tensor) -> Tensor:
        return stack_captions([self.captions[split][i] if i >= 0 else [] for i in indices.tolist()])

    def training_pixels(self, at_most: int) -> Tensor:
        return torch.cat(list(self.pixel_batches(at_most)))

    def pixel_batches(self, at_most: int) -> Iterator[Tensor]:
        """The first images, up to 500."""
        indices = torch.arange(min(at_most, 500, self.num_samples("train")))
        return self.read_images("train", list(indices.split(25)))

    def read_input(self, source: ImageSource) -> Tensor:
        return read_image(source, self.channels, self.image_px, self.decoding)

    def encode_inputs(self, inputs: list[Tensor]) -> CaptionBatch:
        return CaptionBatch(torch.stack(inputs), stack_captions([[] for _ in inputs]), torch.full((len(inputs),), -1))

    def word_vectors(self, file: str, size: int) -> tuple[Tensor, Tensor]:
        """Returns the indices (N,) of the words of the vocabulary that the file has, and their vectors (N, size)."""
        return read_word_vectors(Path(file).expanduser(), index_symbols(self.vocabularies["words"]), size)

    def join(self, indices: list[int]) -> str:
        """The sentence of these words; a hyphen joins the words beside it, as in t-shirt."""
        return HYPHEN.sub("-", self.tokenizer.join([self.vocabularies["words"][index] for index in indices]))

    def references(self, split: str, index: int) -> list[str]:
        return [" ".join(text.split()) for text in self.texts[split][index]]


def stack_captions(captions: list[list[list[int]]]) -> Tensor:
    """The captions of B images as (B, R, T) int64, padded with PAD; R >= 1, T >= 2."""
    num_references = max(1, *map(len, captions)) if captions else 1
    rows = [row for image in captions for row in [*image, *[[]] * (num_references - len(image))]]
    flat, _ = pad_sequences(rows or [[]])
    return F.pad(flat, (0, max(0, 2 - flat.shape[1]))).view(len(captions), num_references, -1).long()


class CaptionLine(NamedTuple):
    """A caption, and the file and line where it stands."""

    place: str
    image: Path
    text: str


CaptionsByPhoto = dict[Path, list[CaptionLine]]


def group_by_photo(lines: Iterable[CaptionLine]) -> CaptionsByPhoto:
    """Groups the captions by photo. Raises DataError for a photo that does not exist."""
    captions: CaptionsByPhoto = {}
    for line in lines:
        captions.setdefault(line.image, []).append(line)
    missing = [f"{first.place}: {no_image(image)}" for image, (first, *_) in captions.items() if not exists(image)]
    refuse(missing, f"{len(missing)} of {len(captions)} photos are missing")
    return captions


class PhotoCaptionKeys(CaptionKeys):
    root: str | None
    val_share: float
    test_share: NotRequired[float | None]
    bad_captions: str
    num_workers: int
    decoding: NotRequired[str]


class CaptionedPhotos(CaptionedImages):
    """Photos with captions from files. A subclass implements `find_captions`. Photos are scaled and cut to their
    central square of image_px.

    Where the files name no test photos, `test_share` of the training photos is held out, and likewise `val_share`.
    `test_share` is None in runs of earlier versions, which held out none. `decoding`: pillow, as in those, or fast.
    `bad_captions`: refuse (with file and line) or drop (and count) a caption that is empty, a duplicate or without any
    word of the vocabulary."""

    def __init__(self, *, root: str | None, val_share: float, bad_captions: str, num_workers: int,
                 test_share: float | None = None, decoding: str = "pillow", **keys: Unpack[CaptionKeys]):
        super().__init__(**keys)
        self.root, self.num_workers, self.decoding = root, num_workers, decoding
        self.val_share, self.test_share = val_share, test_share
        self.bad_captions, self.num_dropped = bad_captions, 0
        self.faults: list[str] = []  # of captions, with bad_captions=refuse
        self.paths: dict[str, list[Path]] = {}

    def find_captions(self, root: Path) -> dict[str, CaptionsByPhoto]:
        """The captions of each split; that of val, or of test, is empty if a share of train is to be held out."""
        raise NotImplementedError

    def captions_by_split(self) -> dict[str, list[list[str]]]:
        splits = self.find_captions(require_root(self.root, "the folder or file with the captions of the photos"))
        listed = {split: [*splits[split].items()] for split in SPLITS}
        self.held_out = hold_out_missing(listed, {"test": self.test_share, "val": self.val_share}, "photos",
                                         {"test": ("test", "captions"), "val": ("captions",)})
        photos = settle_photos(self, listed, itemgetter(0))
        kept = {split: {path: self.drop_duplicates(lines) for path, lines in photos[split]} for split in SPLITS}
        self.set_vocabulary([line.text for lines in kept["train"].values() for line in lines])
        indices = index_symbols(self.vocabularies["words"])
        texts: dict[str, list[list[str]]] = {}
        for split in SPLITS:
            known = {path: self.drop_unknown(lines, indices) for path, lines in kept[split].items()}
            self.paths[split] = [path for path, lines in known.items() if lines]
            self.leave_out("a photo without a caption", [path for path, lines in known.items() if not lines])
            texts[split] = [[line.text for line in lines] for lines in known.values() if lines]
            self.list_photos(split, self.root, [
                (path, f"{len(captions)} captions {digest_of(captions)}")
                for path, captions in zip(self.paths[split], texts[split], strict=True)])
        if self.faults:
            raise FaultyData("" if len(self.faults) == 1 else f"{len(self.faults)} captions are bad", self.faults,
                             "data.bad_captions=drop leaves such captions out")
        return texts

    def drop_duplicates(self, lines: list[CaptionLine]) -> list[CaptionLine]:
        """Returns the captions of a photo without empty and repeated ones."""
        kept: dict[str, CaptionLine] = {}
        for line in lines:
            tokens = " ".join(self.tokenizer.tokenize(line.text))
            if not tokens:
                self.refuse_or_count(line, "the caption is empty")
            elif tokens in kept:
                self.refuse_or_count(line, f"{line.image.name} has this caption already, at {kept[tokens].place}")
            else:
                kept[tokens] = line
        return list(kept.values())

    def drop_unknown(self, lines: list[CaptionLine], indices: dict[str, int]) -> list[CaptionLine]:
        """Returns the captions of a photo without those that have no known word."""
        kept = []
        for line in lines:
            if all(index == UNKNOWN for index in self.tokenizer.encode(line.text, indices)):
                self.refuse_or_count(line, f"no word of {line.text.strip()[:40]!r} is in the vocabulary")
            else:
                kept.append(line)
        return kept

    def refuse_or_count(self, line: CaptionLine, fault: str) -> None:
        """Notes a fault, with bad_captions=refuse; `captions_by_split` raises all of them."""
        if self.bad_captions == "refuse":
            self.faults.append(f"{line.place}: {fault}")
        self.num_dropped += 1

    def describe(self) -> str:
        return super().describe() + (f"; {self.num_dropped} captions dropped" if self.num_dropped else "")

    def read_images(self, split: str, batches: list[Tensor]) -> Iterator[Tensor]:
        decode = partial(read_image, channels=self.channels, px=self.image_px, decoding=self.decoding)
        return decode_batches(self.paths[split], decode, batches, self.num_workers, default_collate)

    def write_samples(self, folder: Path) -> str:
        return copy_images(self.paths["test"][:4], folder)
