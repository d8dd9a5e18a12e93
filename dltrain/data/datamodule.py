"""What every data set offers: samples in the splits train, val and test, as batches of one type."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import ClassVar, Generic, Literal, NotRequired, TypedDict, TypeVar

from torch import Tensor

from dltrain.data.loader import BatchT, SplitLoaders
from dltrain.errors import DataError
from dltrain.image_files import ImageSource, readable

SPLITS = ("train", "val", "test")
UNBALANCED = 10  # times as many samples in the largest class as in the smallest
SampleT = TypeVar("SampleT")
InputT = TypeVar("InputT")  # what a person gives to `predict`: Tensor for an image, str for a text


class DataKeys(TypedDict):
    """The keys of every data set; the last two are of people's own files."""

    batch_size: int
    seed: NotRequired[int]
    on_leak: NotRequired[str]
    on_bad: NotRequired[str]


class DataModule(SplitLoaders[BatchT], Generic[BatchT, InputT]):
    """A data set. A subclass implements `load`, `num_samples` and `read`, and those of the methods below that its kind
    of data needs.

    After `load`, `class_names` has num_classes entries where there are classes. `vocabularies` maps a name, as source
    and target, to the list of the symbols of such texts; vocabularies that are set before `load` are kept. `left_out`
    maps a reason to the files or lines that are left out for it. `held_out` names the splits that own files do not name
    and that are held out of train.

    `on_leak`: what `settle_leaks` does with samples that two splits share: warn, drop or refuse. `on_bad`: whether a
    photo that cannot be decoded is a reason to stop, or to skip it."""

    batch_type: type
    input_kind: ClassVar[Literal["image", "text"]]  # what `predict` reads
    counted: ClassVar[str] = "samples"  # what `class_counts` counts
    if_unbalanced: ClassVar[str] = ""  # what to look at where some classes are rare
    reads_whole_files: ClassVar[bool] = False  # whether a text file given to `predict` is one text, or each line is one

    def __init__(self, *, batch_size: int, seed: int = 0, on_leak: str = "warn", on_bad: str = "stop"):
        super().__init__(batch_size=batch_size, seed=seed)
        self.on_leak, self.on_bad = on_leak, on_bad
        self.class_names: list[str] = []
        self.vocabularies: dict[str, list[str]] = {}
        self.left_out: dict[str, list[str]] = {}
        self.held_out: list[str] = []
        self.leaks: list[str] = []  # a line for each two splits that share samples, on which evaluation says too much
        self.fingerprints: dict[str, str] = {}  # of the samples of each split, where they are of people's own files
        self.damaged_exif: list[str] = []  # photos that are taken as upright because nobody knows how they are turned

    def load(self) -> None:
        """Finds and checks all samples and, where they fit into memory, reads them. Raises DataError with the file and
        what to do."""
        raise NotImplementedError

    def sizes(self) -> dict[str, int]:
        """Values of the data.* keys that only the files know, such as num_classes."""
        return {}

    def leave_out(self, reason: str, places: Iterable[object]) -> None:
        """Notes files or lines that are no samples, for the first lines of a run and its left_out.txt."""
        if listed := [*map(str, places)]:
            self.left_out.setdefault(reason, []).extend(listed)

    def settle_leaks(self, splits: dict[str, list[SampleT]], identify: Callable[[SampleT], Hashable],
                     name: Callable[[SampleT], str]) -> dict[str, list[SampleT]]:
        """Looks for samples that two splits have in common. With data.on_leak=drop the test split keeps them, or else
        val. `identify`: equal for equal samples; `name`: of a sample in a message. Returns the splits. Raises
        DataError."""
        kept = dict(splits)
        for split, other in (("val", "train"), ("test", "train"), ("test", "val")):
            theirs = {identify(sample): name(sample) for sample in splits[other]}
            common = [(identify(sample), name(sample)) for sample in splits[split] if identify(sample) in theirs]
            if not common:
                continue
            names = [mine if mine == theirs[key] else f"{mine} ({theirs[key]})" for key, mine in common]
            self.leaks.append(f"{len(common):,} of {len(splits[split]):,} {split} samples are in {other} too, as "
                              f"{', '.join(names[:3])}")
            if self.on_leak == "drop":
                shared = {key for key, _ in common}
                self.leave_out(f"a {other} sample that is in {split} too",
                               [name(sample) for sample in kept[other] if identify(sample) in shared])
                kept[other] = [sample for sample in kept[other] if identify(sample) not in shared]
                if not kept[other]:
                    raise DataError(f"data.on_leak=drop: all {len(splits[other])} {other} samples are in {split} too")
        if self.leaks and self.on_leak == "refuse":
            raise DataError(f"{'; '.join(self.leaks)}; data.on_leak=drop leaves those of the first split named out of "
                            "the second")
        self.fingerprints = {split: fingerprint(map(identify, samples)) for split, samples in kept.items()}
        return kept

    def describe_leaks(self) -> list[str]:
        """A warning for each two splits that share samples, unless they were dropped."""
        return [f"{leak}; data.on_leak=drop leaves them out there" for leak in self.leaks if self.on_leak == "warn"]

    def class_counts(self) -> dict[str, int]:
        """How many training samples each class has, or boxes; empty where there are no classes of samples."""
        return {}

    def describe_classes(self) -> str:
        """The number of classes, and the size of the smallest and the largest one; "" where there are none."""
        if not (counts := self.class_counts()):
            return ""
        few, many = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
        sizes = f"{counts[few]:,} ({few}) to {counts[many]:,} ({many})" if counts[few] < counts[many] else (
            f"{counts[few]:,}")
        return f"{len(counts)} classes of {sizes} training {self.counted} each"

    def describe_imbalance(self) -> list[str]:
        """A warning where the largest class is more than UNBALANCED times the smallest."""
        counts = self.class_counts()
        if not self.if_unbalanced or max(counts.values(), default=0) <= UNBALANCED * min(counts.values(), default=0):
            return []
        few, many = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
        return [f"the classes are unbalanced, {counts[many]:,} training {self.counted} of {many} and {counts[few]:,} "
                f"of {few}: {self.if_unbalanced}"]

    def unknown_counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        """How many symbols of each split are not in the vocabulary, and how many there are, by what they are: words."""
        return {}

    def describe_unknown(self) -> list[str]:
        """A line for each kind of symbol of which some are not in the vocabulary."""
        lines = []
        for noun, counts in self.unknown_counts().items():
            if shares := [f"{unknown:,} of {count:,} in {split} ({unknown / count:.2%})"
                          for split, (unknown, count) in counts.items() if unknown]:
                lines.append(f"{noun} that are not in the vocabulary: {', '.join(shares)}")
        return lines

    def unknown_inputs(self, texts: list[str]) -> tuple[list[str], int]:
        """The symbols of a user's texts that are not in the vocabulary, and how many symbols the texts have."""
        return [], 0

    def describe(self) -> str:
        """The size of the data, on one line."""
        return ", ".join(f"{self.num_samples(split):,} {split}" for split in SPLITS)

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, C, H, W) uint8, up to `at_most` images of the training split, for the statistics of normalisation."""
        raise NotImplementedError

    def training_boxes(self) -> Tensor:
        """(N, 4) of the training boxes: width and height, and those of the image, in pixels, for model.anchors=auto."""
        raise DataError(f"model.anchors=auto: {type(self).__name__} has no training_boxes; set model.anchor_boxes")

    def write_samples(self, folder: Path) -> str:
        """Writes test samples into `folder` to try `predict` on. Returns the arguments to type after run=."""
        return ""

    def read_input(self, source: ImageSource) -> Tensor:
        """A user's image, a file or a PIL image, as (C, H, W) uint8 in the size that the model predicts on. Raises
        DataError."""
        raise NotImplementedError

    def encode_inputs(self, inputs: list[InputT]) -> BatchT:
        """A user's texts, or images from `read_input`, as a batch without targets."""
        raise NotImplementedError

    def image_id(self, file: str, number: int) -> int | None:
        """What predictions.json calls the `number`-th input, a picture; None for one that has no id among others."""
        return number

    def category_id(self, label: int) -> int:
        """What predictions.json calls the class `label`."""
        return label

    def references(self, split: str, index: int) -> list[str]:
        """The reference sentences of a sample, as they were written."""
        raise NotImplementedError

    def is_true(self, split: str, index: int, sentence: str) -> bool | None:
        """Whether the sentence is true of the sample; None where the data cannot tell."""
        return None


def fingerprint(keys: Iterable[Hashable]) -> str:
    """Equal for equal keys in the same order."""
    digest = hashlib.blake2b(digest_size=16)
    for key in keys:
        digest.update(f"{key!r}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def require_root(root: str | None, expected: str) -> Path:
    """Returns `data.root` as a path. Raises DataError if it is null; `expected` says in the message what it must be."""
    if root is None:
        raise DataError(f"data.root must be given: {expected}")
    return Path(root).expanduser()


def check_num_classes(num_classes: int | None, class_names: list[str], root: str | Path | None) -> None:
    """Raises DataError where `data.num_classes` is given and `root` has another number of classes."""
    if num_classes not in (None, len(class_names)):
        raise DataError(f"data.num_classes={num_classes}, but {root} has {len(class_names)} classes: "
                        f"{readable(', '.join(class_names[:10]))}")
