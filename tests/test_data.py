"""The order of samples, splits, and a user's own inputs as batches."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from dltrain.batches import IGNORED_LABEL, IGNORED_PIXEL, PAD, BatchError, ClassificationBatch, generator, seed_of
from dltrain.build import build_data
from dltrain.config import groups
from dltrain.data import patterns, scenes, stdlib
from dltrain.data.datamodule import SPLITS
from dltrain.data.digits import Digits, split_stratified
from dltrain.data.loader import EvalLoader, TrainLoader
from dltrain.data.splits import cut_text, hold_out, split_randomly, stratified_indices
from dltrain.errors import DataError
from tests.conftest import MODELS


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits(channels=1, num_classes=10, image_px=8, batch_size=100)
    data.load()
    return data


def as_rows(images) -> list[tuple[int, ...]]:
    """Each image as a tuple of values, sorted."""
    return sorted(map(tuple, torch.as_tensor(images).flatten(1).tolist()))


def indices_alone(batches: list[Tensor]) -> list[Tensor]:
    """Reads nothing: a batch is the indices of the samples."""
    return batches


# the order of samples


def test_splits_of_digits_are_disjoint_complete_and_stratified(digits):
    counts = {split: digits.num_samples(split) for split in SPLITS}
    assert counts == {"train": 1257, "val": 180, "test": 360}
    images = torch.cat([digits.splits[split].images for split in SPLITS])
    original = torch.from_numpy(load_digits().data)
    assert as_rows(images) == as_rows((original * 255 / 16).round().to(torch.uint8))
    for split, count in counts.items():
        fractions = torch.bincount(digits.splits[split].labels) / count
        assert fractions.min() > 0.09
        assert fractions.max() < 0.11


def test_splits_of_digits_are_those_of_scikit_learn(digits):
    kept, test = train_test_split(range(1797), test_size=0.2, stratify=load_digits().target, random_state=0)
    train, val = train_test_split(kept, test_size=0.125, stratify=load_digits().target[kept], random_state=0)
    for split, indices in (("train", train), ("val", val), ("test", test)):
        assert digits.splits[split].labels.tolist() == load_digits().target[indices].tolist()
        values = torch.from_numpy(load_digits().data[indices] * 255 / 16).round()
        assert digits.splits[split].images.flatten(1).tolist() == values.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_stratified_split_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(4), np.arange(4), rng.integers(0, 4, int(rng.integers(10, 60)))])
    held_out = int(rng.integers(4, len(labels) - 4))
    expected = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=0)
    for indices, theirs in zip(split_stratified(labels, held_out), expected, strict=True):
        assert indices.tolist() == theirs.tolist()


def test_order_is_a_function_of_seed_and_epoch_alone():
    def epochs(seed: int, count: int) -> list[list[int]]:
        loader = TrainLoader(indices_alone, 10, 4, seed)
        return [torch.cat(list(loader)).tolist() for _ in range(count)]

    assert epochs(0, 3) == epochs(0, 3)
    first, second, third = epochs(0, 3)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert second != third
    assert epochs(1, 1)[0] != first


def test_loader_resumes_from_any_position():
    uninterrupted = TrainLoader(indices_alone, 10, 3, seed=5)
    expected = [batch.tolist() for _ in range(3) for batch in uninterrupted]
    assert len(expected) == 12
    for position in range(12):
        loader = TrainLoader(indices_alone, 10, 3, seed=5)
        loader.load_state_dict({"position": position})
        remaining = []
        while loader.batches_done < 12:
            remaining += [batch.tolist() for batch in loader]
        assert remaining == expected[position:]


def test_processes_of_earlier_versions_share_an_epoch():
    alone = TrainLoader(indices_alone, 11, 4, seed=1).order(2)
    orders = [TrainLoader(indices_alone, 11, 4, seed=1, rank=rank, world_size=2, as_one=False).order(2)
              for rank in (0, 1)]
    assert sorted(torch.cat(orders).tolist()) == sorted(alone[:10].tolist())
    assert len(orders[0]) == len(orders[1])


def test_evaluation_among_processes_is_filled_up_with_samples_that_are_not_scored(digits):
    loaders = [EvalLoader(indices_alone, 178, 50, rank, 4) for rank in range(4)]
    assert [len(batch) for loader in loaders for batch in loader] == [45] * 4
    assert sorted(torch.cat([batch for loader in loaders for batch in loader]).tolist()) == [-1, -1, *range(178)]
    (batch,) = digits.read("val", [torch.tensor([3, -1])])
    assert batch.labels.tolist() == [int(digits.splits["val"].labels[3]), IGNORED_LABEL]


def test_seeds_are_functions_of_their_arguments():
    assert seed_of("order", 1, 2) == seed_of("order", 1, 2)
    assert len({seed_of("order", a, b) for a in range(30) for b in range(30)}) == 900
    assert seed_of("order", 12, 3) != seed_of("order", 1, 23)
    assert not torch.equal(torch.rand(3, generator=generator("a", 0)), torch.rand(3, generator=generator("b", 0)))


PIXELS = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(("batch", "message"), [
    (ClassificationBatch(PIXELS.float(), torch.zeros(2).long()),
     "images must be (B, C, H, W) uint8, but are (2, 1, 4, 4) torch.float32"),
    (ClassificationBatch(PIXELS[:, 0], torch.zeros(2).long()),
     "images must be (B, C, H, W) uint8, but are (2, 4, 4) torch.uint8"),
    (ClassificationBatch(PIXELS, torch.zeros(3).long()), "labels must be (2,) int64, but are (3,) torch.int64"),
    (ClassificationBatch(PIXELS, torch.zeros(2)), "labels must be (2,) int64, but are (2,) torch.float32"),
    (ClassificationBatch(PIXELS, torch.tensor([0, 10])),
     "labels must be in [0, 10), but label 1 of the first batch is 10"),
    (ClassificationBatch(PIXELS, torch.tensor([-1, 0])),
     "labels must be in [0, 10), but label 0 of the first batch is -1"),
])
def test_check_names_what_is_wrong(batch, message):
    with pytest.raises(BatchError) as caught:
        batch.check(10)
    assert str(caught.value) == message


def test_check_accepts_the_ignored_label():
    ClassificationBatch(PIXELS, torch.tensor([9, IGNORED_LABEL])).check(10)


# splits


def test_hold_out_keeps_the_order_and_depends_on_its_purpose_alone():
    kept, held = hold_out("abcdefghij", 0.3, "val", "letters", "a purpose")
    assert (len(kept), len(held)) == (7, 3)
    assert sorted(kept + held) == list("abcdefghij")
    assert kept == sorted(kept)
    assert held == sorted(held)
    assert hold_out("abcdefghij", 0.3, "val", "letters", "a purpose") == (kept, held)
    assert hold_out("abcdefghij", 0.3, "val", "letters", "another") != (kept, held)
    assert len(hold_out("ab", 0.01, "val", "letters")[1]) == 1, "at least one is held out"
    with pytest.raises(DataError, match="1 letters are too few to hold out a val split"):
        hold_out("a", 0.1, "val", "letters")


def test_held_out_samples_never_change():
    """Another split would make all results so far incomparable."""
    assert hold_out(range(20), 0.2, "val", "photos", "voc")[1] == [1, 10, 14, 19]
    assert split_randomly(range(20))["test"] == [10, 13]
    assert stratified_indices(torch.arange(40) % 2, 6).tolist() == [5, 7, 14, 18, 24, 27]


def test_random_split_has_its_fraction_of_each_label():
    labels = ["a"] * 50 + ["b"] * 20
    splits = split_randomly(range(70), labels)
    assert {split: [sum(i < 50 for i in indices), sum(i >= 50 for i in indices)] for split, indices in
            splits.items()} == {"train": [40, 16], "val": [5, 2], "test": [5, 2]}
    assert sorted(i for indices in splits.values() for i in indices) == list(range(70))
    with pytest.raises(ValueError, match="zip"):
        split_randomly(range(70), labels[1:])


def test_stratified_indices_keep_the_proportions():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    indices = stratified_indices(labels, 10)
    assert torch.bincount(labels[indices]).tolist() == [7, 2, 1]
    assert torch.equal(indices, stratified_indices(labels, 10))
    assert len(stratified_indices(labels, 13)) == 13


def test_a_text_is_cut_in_order():
    text = "".join(map(chr, range(200, 400)))
    assert "".join(cut_text(text).values()) == text
    assert {split: len(piece) for split, piece in cut_text(text).items()} == {"train": 180, "val": 10, "test": 10}
    assert {split: len(piece) for split, piece in cut_text(text, 0.2).items()} == {"train": 160, "val": 20, "test": 20}


# inputs of a user


def build_natural(config, name: str, *words: str) -> Any:
    """The loaded data of a choice, with a model of its batch type."""
    model = MODELS[groups.batch_type_of_data(name) or ""]
    return build_data(config(f"model={model}", f"data={name}", "recipe=none", *words))


def needs_root(name: str) -> bool:
    return groups.content(groups.CONFIGS / f"data/{name}.yaml")["data"].get("root", "") is None


@pytest.mark.parametrize("name", [name for name in groups.names("data") if needs_root(name)])
def test_data_that_needs_a_root_says_so(name, config):
    """Every data set whose yaml has `root: null`, with the same words."""
    with pytest.raises(DataError, match=r"^data\.root must be given: (a|the) "):
        build_natural(config, name)


@pytest.mark.parametrize("name", ["digits", "patterns", "scene_digits", "digits_rows", "scenes", "scene_masks",
                                  "scene_captions"])
def test_an_image_file_becomes_a_batch_without_targets(name, config, tmp_path, monkeypatch):
    for module in (scenes, patterns):
        monkeypatch.setattr(module, "NUM_EVAL_IMAGES", 8)
    few = [] if name.startswith("digits") else ["data.num_train=8"]
    data = build_natural(config, name, *few)
    data.write_samples(tmp_path)
    images = [data.read_input(path) for path in sorted(tmp_path.iterdir())[:2]]
    assert len(images) == 2
    batch, sample = data.encode_inputs(images), next(data.read("test", [torch.arange(2)]))
    assert data.input_kind == "image"
    assert type(batch) is type(sample) is data.batch_type
    batch.check(len(data.class_names) or len(data.vocabularies["words"]))
    if name == "scenes":
        assert [len(target["labels"]) for target in batch.targets] == [0, 0]
    if name == "scene_masks":
        assert (batch.masks == IGNORED_PIXEL).all()
    if name != "digits_rows":
        assert all(torch.equal(a, b) for a, b in zip(batch.images, sample.images, strict=True)), "as in the test"


@pytest.mark.parametrize(("name", "text"), [("stdlib_tokens", "x = 1"), ("dates", "12 March 1998"), ("recall", "ABCA")])
def test_a_text_becomes_a_batch_without_targets(name, text, config, monkeypatch):
    files = stdlib.library_files()[::8]
    monkeypatch.setattr(stdlib, "library_files", lambda: files)
    data = build_natural(config, name, "data.num_train=150")
    batch = data.encode_inputs([text, text[:2]])
    assert data.input_kind == "text"
    assert type(batch) is data.batch_type
    batch.check(*(len(symbols) for key, symbols in data.vocabularies.items() if name == "dates" or key == "labels"))
    tokens, lengths = batch[:2]
    assert lengths == (len(text), 2)
    assert tokens[1, 2:].eq(PAD).all()
