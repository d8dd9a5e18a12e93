"""Images with sentences: what is common to the sources (scene_captions.py, caption_files.py).

The words are the training split's; a word is known that comes at least `min_count` times there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import END, START, CaptionBatch
from dltrain.data.classification import read_image
from dltrain.data.loader import DataModule
from dltrain.data.sequences import SPLITS, Tokenizer, encoder, padded
from dltrain.data.vocabulary import read_vectors


class Captions(DataModule):
    """A subclass says `described` and `pictures`. Longer captions than `max_length` words are not trained on; in the
    evaluation every reference counts. `bucketed`: training images with captions of like length come together, which
    saves steps of the decoder; not for a backbone whose batch normalisation trains, since like captions are of like
    images, and its statistics would then tell it the length."""

    batch_type = CaptionBatch

    def __init__(self, *, channels: int, image_px: int, vocab_size: int | None, min_count: int, max_length: int,
                 bucketed: bool, **keys: Any):
        super().__init__(**keys)
        self.channels, self.image_px, self.vocab_size, self.max_length = channels, image_px, vocab_size, max_length
        self.bucketed = bucketed
        self.tokenizer = Tokenizer(words=True, lower=True, min_count=min_count)
        self.texts: dict[str, list[list[str]]] = {}  # the references of each image, as they were written
        self.captions: dict[str, list[list[list[int]]]] = {}

    def described(self) -> dict[str, list[list[str]]]:
        """The references of each image, by split."""
        raise NotImplementedError

    def pictures(self, split: str, batches: list[Tensor]) -> Iterator[Tensor]:
        """The images (B, C, H, W) uint8 of these indices, none below 0."""
        raise NotImplementedError

    def load(self) -> None:
        self.texts = self.described()
        if "words" not in self.vocabularies:
            self.vocabularies["words"] = self.tokenizer.vocabulary(
                [text for texts in self.texts["train"] for text in texts])
        encode = encoder(self.tokenizer, self.vocabularies["words"])
        for split in SPLITS:
            self.captions[split] = []
            for texts in self.texts[split]:
                every = [[START, *encode(text), END] for text in texts]
                short = [caption for caption in every if split != "train" or len(caption) - 2 <= self.max_length]
                self.captions[split].append(short or [[*every[0][: self.max_length + 1], END]])

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["words"])}

    def describe(self) -> str:
        counts = ", ".join(f"{len(self.texts[split]):,} {split} ({sum(map(len, self.texts[split])):,} captions)"
                           for split in SPLITS)
        return f"{counts}, {len(self.vocabularies['words']):,} words"

    def num_samples(self, split: str) -> int:
        return len(self.texts[split])

    def lengths(self) -> Tensor | None:
        return torch.tensor([max(map(len, captions)) for captions in self.captions["train"]]) if self.bucketed else None

    def read(self, split: str, batches: list[Tensor]) -> Iterator[CaptionBatch]:
        """An index of -1 gives the first image again, without captions."""
        for indices, images in zip(batches, self.pictures(split, [batch.clamp_min(0) for batch in batches]),
                                   strict=True):
            yield CaptionBatch(images, stacked([self.captions[split][i] if i >= 0 else [] for i in indices.tolist()]),
                               indices)

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, C, H, W) uint8 of up to 500 training images, for statistics."""
        few = torch.arange(min(at_most, 500, self.num_samples("train")))
        return torch.cat(list(self.pictures("train", list(few.split(50)))))

    def read_input(self, path: Path) -> Tensor:
        return read_image(path, self.channels, self.image_px)

    def word_vectors(self, file: str, size: int) -> tuple[Tensor, Tensor]:
        """The numbers (N,) of the words that the file has, and their vectors (N, size)."""
        return read_vectors(Path(file).expanduser(), self.vocabularies["words"], size)

    def join(self, numbers: list[int]) -> str:
        return self.tokenizer.join([self.vocabularies["words"][number] for number in numbers])

    def references(self, split: str, number: int) -> list[str]:
        """An image's captions as the same tokens that the model writes, blanks between them."""
        return [self.tokenizer.join(self.tokenizer.split(text)) for text in self.texts[split][number]]


def stacked(captions: list[list[list[int]]]) -> Tensor:
    """(B, R, T) int64, PAD where there is nothing."""
    most = max(1, *map(len, captions)) if captions else 1
    flat, _ = padded([row for one in captions for row in [*one, *[[]] * (most - len(one))]] or [[]])
    return F.pad(flat, (0, max(0, 2 - flat.shape[1]))).view(len(captions), most, -1).long()
