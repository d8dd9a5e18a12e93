"""Tagged words from a person's own files in the columns of CoNLL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Unpack

from dltrain.data.datamodule import require_root
from dltrain.data.faults import refuse
from dltrain.data.sequences import SequenceKeys, Tokenizer, word_vocabulary
from dltrain.data.splits import hold_out_of_texts
from dltrain.data.tagging import TaggedSequences, TaggedSymbols
from dltrain.data.texts import find_split_files, other_files, read_text
from dltrain.errors import DataError

NO_WORD = re.compile(r"#|\d+[-.]\d+$")  # CoNLL-U: a comment; 3-4 stands for two words that follow; 3.1 is an empty node


class Conll(TaggedSequences):
    """Sentences with a tag per word. `root` is a folder with a train, a dev or val, and a test file; a split without a
    file is held out of train. A line is a word, its columns separated by tabs (or by blanks if the line
    has no tab); an empty line ends a sentence. CoNLL-U has the word in column 2 and the universal tag in column 4,
    CoNLL-2003 the word in column 1 and the tag in column 4. Columns count from 1."""

    def __init__(self, *, root: str | None, encoding: str, word_column: int, tag_column: int, lower: bool,
                 min_count: int, vocab_size: int | None = None, num_classes: int | None = None,
                 **keys: Unpack[SequenceKeys]):
        super().__init__(**keys)
        self.root, self.encoding, self.columns = root, encoding, (word_column, tag_column)
        self.tokenizer = Tokenizer(words=True)
        self.lower, self.min_count = lower, min_count

    def read_samples(self) -> dict[str, list[TaggedSymbols]]:
        root = require_root(self.root, "a folder with a train file, as train.txt, in the columns of CoNLL")
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such folder")
        files = find_split_files(root)
        self.leave_out("a file of no split", other_files(root, files.values()))
        splits = {split: self.read_sentences(file) for split, file in files.items()}
        self.held_out = hold_out_of_texts(splits, "sentences")
        return splits

    def read_sentences(self, file: Path) -> list[TaggedSymbols]:
        sentences: list[TaggedSymbols] = []
        words, tags, faults = list[str](), list[str](), list[str]()
        for number, line in enumerate([*read_text(file, self.encoding).split("\n"), ""], start=1):
            if not line.strip():
                if words:
                    sentences.append((words, tags))
                words, tags = [], []
                continue
            columns = line.split("\t") if "\t" in line else line.split()
            has_numbers = self.columns[0] > 1  # CoNLL-U; the word comes first in the older formats
            if columns[0] == "-DOCSTART-" or (has_numbers and NO_WORD.match(columns[0])):
                continue
            if max(self.columns) > len(columns):
                faults.append(f"{file}:{number}: must have {max(self.columns)} columns, but has {len(columns)}")
                continue
            word, tag = (columns[column - 1].strip() for column in self.columns)
            words.append(word)
            tags.append(tag)
        refuse(faults, f"{file}: {len(faults)} lines have too few columns")
        return sentences

    def build_vocabulary(self, samples: list[TaggedSymbols]) -> list[str]:
        return word_vocabulary([self.normalize(words) for words, _ in samples], self.min_count)

    def normalize(self, symbols: list[str]) -> list[str]:
        return [word.lower() for word in symbols] if self.lower else symbols

    def tokenize(self, text: str) -> list[str]:
        """A text with tabs is split there, as sentences whose words are known already, and nowhere else. In other texts
        what stands between blanks is one word if the vocabulary has it, as U.S., else words and punctuation marks."""
        if "\t" in text:
            return [word for word in text.strip("\n").split("\t") if word]
        known = {*self.vocabularies["text"]}
        return [word for piece in text.split()
                for word in ([piece] if self.normalize([piece])[0] in known else self.tokenizer.tokenize(piece))]

    def write_samples(self, folder: Path) -> str:
        lines = ["\t".join(words) if len(words) > 1 else f"{words[0]}\t" for words, _ in self.examples]
        (folder / "sentences.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return f"input={folder}/sentences.txt"
