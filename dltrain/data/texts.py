"""Text files: listing and reading them."""

from __future__ import annotations

import codecs
import glob
import math
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dltrain.data.splits import SPLIT_NAMES
from dltrain.errors import DataError
from dltrain.image_files import is_hidden

CLASS_FLAG = re.compile(r"\s+-?[01]$")  # whether a photo has an object of the class
HEAD_BYTES = 8192  # in which a file that is not text has a zero byte
PIECE_CHARACTERS = 100_000


def read_text(file: Path, encoding: str | None = None) -> str:
    """Reads the whole file, without a byte order mark and with \\n as line end. `encoding`: of data that have the key
    data.encoding; None for UTF-8. A file that begins with the mark of UTF-16 is read as such. Raises DataError with the
    file, and with the byte where it is not text."""
    advice = "data.encoding=latin-1 reads any file" if encoding else "save it as UTF-8"
    try:
        encoding = codecs.lookup(encoding or "utf-8").name
    except LookupError:
        raise DataError(f"data.encoding={encoding}: Python knows no such encoding") from None
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    if b"\0" in raw[:HEAD_BYTES] and not encoding.startswith("utf-16"):
        raise DataError(f"{file}: not text (a zero byte at {raw.index(0)})")
    try:
        text = raw.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not {encoding} (byte 0x{raw[error.start]:02x} at offset {error.start:,}); "
                        f"{advice}") from None
    if not text.strip():
        raise DataError(f"{file}: empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_pieces(file: Path, encoding: str | None = None) -> Iterator[str]:
    """The text of `read_text` in pieces, of which only one is in memory. Raises the same errors."""
    has_text = False
    try:
        with open(file, "rb") as raw:
            head = raw.read(HEAD_BYTES)
        name = codecs.lookup(encoding or "utf-8").name
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            name = "utf-16"
        if b"\0" in head and not name.startswith("utf-16"):
            raise UnicodeError
        with open(file, encoding="utf-8-sig" if name == "utf-8" else name) as text:  # line ends become \n
            while piece := text.read(PIECE_CHARACTERS):
                has_text = has_text or bool(piece.strip())
                yield piece
        if not has_text:
            raise DataError(f"{file}: empty")
    except (OSError, LookupError, UnicodeError):
        read_text(file, encoding)  # says what is wrong
        raise


def read_lines(file: Path, encoding: str | None = None) -> list[tuple[int, str]]:
    """Reads the lines that are not empty, with their numbers from 1 on."""
    text = read_text(file, encoding)
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def read_names(file: Path, has_flags: bool = False) -> list[str]:
    """Reads a list with the name of a photo per line; with `has_flags` maybe followed by 1, 0 or -1, as VOC's lists of
    one class have it. Raises DataError with the line for a path, and for a name that comes twice."""
    lines: dict[str, int] = {}
    for number, line in read_lines(file):
        name = CLASS_FLAG.sub("", line.strip()) if has_flags else line.strip()
        if "/" in name or "\\" in name or name.startswith("."):
            raise DataError(f"{file}:{number}: {name!r} must be a name, not a path")
        if name in lines:
            raise DataError(f"{file}:{number}: {name!r} is listed already, in line {lines[name]}")
        lines[name] = number
    return list(lines)


def find_text_files(root: Path) -> list[Path]:
    """Lists `root` itself if it is a file; else the files of the folder, without hidden ones, or those that match the
    glob, sorted. Raises DataError where there are none."""
    if root.is_file():
        return [root]
    if root.is_dir():
        files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    else:
        files = sorted(Path(path) for path in glob.glob(str(root), recursive=True) if Path(path).is_file())
    if not files:
        raise DataError(f"data.root={root}: no such file, no folder with files and no glob that matches a file")
    return files


def find_split_files(root: Path, suffixes: Sequence[str] = ()) -> dict[str, Path]:
    """Finds the file of each split in a folder: train, val (dev, valid) or test is a word of its name, and it ends in
    one of `suffixes`, if any. Raises DataError where train has no file or a split has several."""
    files: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        matches = [file for file in sorted(root.iterdir()) if file.is_file()
                   and any(name in re.split(r"[^a-z]+", file.stem.lower()) for name in names)
                   and (not suffixes or file.name.endswith(tuple(suffixes)))]
        if len(matches) > 1 or (split == "train" and not matches):
            ending = f", ending in {' or '.join(suffixes)}" if suffixes else ""
            raise DataError(f"data.root={root}: must have one {split} file ({' or '.join(names)} in its name{ending}), "
                            f"but has {', '.join(file.name for file in matches[:4]) or 'none'}")
        if matches:
            files[split] = matches[0]
    return files


def other_files(folder: Path, files: Collection[Path]) -> list[Path]:
    """The files of a folder that are not among `files`, without hidden ones."""
    return [path for path in sorted(folder.iterdir()) if not path.is_dir() and path not in files
            and not is_hidden(path.name)]


def read_word_vectors(file: Path, indices: dict[str, int], size: int) -> tuple[Tensor, Tensor]:
    """Reads a text file with a word and its `size` values per line (GloVe; word2vec's first line has two counts).
    Returns the `indices` (N,) of those words that the file has, and their vectors (N, size). Raises DataError."""
    vectors: dict[int, list[float]] = {}
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                if len(values) != size:
                    raise DataError(f"{file}:{number}: {len(values)} values, but model.embedding={size}")
                if word in indices:
                    vectors[indices[word]] = [float(value) for value in values]
                    if not all(map(math.isfinite, vectors[indices[word]])):
                        raise DataError(f"{file}:{number}: the vector of {word!r} has a value that is not finite")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not a number
        raise DataError(f"{file}: not a file of word vectors ({str(error)[:80]})") from None
    if not vectors:
        raise DataError(f"{file}: has none of the {len(indices)} words of the vocabulary")
    return torch.tensor(list(vectors)), torch.tensor(list(vectors.values()))
