"""Sequences with a label for each symbol: Python's own source by kinds of token, or CoNLL files."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dltrain.batches import IGNORED_LABEL, UNKNOWN, TaggedBatch, generator
from dltrain.data import sequences
from dltrain.data.language_modeling import library_files
from dltrain.data.sequences import SPLITS, Sample, Sequences, Tokenizer, padded, places_of
from dltrain.data.vocabulary import characters_of, numbered, read_text, words_of
from dltrain.errors import DataError

Tags = tuple[list[str], list[str]]  # symbols and the tag of each


class Tagged(Sequences):
    """A subclass says `tagged`, and `vocabulary` and `split` of its symbols."""

    batch_type = TaggedBatch
    reads_whole = False  # a person's file is one text; else each line is one

    def __init__(self, *, vocab_size: int | None = None, num_classes: int | None = None, **keys: Any):
        super().__init__(**keys)

    def tagged(self) -> dict[str, list[Tags]]:
        """The splits."""
        raise NotImplementedError

    def vocabulary(self, found: list[Tags]) -> list[str]:
        raise NotImplementedError

    def split(self, text: str) -> list[str]:
        """A person's own text, as symbols that a person can read."""
        raise NotImplementedError

    def known(self, symbols: list[str]) -> list[str]:
        """The symbols as the vocabulary has them."""
        return symbols

    def load(self) -> None:
        found = self.tagged()
        if "text" not in self.vocabularies:
            self.vocabularies["text"] = self.vocabulary(found["train"])
        tags = sorted({tag for _, tags in found["train"] for tag in tags})
        kept = "labels" in self.vocabularies
        self.class_names = self.vocabularies.setdefault("labels", tags)
        known = "run" if kept else "training split"
        numbers = {name: number for number, name in enumerate(self.class_names)}
        places = places_of(self.vocabularies["text"])
        for split in SPLITS:
            for _, tags in found[split]:
                if strange := set(tags) - numbers.keys():
                    raise DataError(f"the {split} split has the tag {min(strange)!r}, which the {known} has not")
            self.samples[split] = [(numbered(self.known(symbols), places), [numbers[tag] for tag in tags])
                                  for symbols, tags in found[split]]
        self.told = found["test"][:10]

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": len(self.vocabularies["text"]), "num_classes": len(self.class_names)}

    def describe(self) -> str:
        return f"{self.counted('sequences')}, {len(self.class_names)} classes"

    def batch(self, samples: list[Sample]) -> TaggedBatch:
        tokens, lengths = padded([sample[0] for sample in samples])
        return TaggedBatch(tokens, lengths, padded([sample[1] for sample in samples], IGNORED_LABEL)[0])

    def unscored(self, sample: Sample) -> Sample:
        return (sample[0], [IGNORED_LABEL] * len(sample[0]))

    def encode_inputs(self, texts: list[str]) -> TaggedBatch:
        """A person's own texts as a batch."""
        places = places_of(self.vocabularies["text"])
        rows = [numbered(self.known(self.split(text)), places) or [UNKNOWN] for text in texts]
        return self.batch([(row, [IGNORED_LABEL] * len(row)) for row in rows])


KINDS = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.OP: "operator"}


def kinds_of(source: str) -> list[str]:
    """The kind of each character of Python source: name, keyword, number, string, comment, operator or space. Raises
    SyntaxError or tokenize.TokenError where it is none."""
    begins = [0]
    for line in io.StringIO(source):
        begins.append(begins[-1] + len(line))
    kinds = ["space"] * len(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = KINDS.get(token.type)
        if token.type == tokenize.NAME:
            kind = "keyword" if keyword.iskeyword(token.string) else "name"
        elif tokenize.tok_name[token.type].startswith(("FSTRING", "TSTRING")):
            kind = "string"
        if kind:
            (row, column), (last_row, last_column) = token.start, token.end
            for place in range(begins[row - 1] + column, begins[last_row - 1] + last_column):
                kinds[place] = kind
    return kinds


class StdlibTokens(Tagged):
    """The running Python's library, character by character, labelled by its own tokenizer; pieces of whole lines that
    begin outside of strings, some `window` characters long, at most four times as long. No module is in two splits.
    Differs a little by Python's version."""

    reads_whole = True

    def __init__(self, *, window: int, num_train: int, **keys: Any):
        super().__init__(**keys)
        self.window, self.num_train = window, num_train

    def tagged(self) -> dict[str, list[Tags]]:
        files = library_files()
        order = torch.randperm(len(files), generator=generator("split", "stdlib_tokens")).tolist()
        held = len(files) // 10
        chosen = {"test": order[:held], "val": order[held : 2 * held], "train": order[2 * held :]}
        most = {"train": self.num_train, "val": 400, "test": 400}
        found = {}
        for split, numbers in chosen.items():
            whole = [piece for number in numbers for piece in self.pieces(files[number])]
            drawn = torch.randperm(len(whole), generator=generator("pieces", split)).tolist()
            found[split] = [whole[i] for i in drawn[: most[split]]]
        return found

    def pieces(self, file: Path) -> Iterator[Tags]:
        source = read_text(file)
        try:
            kinds = kinds_of(source)
        except (SyntaxError, tokenize.TokenError):
            return
        inside = [False, *(one == other == "string" for one, other in pairwise(kinds))]  # a string that goes on here
        draws = generator("pieces", file.name)
        begins = [place for place, before in enumerate(source, start=1) if before == "\n" and place < len(source)]
        begin, wanted = 0, 1
        for place in [place for place in begins if not inside[place]]:
            if place - begin >= wanted:
                yield list(source[begin:place][: 4 * self.window]), kinds[begin:place][: 4 * self.window]
                begin, wanted = place, int(torch.randint(1, 2 * self.window, (), generator=draws))

    def vocabulary(self, found: list[Tags]) -> list[str]:
        return characters_of("".join("".join(symbols) for symbols, _ in found))

    def split(self, text: str) -> list[str]:
        return list(text)

    def write_samples(self, folder: Path) -> str:
        (folder / "source.py").write_text("".join(self.told[0][0]), encoding="utf-8")
        return f"input={folder}/source.py"


NO_WORD = re.compile(r"#|\d+[-.]\d+$")  # CoNLL-U: a comment, 3-4 for two words that follow, 3.1 for one left out


class Conll(Tagged):
    """`root`: a folder with a train, a dev or val, and a test file of one word a line, its columns parted by tabs (or
    blanks where a line has no tab), sentences by empty lines. CoNLL-U has the word in column 2 and the universal tag in
    column 4; CoNLL-2003 has them in 1 and 4. Columns count from 1."""

    def __init__(self, *, root: str | None, encoding: str, word_column: int, tag_column: int, lower: bool,
                 min_count: int, **keys: Any):
        super().__init__(**keys)
        self.root, self.encoding, self.columns = root, encoding, (word_column, tag_column)
        self.tokenizer = Tokenizer(words=True)
        self.lower, self.min_count = lower, min_count

    def tagged(self) -> dict[str, list[Tags]]:
        if self.root is None:
            raise DataError("data.root must be given: a folder with a train, a dev and a test file in CoNLL's columns")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such folder")
        return {split: self.sentences(file) for split, file in sequences.found_splits(root, [], "data.root").items()}

    def sentences(self, file: Path) -> list[Tags]:
        found: list[Tags] = []
        words, tags = list[str](), list[str]()
        for number, line in enumerate([*read_text(file, self.encoding).split("\n"), ""], start=1):
            if not line.strip():
                if words:
                    found.append((words, tags))
                words, tags = [], []
                continue
            columns = line.split("\t") if "\t" in line else line.split()
            numbered_words = self.columns[0] > 1  # CoNLL-U; in the older formats the word comes first
            if columns[0] == "-DOCSTART-" or (numbered_words and NO_WORD.match(columns[0])):
                continue
            if max(self.columns) > len(columns):
                raise DataError(f"{file}:{number}: must have {max(self.columns)} columns, but has {len(columns)}")
            word, tag = (columns[column - 1].strip() for column in self.columns)
            words.append(word)
            tags.append(tag)
        return found

    def vocabulary(self, found: list[Tags]) -> list[str]:
        return words_of([self.known(symbols) for symbols, _ in found], self.min_count)

    def known(self, symbols: list[str]) -> list[str]:
        return [word.lower() for word in symbols] if self.lower else symbols

    def split(self, text: str) -> list[str]:
        return self.tokenizer.split(text)

    def write_samples(self, folder: Path) -> str:
        (folder / "sentences.txt").write_text("\n".join(" ".join(words) for words, _ in self.told) + "\n",
                                              encoding="utf-8")
        return f"input={folder}/sentences.txt"
