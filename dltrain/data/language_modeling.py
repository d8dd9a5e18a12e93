"""Text as streams of characters for a language model: the running Python's own, Shakespeare, or any file.

A split is cut into `batch_size` texts of equal length that run side by side; a batch is a window of `window` symbols of
each, and the next batch goes on where it ends, so that a state can be carried over (truncated backpropagation through
time).
"""

from __future__ import annotations

import hashlib
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, UNKNOWN, TokenBatch, generator
from dltrain.data.loader import DataModule, EvalLoader, TrainLoader
from dltrain.data.vocabulary import characters_of, encoded, read_text, text_files
from dltrain.errors import DataError

SPLITS = ("train", "val", "test")


class Streams(DataModule):
    """A subclass says `texts`. `window`: T, the symbols that a gradient goes back through."""

    batch_type = TokenBatch
    shuffled = False  # a window follows the one before it

    def __init__(self, *, window: int, vocab_size: int | None = None, **keys: Any):
        super().__init__(**keys)
        self.window, self.vocab_size = window, vocab_size
        self.tokens: dict[str, Tensor] = {}  # (B, L + 1) of each split, IGNORED_LABEL where a split does not fill it

    def texts(self) -> tuple[str, str, str]:
        """train, val, test."""
        raise NotImplementedError

    def load(self) -> None:
        if self.world_size > 1:
            raise DataError("text runs on from batch to batch, so it trains on one device: trainer.devices=1")
        texts = dict(zip(SPLITS, self.texts(), strict=True))
        symbols = self.vocabularies.setdefault("characters", characters_of(texts["train"]))
        if self.vocab_size not in (None, len(symbols)):
            raise DataError(f"data.vocab_size={self.vocab_size}, but the training split has {len(symbols)} symbols")
        for split, text in texts.items():
            found = encoded(text, symbols)
            streams = self.batch_size if split == "train" else max(1, min(self.batch_size, len(found) // (4 * 64)))
            if len(found) <= streams * 2:
                raise DataError(f"the {split} split has {len(found):,} characters, too few for {streams} streams; a "
                                "smaller data.batch_size or more text")
            self.tokens[split] = side_by_side(found, streams, whole=split != "train")
        self.unknown = {split: int((tokens[:, 1:] == UNKNOWN).sum()) for split, tokens in self.tokens.items()}
        self.counts = {split: len(text) for split, text in texts.items()}

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["characters"])}

    def describe(self) -> str:
        sizes = ", ".join(f"{self.counts[split]:,} {split}" for split in SPLITS)
        unknown = ", ".join(f"{count:,} in {split}" for split, count in self.unknown.items() if count)
        return f"{sizes} characters of {len(self.vocabularies['characters'])} symbols" + (
            f" (unknown: {unknown})" if unknown else "")

    def write_samples(self, folder: Path) -> str:
        start = self.tokens["test"][0, :40]
        symbols = self.vocabularies["characters"]
        words = "".join(symbols[i] for i in start.tolist() if i > UNKNOWN).split("\n")[0][:30].strip()
        (folder / "prompt.txt").write_text(words + "\n", encoding="utf-8")
        quoted = words.replace("\\", "").replace('"', "").replace("$", "").replace("`", "")
        return f'prompt="{quoted} " length=400 temperature=0.8'

    def num_samples(self, split: str) -> int:
        """Windows."""
        return -(-(self.tokens[split].shape[1] - 1) // self.window)

    def read(self, split: str, batches: list[Tensor]) -> Iterator[TokenBatch]:
        """The windows of these numbers. The last one of a split may be shorter."""
        tokens = self.tokens[split]
        for numbers in batches:
            first = int(numbers[0]) * self.window
            window = tokens[:, first : first + self.window + 1]
            yield TokenBatch(window[:, :-1].clamp_min(0).contiguous(), window[:, 1:].contiguous())

    def train_dataloader(self) -> TrainLoader:
        if self.train_loader is None:  # a window a batch
            self.train_loader = TrainLoader(lambda batches: self.read("train", batches), self.num_samples("train"), 1,
                                            self.seed, max_batches=self.max_batches, shuffled=False)
        return self.train_loader

    def eval_loader(self, split: str) -> EvalLoader:
        return EvalLoader(lambda batches: self.read(split, batches), self.num_samples(split), 1,
                          max_batches=self.max_batches)


def side_by_side(tokens: Tensor, streams: int, whole: bool) -> Tensor:
    """(N,) as (streams, L + 1): each row goes on one symbol into the next one's, so that every symbol but the first
    is predicted once. `whole`: the last row is filled up with IGNORED_LABEL; else up to streams - 1 symbols are left
    out."""
    length = -(-(len(tokens) - 1) // streams) if whole else (len(tokens) - 1) // streams
    filled = torch.full((streams * length + 1,), IGNORED_LABEL)
    filled[: min(len(tokens), len(filled))] = tokens[: len(filled)]
    return torch.stack([filled[row * length : (row + 1) * length + 1] for row in range(streams)])


def cut(text: str) -> tuple[str, str, str]:
    """The first 90 %, the next 5 %, the last 5 %."""
    one, two = int(len(text) * 0.9), int(len(text) * 0.95)
    return text[:one], text[one:two], text[two:]


class Stdlib(Streams):
    """`contents`: `topics`, the text of help(), each paragraph once (long topics repeat short ones), topics in an
    order drawn once for all; or `source`, the library's own modules. Both differ a little by Python's version."""

    def __init__(self, *, contents: str, **keys: Any):
        super().__init__(**keys)
        self.contents = contents

    def texts(self) -> tuple[str, str, str]:
        whole = topics() if self.contents == "topics" else [read_text(file) for file in library_files()]
        order = torch.randperm(len(whole), generator=generator("split", "stdlib", self.contents))
        return cut("\n\n".join(whole[i] for i in order.tolist()))


def topics() -> list[str]:
    from pydoc_data.topics import topics as told

    seen: set[str] = set()
    kept = []
    for name in sorted(told):
        fresh = [p for p in told[name].strip().split("\n\n") if p not in seen]
        seen.update(fresh)
        if fresh:
            kept.append("\n\n".join(fresh))
    return kept


def library_files() -> list[Path]:
    """The modules of the running Python's library, packages and tests left out."""
    return sorted(file for file in Path(sysconfig.get_paths()["stdlib"]).glob("*.py") if file.stat().st_size > 0)


class TextFiles(Streams):
    """`root`: a file, a folder or a glob; files are read in the order of their names and joined. The last tenth is held
    out, half of it for validation and half for the test."""

    def __init__(self, *, root: str | None, encoding: str, **keys: Any):
        super().__init__(**keys)
        self.root, self.encoding = root, encoding

    def texts(self) -> tuple[str, str, str]:
        files = text_files(self.root, "data.root", "a text file, a folder of them or a glob, as data.root='notes/*.md'")
        return cut("\n".join(read_text(file, self.encoding) for file in files))


SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Shakespeare(Streams):
    """1,115,394 characters of plays, the file that A. Karpathy's char-rnn came with; below `root` as shakespeare.txt.
    The last tenth is the validation split, as elsewhere, and the test split too: there is no third one."""

    def __init__(self, *, root: str, download: bool, **keys: Any):
        super().__init__(**keys)
        self.root, self.download = Path(root).expanduser(), download

    def texts(self) -> tuple[str, str, str]:
        text = self.fetch()
        train, held_out = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
        return train, held_out, held_out

    def fetch(self) -> str:
        file = self.root if self.root.is_file() else self.root / "shakespeare.txt"
        if not file.is_file():
            way = f"put {SHAKESPEARE} there, or set data.root; data=stdlib needs no download"
            if not self.download:
                raise DataError(f"no file {file}: {way}")
            print(f"downloading {file}", flush=True)
            try:
                with urllib.request.urlopen(SHAKESPEARE, timeout=30) as answer:
                    raw = answer.read()
            except (urllib.error.URLError, OSError) as error:
                reason = getattr(error, "reason", error)
                raise DataError(f"no file {file}, and it cannot be downloaded ({reason}): {way}") from None
            self.check(raw, "the download")
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".part")
            partial.write_bytes(raw)
            partial.replace(file)
        self.check(file.read_bytes(), str(file))
        return read_text(file)

    def check(self, raw: bytes, what: str) -> None:
        found = hashlib.sha256(raw).hexdigest()
        if found != SHAKESPEARE_SHA256:
            raise DataError(f"{what}: {len(raw):,} bytes with sha256 {found[:12]}..., must be {SHAKESPEARE_SHA256[:12]}"
                            "...; delete it, or read it with data=text")
