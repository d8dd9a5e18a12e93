"""What every data set offers: samples in the splits train, val and test, as batches of one type."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import ClassVar, Generic, Literal, NotRequired, TypedDict, TypeVar

from torch import Tensor

from dltrain.data.loader import BatchT, SplitLoaders
from dltrain.errors import DataError
from dltrain.image_files import ImageSource

SPLITS = ("train", "val", "test")
InputT = TypeVar("InputT")  # what a person gives to `predict`: Tensor for an image, str for a text


class DataKeys(TypedDict):
    """The keys of every data set."""

    batch_size: int
    seed: NotRequired[int]


class DataModule(SplitLoaders[BatchT], Generic[BatchT, InputT]):
    """A data set. A subclass implements `load`, `num_samples` and `read`, and those of the methods below that its kind
    of data needs.

    After `load`, `class_names` has num_classes entries where there are classes. `vocabularies` maps a name, as source
    and target, to the list of the symbols of such texts; vocabularies that are set before `load` are kept. `left_out`
    maps a reason to the files or lines that are left out for it. `held_out` names the splits that own files do not name
    and that are held out of train.
    """

    batch_type: type
    input_kind: ClassVar[Literal["image", "text"]]  # what `predict` reads
    reads_whole_files: ClassVar[bool] = False  # whether a text file given to `predict` is one text, or each line is one

    def __init__(self, *, batch_size: int, seed: int = 0):
        super().__init__(batch_size=batch_size, seed=seed)
        self.class_names: list[str] = []
        self.vocabularies: dict[str, list[str]] = {}
        self.left_out: dict[str, list[str]] = {}
        self.held_out: list[str] = []

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

    def identities(self, split: str) -> Iterable[Hashable]:
        """What tells one sample of people's own files from another: a photo's file, a text. Empty if nothing does."""
        return ()

    def describe_leaks(self) -> list[str]:
        """A line for each two splits that have samples in common, on which an evaluation says too much."""
        lines, seen = [], {split: [*self.identities(split)] for split in SPLITS}
        for split, other in (("val", "train"), ("test", "train"), ("test", "val")):
            theirs = {*seen[other]}
            if common := [item for item in seen[split] if item in theirs]:
                lines.append(f"{len(common):,} of {len(seen[split]):,} {split} samples are in {other} too, as "
                             f"{', '.join(str(item)[:60] for item in common[:3])}")
        return lines

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
        """The reference sentences of a sample, their tokens separated by spaces."""
        raise NotImplementedError

    def is_true(self, split: str, index: int, sentence: str) -> bool | None:
        """Whether the sentence is true of the sample; None where the data cannot tell."""
        return None


def require_root(root: str | None, expected: str) -> Path:
    """Returns `data.root` as a path. Raises DataError if it is null; `expected` says in the message what it must be."""
    if root is None:
        raise DataError(f"data.root must be given: {expected}")
    return Path(root).expanduser()


def check_num_classes(num_classes: int | None, class_names: list[str], root: str | Path | None) -> None:
    """Raises DataError where `data.num_classes` is given and `root` has another number of classes."""
    if num_classes not in (None, len(class_names)):
        raise DataError(f"data.num_classes={num_classes}, but {root} has {len(class_names)} classes: "
                        f"{', '.join(class_names[:10])}")
