"""Running text from files: a person's own, or Shakespeare's plays."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import numpy as np

from dltrain.data.character_files import encode_files
from dltrain.data.datamodule import require_root
from dltrain.data.download import checksum_fault, download
from dltrain.data.language_modeling import Indices, StreamKeys, TextStreams, encode_characters, index_type
from dltrain.data.listing import sample_line
from dltrain.data.sequences import SPECIAL_SYMBOLS
from dltrain.data.splits import cut_text
from dltrain.data.texts import find_text_files, read_text
from dltrain.errors import DataError


class TextFiles(TextStreams):
    """Running text from `root`, a file, a folder or a glob; the files are joined in the order of their names. The share
    `held_out_share` at the end of the text is held out, half of it for validation and half for the test; or at the end
    of each of `held_out_pieces` equal pieces of it, as in A. Karpathy's char-rnn, whose pieces are its streams: then
    all splits are from everywhere in the text."""

    def __init__(self, *, root: str | None, encoding: str, held_out_share: float = 0.1, held_out_pieces: int = 1,
                 **keys: Unpack[StreamKeys]):
        super().__init__(**keys)
        self.root, self.encoding = root, encoding
        self.held_out_share, self.held_out_pieces = held_out_share, held_out_pieces

    def encode_splits(self) -> dict[str, Indices]:
        root = require_root(self.root, "a text file, a folder of them or a glob, as data.root='notes/*.md'")
        files = find_text_files(root)
        is_whole = self.held_out_pieces == 1
        indices, train, others = encode_files(files, self.encoding, self.held_out_share if is_whole else 0.0)
        if not is_whole and (length := len(indices) // self.held_out_pieces) * self.held_out_share < 2:
            raise DataError(f"data.held_out_pieces={self.held_out_pieces}: pieces of {length} characters are too short "
                            f"to hold out {self.held_out_share:g} of each")
        self.sample_lines["files"] = [sample_line(str(file).removeprefix(f"{root}/"), f"{file.stat().st_size} bytes",
                                                  "-") for file in files]
        splits, known = cut_pieces(indices, self.held_out_share, self.held_out_pieces), train + others
        if not is_whole:
            counts = np.bincount(splits["train"], minlength=len(SPECIAL_SYMBOLS) + len(known))
            in_train = counts[len(SPECIAL_SYMBOLS) :] > 0
            train = "".join(symbol for symbol, is_there in zip(known, in_train, strict=True) if is_there)
        symbols = self.vocabularies.setdefault("characters", [*SPECIAL_SYMBOLS, *train])
        if symbols == [*SPECIAL_SYMBOLS, *known]:
            return splits
        table: Indices = np.array([*range(len(SPECIAL_SYMBOLS)), *encode_characters(known, symbols)],
                                  index_type(len(symbols)))
        is_same = symbols == [*SPECIAL_SYMBOLS, *train] and known.startswith(train)
        return {split: kept if split == "train" and is_same else table[kept] for split, kept in splits.items()}


def cut_pieces(indices: Indices, held_out: float, pieces: int) -> dict[str, Indices]:
    """The splits of each of `pieces` pieces of equal length, or of one more character, one after the other."""
    if pieces == 1:
        return cut_text(indices, held_out)
    cut = [cut_text(piece, held_out) for piece in np.array_split(indices, pieces)]
    return {split: np.concatenate([splits[split] for splits in cut]) for split in cut[0]}


SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_BYTES = 1_115_394
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Shakespeare(TextStreams):
    """The plays from A. Karpathy's char-rnn. `root`: the folder of shakespeare.txt, or the file. The last tenth is both
    the validation and the test split, as in published results on this text."""

    def __init__(self, *, root: str, download: bool, **keys: Unpack[StreamKeys]):
        super().__init__(**keys)
        self.root, self.download = Path(root).expanduser(), download

    def texts(self) -> dict[str, str]:
        splits = cut_text(self.fetch())
        held_out = splits["val"] + splits["test"]
        return {"train": splits["train"], "val": held_out, "test": held_out}

    def fetch(self) -> str:
        file = self.root if self.root.is_file() else self.root / "shakespeare.txt"
        instruction = f"put {SHAKESPEARE} there, or set data.root; data=stdlib needs no download"
        if file.is_file():
            if fault := checksum_fault(file, SHAKESPEARE_SHA256):
                raise DataError(f"{file}: {fault}; delete it, or read it with data=text")
        elif self.download:
            download(SHAKESPEARE, file, SHAKESPEARE_BYTES, SHAKESPEARE_SHA256, instruction)
        else:
            raise DataError(f"no file {file}: {instruction}")
        return read_text(file)
