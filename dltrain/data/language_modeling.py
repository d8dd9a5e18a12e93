"""Running text as streams of characters for a language model: the base class of its data sets.

A split is cut into `batch_size` streams of equal length that run side by side. A batch is a window of `window` symbols
of each stream, and the next batch continues where it ends, so that the hidden state can be carried over (truncated
backpropagation through time).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NotRequired, Unpack

import numpy as np
import torch
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, UNKNOWN, TokenBatch
from dltrain.data.datamodule import SPLITS, DataKeys, DataModule
from dltrain.data.loader import EvalLoader, TrainLoader
from dltrain.data.sequences import SPECIAL_SYMBOLS
from dltrain.errors import DataError


class StreamKeys(DataKeys):
    window: int
    vocab_size: NotRequired[int | None]


class TextStreams(DataModule[TokenBatch, str]):
    """Streams of text. A subclass implements `texts`. `window`: T, the number of steps that gradients flow back
    through."""

    batch_type = TokenBatch
    input_kind = "text"
    shuffled = False  # a window continues the one before it

    def __init__(self, *, window: int, vocab_size: int | None = None, **keys: Unpack[DataKeys]):
        super().__init__(**keys)
        self.window, self.vocab_size = window, vocab_size
        self.tokens: dict[str, Tensor] = {}  # (B, L + 1) of each split, IGNORED_LABEL where a split does not fill it

    def texts(self) -> dict[str, str]:
        """The text of each split."""
        raise NotImplementedError

    def load(self) -> None:
        if self.world_size > 1:
            raise DataError("a text continues from batch to batch, so it trains on one device: trainer.devices=1")
        texts = self.texts()
        symbols = self.vocabularies.setdefault("characters", [*SPECIAL_SYMBOLS, *sorted({*texts["train"]})])
        if self.vocab_size not in (None, len(symbols)):
            raise DataError(f"data.vocab_size={self.vocab_size}, but the training split has {len(symbols)} symbols")
        for split, text in texts.items():
            tokens = encode_characters(text, symbols)
            streams = self.batch_size if split == "train" else max(1, min(self.batch_size, len(tokens) // (4 * 64)))
            if len(tokens) <= streams * 2:
                raise DataError(f"the {split} split has {len(tokens):,} characters, too few for {streams} streams; "
                                "needs a smaller data.batch_size or more text")
            self.tokens[split] = cut_streams(tokens, streams, whole=split != "train")
        self.unknown = {split: int((tokens[:, 1:] == UNKNOWN).sum()) for split, tokens in self.tokens.items()}
        self.counts = {split: len(text) for split, text in texts.items()}

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["characters"])}

    def describe(self) -> str:
        sizes = ", ".join(f"{self.counts[split]:,} {split}" for split in SPLITS)
        unknown = ", ".join(f"{count:,} in {split}" for split, count in self.unknown.items() if count)
        return f"{sizes} characters of {len(self.vocabularies['characters'])} symbols" + (
            f" (unknown: {unknown})" if unknown else "")

    def encode_inputs(self, inputs: list[str]) -> TokenBatch:
        """The texts must have the same length."""
        tokens = torch.stack([encode_characters(text, self.vocabularies["characters"]) for text in inputs])
        return TokenBatch(tokens, torch.full_like(tokens, IGNORED_LABEL))

    def write_samples(self, folder: Path) -> str:
        start = self.tokens["test"][0, :40]
        symbols = self.vocabularies["characters"]
        prompt = "".join(symbols[i] for i in start.tolist() if i > UNKNOWN).split("\n")[0][:30].strip()
        (folder / "prompt.txt").write_text(prompt + "\n", encoding="utf-8")
        quotable = prompt.replace("\\", "").replace('"', "").replace("$", "").replace("`", "")
        return f'prompt="{quotable} " length=400 temperature=0.8'

    def num_samples(self, split: str) -> int:
        """The number of windows."""
        return -(-(self.tokens[split].shape[1] - 1) // self.window)

    def read(self, split: str, batches: list[Tensor]) -> Iterator[TokenBatch]:
        """Each batch is one window of all streams; the last one of a split may be shorter."""
        tokens = self.tokens[split]
        for indices in batches:
            start = int(indices[0]) * self.window
            window = tokens[:, start : start + self.window + 1]
            yield TokenBatch(window[:, :-1].clamp_min(0).contiguous(), window[:, 1:].contiguous())

    def train_dataloader(self) -> TrainLoader[TokenBatch]:
        if self.train_loader is None:
            self.train_loader = TrainLoader(partial(self.read, "train"), self.num_samples("train"), 1, self.seed,
                                            max_batches=self.max_batches, shuffled=False)
        return self.train_loader

    def eval_loader(self, split: str) -> EvalLoader[TokenBatch]:
        return EvalLoader(partial(self.read, split), self.num_samples(split), 1, max_batches=self.max_batches)


def encode_characters(text: str, symbols: list[str]) -> Tensor:
    """Returns (N,) int64, the index of each character, UNKNOWN if it is not among `symbols`, which are SPECIAL_SYMBOLS
    and then characters sorted by code point."""
    known = np.array([ord(symbol) for symbol in symbols[len(SPECIAL_SYMBOLS) :]], dtype=np.uint32)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(known):
        return torch.full((len(codes),), UNKNOWN)
    positions = np.searchsorted(known, codes).clip(max=len(known) - 1)
    indices = np.where(known[positions] == codes, positions + len(SPECIAL_SYMBOLS), UNKNOWN)
    return torch.from_numpy(indices.astype(np.int64))


def cut_streams(tokens: Tensor, streams: int, whole: bool) -> Tensor:
    """Cuts tokens (N,) into (streams, L + 1). Each row ends with the first symbol of the next row, so that each symbol
    but the first is predicted once. With `whole` the last row is padded with IGNORED_LABEL; otherwise up to streams - 1
    symbols at the end are left out."""
    length = -(-(len(tokens) - 1) // streams) if whole else (len(tokens) - 1) // streams
    padded = torch.full((streams * length + 1,), IGNORED_LABEL)
    padded[: min(len(tokens), len(padded))] = tokens[: len(padded)]
    return torch.stack([padded[row * length : (row + 1) * length + 1] for row in range(streams)])
