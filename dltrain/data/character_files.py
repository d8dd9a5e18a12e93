"""Text files of any length as small integers: read piece by piece, two bytes a character.

Indices of large texts are kept in the user's cache folder (or the folder DLTRAIN_CACHE) and mapped into memory from
there at the next start, unless a file has changed.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dltrain.data.cache import cache_file, read_json, stamp_of, write_json
from dltrain.data.language_modeling import Indices, encode_characters, index_type
from dltrain.data.sequences import SPECIAL_SYMBOLS
from dltrain.data.splits import cut_text
from dltrain.data.texts import read_pieces

CACHED_FROM = 1_000_000  # characters; a smaller text is read at once
PIECE_BYTES = 1_000_000
RECENT_SECONDS = 2  # a file that was changed so recently may change again without another size or time


class EncodedText(NamedTuple):
    """indices (N,): the place of each character in SPECIAL_SYMBOLS + train + others. `train`: the characters of the
    training split by code point; `others`: those that only the held-out splits have."""

    indices: Indices
    train: str
    others: str


def encode_files(files: Sequence[Path], encoding: str, held_out: float = 0.1) -> EncodedText:
    """Encodes the files, joined by line ends. `held_out`: the share at the end that is not the training split. A cache
    that cannot be written only costs time. Raises DataError."""
    place = cache_file("texts", f"{encoding} {held_out:g} {[*map(os.path.abspath, files)]}")
    stamps = stamps_of(files)
    if (kept := read_cache(place, stamps)) is not None:
        return kept
    first, length = first_places(files, encoding)
    train_end = len(cut_text(range(length), held_out)["train"])
    train = "".join(sorted(symbol for symbol, start in first.items() if start < train_end))
    others = "".join(sorted(first.keys() - {*train}))
    symbols = [*SPECIAL_SYMBOLS, *train, *others]
    is_old = max(file.stat().st_mtime for file in files) < time.time() - RECENT_SECONDS
    if length >= CACHED_FROM and is_old:
        write_cache(place, files, encoding, symbols, {"files": stamps, "length": length, "train": train,
                                                      "others": others})
        if (kept := read_cache(place, stamps_of(files))) is not None:
            return kept
    indices, end = np.empty(length, index_type(len(symbols))), 0
    for piece in joined_pieces(files, encoding):
        indices[end : end + len(piece)] = encode_characters(piece, symbols)
        end += len(piece)
    return EncodedText(indices, train, others)


def joined_pieces(files: Sequence[Path], encoding: str) -> Iterator[str]:
    for number, file in enumerate(files):
        if number:
            yield "\n"
        yield from read_pieces(file, encoding)


def first_places(files: Sequence[Path], encoding: str) -> tuple[dict[str, int], int]:
    """Where each character occurs first, and the length of the text."""
    first: dict[str, int] = {}
    length = 0
    for piece in joined_pieces(files, encoding):
        for symbol in {*piece} - first.keys():
            first[symbol] = length + piece.index(symbol)
        length += len(piece)
    return first, length


def stamps_of(files: Sequence[Path]) -> list[list[str | int]]:
    """Path, size in bytes and time of change in ns of each file."""
    return [[os.path.abspath(file), *stamp_of(file)] for file in files]


def read_cache(place: Path, stamps: list[list[str | int]]) -> EncodedText | None:
    """The kept text of these files as they are now; None if there is none."""
    facts = read_json(place.with_suffix(".json"))
    try:
        if type(facts) is not dict or facts["files"] != stamps or facts["crc32"] != checksum_of(place):
            return None  # none yet, of another text, or damaged
        dtype = index_type(len(SPECIAL_SYMBOLS) + len(facts["train"]) + len(facts["others"]))
        indices: NDArray[np.int16 | np.int32] = np.memmap(place, dtype, "c")  # "c": a torch tensor may be made of it
    except (OSError, ValueError, KeyError):  # gone meanwhile, or of another version
        return None
    return EncodedText(indices, facts["train"], facts["others"])


def checksum_of(file: Path) -> int:
    """Read piece by piece: what is mapped into memory would count as memory of the process. Raises OSError."""
    checksum = 0
    if file.is_file():
        with open(file, "rb") as pieces:
            while piece := pieces.read(PIECE_BYTES):
                checksum = zlib.crc32(piece, checksum)
    return checksum


def write_cache(place: Path, files: Sequence[Path], encoding: str, symbols: list[str], facts: dict[str, object]
                ) -> None:
    """The facts are removed first and written last: they never stand beside the indices of another text."""
    temporary = place.with_suffix(f".{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as out:
                for piece in joined_pieces(files, encoding):
                    out.write(encode_characters(piece, symbols).tobytes())
                os.fsync(out.fileno())  # else zeros may stand there after a power failure, in the right length
            checksum = checksum_of(temporary)
            place.with_suffix(".json").unlink(missing_ok=True)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
        write_json(place.with_suffix(".json"), {**facts, "crc32": checksum})
    except OSError:
        return
