"""Text that comes with Python: its documentation and the source of its library. Both differ slightly between Python
versions."""

from __future__ import annotations

import io
import keyword
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

import torch

from dltrain.batches import generator
from dltrain.data.language_modeling import StreamKeys, TextStreams
from dltrain.data.sequences import SequenceKeys, character_vocabulary
from dltrain.data.splits import cut_text
from dltrain.data.tagging import TaggedSequences, TaggedSymbols


class Stdlib(TextStreams):
    """Running text. `contents`: `topics`, the texts of help(), or `source`, the modules of the library; in a fixed
    random order."""

    def __init__(self, *, contents: str, **keys: Unpack[StreamKeys]):
        super().__init__(**keys)
        self.contents = contents

    def texts(self) -> dict[str, str]:
        texts = read_topics() if self.contents == "topics" else [read_module(file) for file in library_files()]
        order = torch.randperm(len(texts), generator=generator("split", "stdlib", self.contents))
        return cut_text("\n\n".join(texts[i] for i in order.tolist()))


def read_topics() -> list[str]:
    """Returns the texts of help(), sorted by topic. A paragraph of several topics stands only in the first of them."""
    from pydoc_data.topics import topics

    known: set[str] = set()
    texts = []
    for name in sorted(topics):
        paragraphs = [text for text in topics[name].strip().split("\n\n") if text not in known]
        known.update(paragraphs)
        if paragraphs:
            texts.append("\n\n".join(paragraphs))
    return texts


def library_files() -> list[Path]:
    """Returns the modules of the library, sorted, without packages and tests."""
    return sorted(file for file in Path(sysconfig.get_paths()["stdlib"]).glob("*.py") if file.stat().st_size > 0)


def read_module(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig")


class StdlibTokens(TaggedSequences):
    """The source of the library, each character tagged with its kind of token. A sample is a piece of whole lines that
    begins outside of a string and has `window` characters on average, four times as many at most. No module is in two
    splits."""

    reads_whole_files = True

    def __init__(self, *, window: int, num_train: int, vocab_size: int | None = None, num_classes: int | None = None,
                 **keys: Unpack[SequenceKeys]):
        super().__init__(**keys)
        self.window, self.num_train = window, num_train

    def read_samples(self) -> dict[str, list[TaggedSymbols]]:
        files = library_files()
        order = torch.randperm(len(files), generator=generator("split", "stdlib_tokens")).tolist()
        tenth = len(files) // 10
        modules = {"test": order[:tenth], "val": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
        counts = {"train": self.num_train, "val": 400, "test": 400}
        splits = {}
        for split, indices in modules.items():
            pieces = [piece for index in indices for piece in self.cut_pieces(files[index])]
            shuffled = torch.randperm(len(pieces), generator=generator("pieces", split)).tolist()
            splits[split] = [pieces[i] for i in shuffled[: counts[split]]]
        return splits

    def cut_pieces(self, file: Path) -> Iterator[TaggedSymbols]:
        source = read_module(file)
        try:
            kinds = token_kinds(source)
        except (SyntaxError, tokenize.TokenError):
            return
        rng = generator("pieces", file.name)
        start, min_length = 0, 1
        for place in [match.end() for match in re.finditer("\n", source[:-1])]:
            in_string = kinds[place - 1] == kinds[place] == "string"
            if not in_string and place - start >= min_length:
                yield list(source[start:place][: 4 * self.window]), kinds[start:place][: 4 * self.window]
                start, min_length = place, int(torch.randint(1, 2 * self.window, (), generator=rng))

    def build_vocabulary(self, samples: list[TaggedSymbols]) -> list[str]:
        return character_vocabulary("".join("".join(symbols) for symbols, _ in samples))

    def tokenize(self, text: str) -> list[str]:
        return list(text)

    def write_samples(self, folder: Path) -> str:
        (folder / "source.py").write_text("".join(self.examples[0][0]), encoding="utf-8")
        return f"input={folder}/source.py"


KINDS = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.OP: "operator"}


def token_kinds(source: str) -> list[str]:
    """Returns the kind of each character of Python source: name, keyword, number, string, comment, operator or space.
    Raises SyntaxError or tokenize.TokenError where it is not Python."""
    line_starts = [0]
    for line in io.StringIO(source):
        line_starts.append(line_starts[-1] + len(line))
    kinds = ["space"] * len(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = KINDS.get(token.type)
        if token.type == tokenize.NAME:
            kind = "keyword" if keyword.iskeyword(token.string) else "name"
        elif tokenize.tok_name[token.type].startswith(("FSTRING", "TSTRING")):
            kind = "string"
        if kind:
            (row, column), (last_row, last_column) = token.start, token.end
            start, end = line_starts[row - 1] + column, line_starts[last_row - 1] + last_column
            kinds[start:end] = [kind] * (end - start)
    return kinds
