"""What every data set offers: samples in the splits train, val and test, as batches of one type."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor

from dltrain.data.listing import NAME_LENGTH, digest_of, digest_of_lines, digest_of_tensors, sample_line
from dltrain.data.loader import BatchT, SplitLoaders
from dltrain.errors import DataError, is_unicode
from dltrain.image_files import ImageSource, readable, scan_images

SPLITS = ("train", "val", "test")
UNBALANCED = 10  # times as many samples in the largest class as in the smallest
SEE_CONFUSION = "accuracy alone says little, see the figure confusion in TensorBoard"
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

    `on_leak`: warn, drop or refuse, for samples that two splits share; None: nothing, for data that do not have the
    key, as those that come with dltrain. `on_bad`: stop or skip, for photos that cannot be decoded."""

    batch_type: type
    input_kind: ClassVar[Literal["image", "text"]]  # what `predict` reads
    counted: ClassVar[str] = "samples"  # what `class_counts` counts
    if_unbalanced: ClassVar[str] = ""  # what to look at where some classes are rare
    reads_whole_files: ClassVar[bool] = False  # whether a text file given to `predict` is one text, or each line is one

    def __init__(self, *, batch_size: int, seed: int = 0, on_leak: str | None = None, on_bad: str = "stop"):
        super().__init__(batch_size=batch_size, seed=seed)
        self.on_leak, self.on_bad = on_leak, on_bad
        self.class_names: list[str] = []
        self.vocabularies: dict[str, list[str]] = {}
        self.left_out: dict[str, list[str]] = {}
        self.held_out: list[str] = []
        self.leaks: list[str] = []  # a line for each two splits that share samples, on which evaluation says too much
        self.sample_lines: dict[str, list[str]] = {}  # a `sample_line` for each sample of people's own files, by split
        self.sizes_read: list[str] = []  # the keys of `sizes` that the config left open
        self.photo_digests: dict[Path, str] = {}  # a digest of the bytes of each photo
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

    def images_in(self, folder: Path, recursive: bool = True) -> list[Path]:
        """The image files of a folder and, with `recursive`, of those below it, sorted. The others are left out."""
        images, others = scan_images(folder, recursive)
        for reason, files in others.items():
            self.leave_out(reason, files)
        return images

    def list_photos(self, split: str, root: str | Path | None, samples: Iterable[tuple[Path, str]]) -> None:
        """Lists photos below `root` with their targets."""
        folder = Path(root or "").expanduser()
        prefix = f"{folder.parent if folder.is_file() else folder}/"
        self.sample_lines[split] = [sample_line(str(path).removeprefix(prefix), self.photo_digests[path], target)
                              for path, target in samples]

    def list_texts(self, splits: Mapping[str, list[SampleT]], describe: Callable[[SampleT], tuple[str, str]]) -> None:
        """Lists the samples of people's own files of text. `describe`: the text of a sample, and its target."""
        if self.on_leak is not None:
            self.sample_lines = {split: [sample_line(text[:NAME_LENGTH], digest_of(text), target)
                                   for text, target in map(describe, samples)] for split, samples in splits.items()}

    def digest(self, split: str) -> str:
        """Equal for equal samples of a split: of all of them where they are listed, else of the first and the last as
        they are read, with torch's random numbers from one seed."""
        if lines := self.sample_lines.get(split):
            return digest_of_lines(lines)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            ends = [torch.tensor([0]), torch.tensor([self.num_samples(split) - 1])]
            return digest_of_tensors(tensors_in(list(self.read(split, ends))))

    def settle_leaks(self, splits: dict[str, list[SampleT]], identify: Callable[[SampleT], Hashable],
                     name: Callable[[SampleT], str]) -> dict[str, list[SampleT]]:
        """Looks for samples that two splits have in common. With data.on_leak=drop the test split keeps them, or else
        val; otherwise `leaks` gets a line for each two splits. `identify`: equal for equal samples; `name`: of a sample
        in a message. Returns the splits. Raises DataError."""
        if self.on_leak is None:
            return splits
        kept = dict(splits)
        by_key = {split: {identify(sample): sample for sample in samples} for split, samples in splits.items()}
        for split, other in (("val", "train"), ("test", "train"), ("test", "val")):
            shared, theirs = by_key[split].keys() & by_key[other].keys(), by_key[other]
            if not shared:
                continue
            if self.on_leak == "drop":
                self.leave_out(f"a {other} sample that is in {split} too",
                               [name(sample) for sample in kept[other] if identify(sample) in shared])
                kept[other] = [sample for sample in kept[other] if identify(sample) not in shared]
                if not kept[other]:
                    raise DataError(f"data.on_leak=drop: all {len(splits[other])} {other} samples are in {split} too")
            else:
                common = [(identify(sample), name(sample)) for sample in splits[split] if identify(sample) in shared]
                names = [mine if mine == (other_name := name(theirs[key])) else f"{mine} ({other_name})"
                         for key, mine in common[:3]]
                self.leaks.append(f"{len(common):,} of {len(splits[split]):,} {split} samples are in {other} too, for "
                                  f"example {', '.join(map(readable, names))}; data.on_leak=drop leaves them out of "
                                  f"{other}")
        if self.leaks and self.on_leak == "refuse":
            raise DataError("; ".join(self.leaks))
        return kept

    def class_counts(self) -> dict[str, int]:
        """How many training samples each class has, or boxes; empty where there are no classes of samples."""
        return {}

    def unknown_counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        """How many symbols of each split are not in the vocabulary, and how many there are, by their noun, as words."""
        return {}

    def describe(self) -> str:
        """The size of the data, on one line."""
        return ", ".join(f"{self.num_samples(split):,} {split}" for split in SPLITS)

    def describe_contents(self) -> list[str]:
        """Lines below that of `describe`: the smallest and the largest class, and symbols that are not in the
        vocabulary."""
        lines = []
        if counts := self.class_counts():
            few, many = smallest_and_largest(counts)
            sizes = f"{counts[few]:,} ({few}) to {counts[many]:,} ({many})" if counts[few] < counts[many] else (
                f"{counts[few]:,}")
            lines.append(f"{len(counts)} classes of {sizes} training {self.counted} each")
        for noun, by_split in self.unknown_counts().items():
            if shares := [f"{unknown:,} of {count:,} in {split} ({unknown / count:.2%})"
                          for split, (unknown, count) in by_split.items() if unknown]:
                lines.append(f"{noun} that are not in the vocabulary: {', '.join(shares)}")
        return lines

    def list_warnings(self) -> list[str]:
        """Lines that warn of unbalanced classes and of samples that two splits share."""
        counts = self.class_counts() if self.if_unbalanced else {}
        warnings = []
        if max(counts.values(), default=0) > UNBALANCED * min(counts.values(), default=0):
            few, many = smallest_and_largest(counts)
            warnings.append(f"the classes are unbalanced, {counts[many]:,} training {self.counted} of {many} and "
                            f"{counts[few]:,} of {few}: {self.if_unbalanced}")
        return warnings + self.leaks

    def unknown_inputs(self, texts: list[str]) -> tuple[list[str], int]:
        """The symbols of a user's texts that are not in the vocabulary, and how many symbols the texts have."""
        return [], 0

    def training_pixels(self, at_most: int) -> Tensor:
        """(N, C, H, W) uint8, up to `at_most` images of the training split, for the statistics of normalisation."""
        raise NotImplementedError

    def pixel_batches(self, at_most: int) -> Iterable[Tensor]:
        """The same images, some at a time, where they need not be in memory together."""
        yield self.training_pixels(at_most)

    def training_boxes(self) -> Tensor:
        """(N, 4) of the training boxes: width and height, and those of the image, in pixels, for model.anchors=auto."""
        raise DataError(f"model.anchors=auto: {type(self).__name__} has no training_boxes; set model.anchor_boxes")

    def input_advice(self, share: float) -> str:
        """What to do where so large a share of the training time goes by waiting for batches."""
        message = f"{share:.0%} of the time of a training step is waiting for data"
        threads, cores = vars(self).get("num_workers"), os.cpu_count() or 1
        if threads is None:
            return f"{message}; they are in memory, where fewer and larger batches (data.batch_size) are read faster"
        if threads < cores:
            return f"{message}; data.num_workers={cores} reads in {cores} threads, one a core; now {threads}"
        return (f"{message}, with {threads} threads on {cores} cores; files of smaller photos, made once, are decoded "
                "faster")

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


def smallest_and_largest(counts: Mapping[str, int]) -> tuple[str, str]:
    return min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])


def tensors_in(batch: Iterable[Any]) -> Iterator[Tensor]:
    """Those of a batch, also in its lists and mappings."""
    for value in batch:
        match value:
            case Tensor():
                yield value
            case dict():
                yield from tensors_in(value.values())
            case list() | tuple():
                yield from tensors_in(value)


def require_root(root: str | None, expected: str) -> Path:
    """Returns `data.root` as a path. Raises DataError if it is null; `expected` says in the message what it must be."""
    if root is None:
        raise DataError(f"data.root must be given: {expected}")
    return Path(root).expanduser()


def check_classes(num_classes: int | None, class_names: list[str], root: str | Path | None) -> None:
    """Raises DataError where `data.num_classes` is given and `root` has another number of classes, and for the name of
    a class that is no Unicode, which neither config.yaml nor TensorBoard can hold."""
    for name in class_names:
        if not is_unicode(name):
            raise DataError(f"{root}: the name of the class {readable(name)} is no Unicode; rename it")
    if num_classes not in (None, len(class_names)):
        raise DataError(f"data.num_classes={num_classes}, but {root} has {len(class_names)} classes: "
                        f"{readable(', '.join(class_names[:10]))}")
