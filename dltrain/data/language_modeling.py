"""Running text as streams of characters for a language model: the base class of its data sets.

The training split is cut into `batch_size` streams of equal length for each process, which run side by side, a held-out
split into EVAL_STREAMS, whatever the batch size. A batch is a window of `window` symbols of each stream, and the next
batch continues where it ends, so that the hidden state can be carried over (truncated backpropagation through time).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NotRequired, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, UNKNOWN, TokenBatch
from dltrain.data.datamodule import SPLITS, DataKeys, DataModule
from dltrain.data.loader import EvalLoader, TrainLoader
from dltrain.data.sequences import SPECIAL_SYMBOLS
from dltrain.errors import DataError

EVAL_STREAMS, LEAST_STREAM = 32, 256  # of a held-out split; fewer if they would be shorter than so many symbols
Indices = NDArray[np.int16 | np.int32]  # of characters in a vocabulary


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
        self.digests: dict[str, str] = {}
        self.unknown: dict[str, int] = {}
        self.counts: dict[str, int] = {}

    def texts(self) -> dict[str, str]:
        """The text of each split."""
        raise NotImplementedError

    def load(self) -> None:
        if self.world_size > 1 and not self.as_one:
            raise DataError("trainer.as_one=false: a text needs true, which saves the streams' state of all processes")
        is_fresh = "characters" not in self.vocabularies
        splits = self.encode_splits()
        symbols = self.vocabularies["characters"]
        if self.vocab_size not in (None, len(symbols)):
            raise DataError(f"data.vocab_size={self.vocab_size}, but the training split has {len(symbols)} symbols")
        for split, indices in splits.items():
            length = len(indices)
            held_out = max(1, min(EVAL_STREAMS, length // LEAST_STREAM))
            streams = self.batch_size * self.world_size if split == "train" else held_out
            if length <= streams * 2:
                raise DataError(f"the {split} split has {length:,} characters, too few for {streams} streams; "
                                "needs a smaller data.batch_size or more text")
            self.tokens[split] = cut_streams(torch.from_numpy(indices), streams, whole=split != "train")
            self.unknown[split] = 0 if is_fresh and split == "train" else count_unknown(indices)
            self.counts[split] = length
            self.digests[split] = hashlib.blake2b(indices.data, digest_size=16).hexdigest()

    def encode_splits(self) -> dict[str, Indices]:
        """The indices (N,) of the characters of each split; sets the vocabulary if there is none."""
        texts = self.texts()
        symbols = self.vocabularies.setdefault("characters", [*SPECIAL_SYMBOLS, *sorted({*texts["train"]})])
        return {split: encode_characters(text, symbols) for split, text in texts.items()}

    def digest(self, split: str) -> str:
        return self.digests[split]

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["characters"])}

    def describe(self) -> str:
        sizes = ", ".join(f"{self.counts[split]:,} {split}" for split in SPLITS)
        return f"{sizes} characters of {len(self.vocabularies['characters'])} symbols"

    def unknown_counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        return {"characters": {split: (self.unknown[split], self.counts[split]) for split in SPLITS}}

    def encode_inputs(self, inputs: list[str]) -> TokenBatch:
        """The texts must have the same length."""
        rows = [torch.from_numpy(encode_characters(text, self.vocabularies["characters"])) for text in inputs]
        tokens = torch.stack(rows).long()
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
        """Each batch is one window of all streams of this process; the last one of a split may be shorter."""
        tokens = self.own_rows(self.tokens[split])
        is_filled_up = self.rank >= len(self.tokens[split])  # by a stream that another process has
        for indices in batches:
            start = int(indices[0]) * self.window
            window = tokens[:, start : start + self.window + 1].long()
            targets = window[:, 1:].contiguous()
            yield TokenBatch(window[:, :-1].clamp_min(0).contiguous(),
                             targets.fill_(IGNORED_LABEL) if is_filled_up else targets)

    def train_dataloader(self) -> TrainLoader[TokenBatch]:
        if self.train_loader is None:
            self.train_loader = TrainLoader(partial(self.read, "train"), self.num_samples("train"), 1, self.seed,
                                            max_batches=self.max_batches, shuffled=False)
        return self.train_loader

    def eval_loader(self, split: str) -> EvalLoader[TokenBatch]:
        return EvalLoader(partial(self.read, split), self.num_samples(split), 1, max_batches=self.max_batches)


def index_type(num_symbols: int) -> type[np.int16] | type[np.int32]:
    """The smallest type of the indices of a vocabulary that has IGNORED_LABEL too."""
    return np.int16 if num_symbols <= np.iinfo(np.int16).max else np.int32


def encode_characters(text: str, symbols: list[str]) -> Indices:
    """The index (N,) of each character, UNKNOWN if it is not among `symbols`, which are SPECIAL_SYMBOLS and then
    characters."""
    known = [ord(symbol) for symbol in symbols[len(SPECIAL_SYMBOLS) :]]
    table = np.full(max(known, default=0) + 2, UNKNOWN, index_type(len(symbols)))  # the last entry is for all beyond
    table[known] = np.arange(len(SPECIAL_SYMBOLS), len(symbols))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return table[np.minimum(codes, len(table) - 1)]


def count_unknown(indices: Indices) -> int:
    return sum(int((indices[start : start + 2**20] == UNKNOWN).sum()) for start in range(0, len(indices), 2**20))


def cut_streams(tokens: Tensor, streams: int, whole: bool) -> Tensor:
    """Cuts tokens (N,) into (streams, L + 1). Each row ends with the first symbol of the next row, so that each symbol
    but the first is predicted once. With `whole` the last row is padded with IGNORED_LABEL; otherwise up to streams - 1
    symbols at the end are left out, and the result is a view."""
    length = -(-(len(tokens) - 1) // streams) if whole else (len(tokens) - 1) // streams
    if whole:
        tokens = F.pad(tokens, (0, streams * length + 1 - len(tokens)), value=IGNORED_LABEL)
    return tokens.as_strided((streams, length + 1), (length, 1))
