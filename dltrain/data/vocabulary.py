"""Text files to strings, strings to numbers. The vocabulary is the training split's and is kept with the run."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dltrain.batches import UNKNOWN
from dltrain.errors import DataError

SPECIAL = ["<pad>", "<unk>", "<start>", "<end>"]  # PAD, UNKNOWN, START, END


def characters_of(text: str) -> list[str]:
    """The special symbols, then every character in the order of its number."""
    return SPECIAL + sorted(set(text))


def words_of(sentences: Iterable[Sequence[str]], at_least: int = 1) -> list[str]:
    """The special symbols, then every word that comes at least so often, the most frequent first."""
    counts = Counter(word for words in sentences for word in words)
    kept = sorted((word for word, count in counts.items() if count >= at_least), key=lambda w: (-counts[w], w))
    return SPECIAL + kept


def encoded(text: str, symbols: list[str]) -> Tensor:
    """(N,) int64: each character's number, UNKNOWN for one that is not among `symbols` (special ones first, then
    sorted characters)."""
    known = np.array([ord(symbol) for symbol in symbols[len(SPECIAL) :]], dtype=np.uint32)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(known):
        return torch.full((len(codes),), UNKNOWN)
    at = np.searchsorted(known, codes).clip(max=len(known) - 1)
    return torch.from_numpy(np.where(known[at] == codes, at + len(SPECIAL), UNKNOWN).astype(np.int64))


def numbered(words: Sequence[str], places: dict[str, int]) -> list[int]:
    return [places.get(word, UNKNOWN) for word in words]


def read_text(file: Path, encoding: str = "utf-8") -> str:
    """The whole file, without a byte order mark. Raises DataError with the file, and the byte where it is no text."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    if not raw.strip():
        raise DataError(f"{file}: empty")
    if b"\0" in raw[:8192] and not encoding.startswith("utf-16"):
        raise DataError(f"{file}: not text (a zero byte at {raw.index(0)})")
    try:
        return raw.decode("utf-8-sig" if encoding == "utf-8" else encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not {encoding} (byte 0x{raw[error.start]:02x} at offset {error.start:,}); "
                        "data.encoding=latin-1 reads any file") from None
    except LookupError:
        raise DataError(f"data.encoding={encoding}: Python knows no such encoding") from None


def read_vectors(file: Path, symbols: list[str], size: int) -> tuple[Tensor, Tensor]:
    """Of a text file with a word and its values a line (GloVe; word2vec's has a first line of two counts): the numbers
    (N,) of those words that are among `symbols`, and their vectors (N, size). Raises DataError by line."""
    places = {symbol: number for number, symbol in enumerate(symbols) if number >= len(SPECIAL)}
    found: dict[int, list[float]] = {}
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                if len(values) != size:
                    raise DataError(f"{file}:{number}: {len(values)} values, but model.embedding={size}")
                if word in places:
                    found[places[word]] = [float(value) for value in values]
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not a number
        raise DataError(f"{file}: not a file of word vectors ({str(error)[:80]})") from None
    if not found:
        raise DataError(f"{file}: has none of the {len(places)} words")
    return torch.tensor(list(found)), torch.tensor(list(found.values()))


def text_files(root: str | None, key: str, example: str) -> list[Path]:
    """The files that `root` means: one file, a folder's *.txt and the like, or a glob. Raises DataError."""
    if root is None:
        raise DataError(f"{key} must be given: {example}")
    place = Path(root).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        files = sorted(p for p in place.rglob("*") if p.is_file() and not p.name.startswith("."))
    else:
        files = sorted(Path(p) for p in glob.glob(str(place), recursive=True) if Path(p).is_file())
    if not files:
        raise DataError(f"{key}={root}: no such file, no folder with files and no glob that fits; {example}")
    return files
