"""Pairs of a source and a target from a person's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from dltrain.data.datamodule import require_root
from dltrain.data.faults import refuse
from dltrain.data.splits import hold_out_of_texts, split_randomly
from dltrain.data.texts import find_split_files, other_files, read_lines, read_text
from dltrain.data.translation import PairKeys, TextPair, TextPairs
from dltrain.errors import DataError


class PairFiles(TextPairs):
    """Pairs from `root`: a file of `source<TAB>target` lines, which is split 80 : 10 : 10; a folder with such a file
    for each of train, val and test; or, with `languages`, a folder of parallel files as train.en and train.de. In a
    folder, val and test are held out of train if they have no file."""

    def __init__(self, *, root: str | None, languages: list[str] | None, encoding: str, num_train: int | None,
                 **keys: Unpack[PairKeys]):
        super().__init__(**keys)
        self.root, self.languages, self.encoding, self.num_train = root, languages, encoding, num_train
        if languages is not None and len(languages) != 2:
            raise ValueError(f"languages must be two endings of file names, as [en, de], but is {languages}")

    def pairs(self) -> dict[str, list[TextPair]]:
        splits = self.read_splits(require_root(
            self.root, "a file of source<TAB>target lines, or a folder with train, val and test files"))
        splits["train"] = splits["train"][: self.num_train]
        return splits

    def read_splits(self, root: Path) -> dict[str, list[TextPair]]:
        if root.is_file():
            self.held_out = ["test", "val"]
            return split_randomly(self.read_pairs(root))
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such file or folder")
        if self.languages is None:
            files = find_split_files(root)
            self.leave_out("a file of no split", other_files(root, files.values()))
            splits = {split: self.read_pairs(file) for split, file in files.items()}
        else:
            sources, targets = (find_split_files(root, [f".{language}"]) for language in self.languages)
            self.leave_out("a file of no split", other_files(root, [*sources.values(), *targets.values()]))
            if sources.keys() != targets.keys():
                (split, *_) = sources.keys() ^ targets.keys()
                raise DataError(f"data.root={root}: {(sources | targets)[split].name} must have a file in the other "
                                f"language, {' and '.join(self.languages)}")
            splits = {split: self.read_parallel(sources[split], targets[split]) for split in sources}
        self.held_out = hold_out_of_texts(splits, "pairs")
        return splits

    def read_pairs(self, file: Path) -> list[TextPair]:
        pairs, faults = [], []
        for number, line in read_lines(file, self.encoding):
            sides = [side.strip() for side in line.split("\t")]
            if len(sides) != 2 or not all(sides):
                faults.append(f"{file}:{number}: must be source<TAB>target, but has {len([s for s in sides if s])} "
                              f"side(s): {line.strip()[:40]!r}")
            pairs.append((sides[0], sides[-1]))
        refuse(faults, f"{file}: {len(faults)} of {len(pairs)} lines are no pairs")
        return pairs

    def read_parallel(self, source_file: Path, target_file: Path) -> list[TextPair]:
        counts = [len(read_text(file, self.encoding).rstrip("\n").split("\n")) for file in (source_file, target_file)]
        if counts[0] != counts[1]:
            raise DataError(f"{source_file} has {counts[0]} lines, but {target_file} has {counts[1]}: line by line one "
                            "must be the translation of the other")
        sources, targets = (dict(read_lines(file, self.encoding)) for file in (source_file, target_file))
        self.leave_out("a line that is empty on one side", [f"{source_file}:{number}" for number in
                                                            sorted(sources.keys() ^ targets.keys())])
        return [(sources[number].strip(), targets[number].strip()) for number in sources if number in targets]
