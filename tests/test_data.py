"""Splits, orders, image files: the model gets what was meant, and what is wrong with a file is named."""

import shutil
import struct
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain.batches import IGNORED_LABEL, IGNORED_PIXEL, PAD, BatchError, ClassificationBatch, generator, seed_of
from dltrain.build import build_data
from dltrain.config import groups
from dltrain.data import patterns, scenes, stdlib
from dltrain.data.datamodule import SPLITS
from dltrain.data.digits import Digits
from dltrain.data.image_folder import ImageFolder
from dltrain.data.images import list_images, read_image
from dltrain.data.loader import EvalLoader, TrainLoader
from dltrain.data.splits import cut_text, hold_out, split_randomly, stratified_indices
from dltrain.data.torchvision_sets import TorchvisionImages
from dltrain.errors import DataError

KEYS = {"channels": 1, "num_classes": 10, "image_px": 8, "batch_size": 100}


@pytest.fixture(scope="module")
def digits():
    data = Digits(**KEYS)
    data.load()
    return data


def as_rows(images) -> list[tuple[int, ...]]:
    """Each image as a tuple of its values, sorted."""
    return sorted(map(tuple, torch.as_tensor(images).flatten(1).tolist()))


def test_splits_of_digits_are_disjoint_complete_and_stratified(digits):
    from sklearn.datasets import load_digits

    counts = {split: digits.num_samples(split) for split in SPLITS}
    assert counts == {"train": 1257, "val": 180, "test": 360}
    images = torch.cat([digits.splits[split].images for split in SPLITS])
    original = torch.from_numpy(load_digits().data)
    assert as_rows(images) == as_rows((original * 255 / 16).round().to(torch.uint8))
    for split, count in counts.items():
        fractions = torch.bincount(digits.splits[split].labels) / count
        assert fractions.min() > 0.09
        assert fractions.max() < 0.11


def test_order_is_a_function_of_seed_and_epoch_alone():
    def epochs(seed: int, count: int) -> list[list[int]]:
        loader = TrainLoader(lambda batches: batches, 10, 4, seed)
        return [torch.cat(list(loader)).tolist() for _ in range(count)]

    assert epochs(0, 3) == epochs(0, 3)
    first, second, third = epochs(0, 3)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second != third
    assert epochs(1, 1)[0] != first


def test_loader_resumes_from_any_position():
    uninterrupted = TrainLoader(lambda batches: batches, 10, 3, seed=5)
    expected = [batch.tolist() for _ in range(3) for batch in uninterrupted]
    assert len(expected) == 12
    for position in range(12):
        loader = TrainLoader(lambda batches: batches, 10, 3, seed=5)
        loader.load_state_dict({"position": position})
        remaining = []
        while loader.position < 12:
            remaining += [batch.tolist() for batch in loader]
        assert remaining == expected[position:]


def test_processes_share_an_epoch():
    alone = TrainLoader(lambda batches: batches, 11, 4, seed=1).order(2)
    orders = [TrainLoader(lambda batches: batches, 11, 4, seed=1, rank=rank, world_size=2).order(2) for rank in (0, 1)]
    assert sorted(torch.cat(orders).tolist()) == sorted(alone[:10].tolist())
    assert len(orders[0]) == len(orders[1])


def test_evaluation_among_processes_is_filled_up_with_samples_that_are_not_scored(digits):
    batches = [batch for rank in range(4) for batch in EvalLoader(partial(digits.read, "val"), 178, 50, rank, 4)]
    labels = torch.cat([batch.labels for batch in batches])
    assert (labels == IGNORED_LABEL).sum() == 2
    assert (labels != IGNORED_LABEL).sum() == 178


def test_seeds_are_functions_of_their_arguments():
    assert seed_of("order", 1, 2) == seed_of("order", 1, 2)
    assert len({seed_of("order", a, b) for a in range(30) for b in range(30)}) == 900
    assert seed_of("order", 12, 3) != seed_of("order", 1, 23)
    assert not torch.equal(torch.rand(3, generator=generator("a", 0)), torch.rand(3, generator=generator("b", 0)))


@pytest.mark.parametrize(("batch", "message"), [
    (ClassificationBatch(torch.zeros(2, 1, 4, 4), torch.zeros(2).long()), "images must be"),
    (ClassificationBatch(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2).long()), "images must be"),
    (ClassificationBatch(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3).long()), "labels must be"),
    (ClassificationBatch(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 10])), "label 1 of the first"),
    (ClassificationBatch(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([-1, 0])), "label 0 of the first"),
])
def test_check_names_what_is_wrong(batch, message):
    with pytest.raises(BatchError, match=message):
        batch.check(10)


# splits


def test_hold_out_keeps_the_order_and_depends_on_its_purpose_alone():
    kept, held = hold_out("abcdefghij", 0.3, "val", "letters", "a purpose")
    assert (len(kept), len(held)) == (7, 3)
    assert sorted(kept + held) == list("abcdefghij")
    assert kept == sorted(kept)
    assert held == sorted(held)
    assert hold_out("abcdefghij", 0.3, "val", "letters", "a purpose") == (kept, held)
    assert hold_out("abcdefghij", 0.3, "val", "letters", "another") != (kept, held)
    assert hold_out("ab", 0.01, "val", "letters")[1], "at least one is held out"
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


def test_stratified_indices_keep_the_proportions():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    indices = stratified_indices(labels, 10)
    assert torch.bincount(labels[indices]).tolist() == [7, 2, 1]
    assert torch.equal(indices, stratified_indices(labels, 10))
    assert len(stratified_indices(labels, 13)) == 13


def test_a_text_is_cut_in_order():
    text = "".join(map(chr, range(200, 400)))
    assert "".join(cut_text(text).values()) == text
    assert [len(part) for part in cut_text(text).values()] == [180, 10, 10]


MODELS = {"ClassificationBatch": "resnet20", "TokenBatch": "char_rnn", "LabelledBatch": "seq_classifier",
          "TaggedBatch": "tagger", "PairBatch": "seq2seq", "DetectionBatch": "faster_rcnn",
          "CaptionBatch": "captioner", "SegmentationBatch": "fcn8s"}


@pytest.mark.parametrize("name", [name for name in groups.names("data")
                                  if groups.content(groups.path_of("data", name))["data"].get("root", "") is None])
def test_data_that_needs_a_root_says_so(name, config):
    """Every data set whose yaml has `root: null`, with the same words."""
    with pytest.raises(DataError, match=r"^data\.root must be given: (a|the) "):
        build_data(composed(config, name))


def composed(config, name: str, *words: str):
    batch_type = groups.content(groups.path_of("data", name))["data"]["batch_type"]
    return config(f"model={MODELS[batch_type]}", f"data={name}", "recipe=none", *words)


@pytest.mark.parametrize("name", ["digits", "patterns", "scene_digits", "digits_rows", "scenes", "scene_masks",
                                  "scene_captions"])
def test_an_image_file_becomes_a_batch_without_targets(name, config, tmp_path, monkeypatch):
    for module in (scenes, patterns):
        monkeypatch.setattr(module, "NUM_EVALUATION", 8)
    few = [] if name.startswith("digits") else ["data.num_train=8"]
    data = build_data(composed(config, name, *few))
    data.write_samples(tmp_path)
    images = [data.read_input(path) for path in sorted(tmp_path.iterdir())[:2]]
    batch, sample = data.encode_inputs(images), next(data.read("test", [torch.arange(2)]))
    assert data.input_kind == "image"
    assert type(batch) is type(sample) is data.batch_type
    batch.check(len(data.class_names) or len(data.vocabularies["words"]))
    if name == "scenes":
        assert [len(target["labels"]) for target in batch.targets] == [0, 0]
    if name == "scene_masks":
        assert (batch.masks == IGNORED_PIXEL).all()
    if name != "digits_rows":
        assert all(torch.equal(a, b) for a, b in zip(batch.images, sample.images, strict=True)), "as in training"


@pytest.mark.parametrize(("name", "text"), [("stdlib_tokens", "x = 1"), ("dates", "12 March 1998"), ("recall", "ABCA")])
def test_a_text_becomes_a_batch_without_targets(name, text, config, monkeypatch):
    files = stdlib.library_files()[::8]
    monkeypatch.setattr(stdlib, "library_files", lambda: files)
    data = build_data(composed(config, name, "data.num_train=150"))
    batch = data.encode_inputs([text, text[:2]])
    assert data.input_kind == "text"
    assert type(batch) is data.batch_type
    batch.check(*(len(symbols) for key, symbols in data.vocabularies.items() if name == "dates" or key == "labels"))
    tokens, lengths = batch[:2]
    assert lengths == (len(text), 2)
    assert tokens[1, 2:].eq(PAD).all()


# torchvision's data sets: MNIST from files that the test writes


def write_mnist(root, count: int = 60) -> np.ndarray:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return pixels


def torchvision_set(source: str, root, **more) -> TorchvisionImages:
    keys = {**KEYS, "image_px": 28, "source": source, "root": str(root), "num_val": 10, "download": False, **more}
    return TorchvisionImages(**keys)


def test_mnist_is_read_and_its_validation_split_held_out(tmp_path):
    pixels = write_mnist(tmp_path)
    data = torchvision_set("MNIST", tmp_path)
    data.load()
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 50, "val": 10, "test": 60}
    assert data.splits["train"].images.shape[1:] == (1, 28, 28)
    assert torch.bincount(data.splits["val"].labels).tolist() == [1] * 10
    assert as_rows(torch.cat([data.splits["train"].images, data.splits["val"].images])) == as_rows(pixels)
    assert data.class_names[:2] == ["0", "1"]


@pytest.mark.parametrize(("source", "place"), [
    ("CIFAR10", "cifar-10-batches-py"), ("CIFAR100", "cifar-100-python"), ("SVHN", "train_32x32.mat"),
    ("MNIST", "MNIST/raw"), ("FashionMNIST", "FashionMNIST/raw")])
def test_a_missing_data_set_is_one_line_with_address_place_and_alternative(source, place, tmp_path):
    with pytest.raises(DataError) as caught:
        torchvision_set(source, tmp_path).load()
    message = str(caught.value)
    for word in (source, "http", str(tmp_path), place, "data=digits"):
        assert word in message
    assert "\n" not in message


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(*args, **keys):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"MNIST is not in .* and cannot be downloaded \(.*\): put http"):
        torchvision_set("MNIST", tmp_path, download=True).load()


def test_too_large_a_validation_split(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(DataError, match=r"data.num_val=60: must be above 0 and below the 60"):
        torchvision_set("MNIST", tmp_path, num_val=60).load()


def test_fewer_training_images_keep_the_classes_and_the_other_splits(tmp_path):
    write_mnist(tmp_path)
    complete, few = torchvision_set("MNIST", tmp_path), torchvision_set("MNIST", tmp_path, num_train=20)
    complete.load()
    few.load()
    assert torch.bincount(few.splits["train"].labels).tolist() == [2] * 10
    assert torch.equal(few.splits["val"].images, complete.splits["val"].images)
    assert {*as_rows(few.splits["train"].images)} <= {*as_rows(complete.splits["train"].images)}
    with pytest.raises(DataError, match=r"data.num_train=51: must be at most the 50"):
        torchvision_set("MNIST", tmp_path, num_train=51).load()


# folders of images


def write_image(path, value: int, size=(20, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(path)


def image_folder(root, **more) -> ImageFolder:
    keys = {"channels": 3, "num_classes": None, "image_px": 8, "batch_size": 4, "val_share": 0.25, "test_share": 0.25,
            "num_workers": 0, "root": str(root), **more}
    return ImageFolder(**keys)


def write_two_classes(root, count: int = 8):
    for number in range(count):
        write_image(root / f"cat/{number}.png", 10 * number)
        write_image(root / f"dog/{number}.jpg", 255 - 10 * number)


def test_one_folder_is_split_by_fractions(tmp_path):
    write_two_classes(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "._0.png").write_bytes(b"mac")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    data = image_folder(tmp_path)
    data.load()
    assert data.class_names == ["cat", "dog"]
    assert data.num_classes == 2
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 8, "val": 4, "test": 4}
    paths = [path for split in SPLITS for path in data.paths[split]]
    assert len(paths) == len(set(paths)) == 16
    for split in SPLITS:
        assert data.labels[split].tolist() == [["cat", "dog"].index(path.parent.name) for path in data.paths[split]]


def test_folders_of_the_splits_are_used(tmp_path):
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        write_two_classes(tmp_path / split, count)
    data = image_folder(tmp_path)
    data.load()
    assert [data.num_samples(split) for split in SPLITS] == [12, 6, 4]


def test_any_number_of_workers_gives_the_same_batches(tmp_path):
    write_two_classes(tmp_path)
    runs = []
    for workers in (0, 2):
        data = image_folder(tmp_path, num_workers=workers)
        data.load()
        runs.append([batch for _ in range(2) for batch in data.train_dataloader()])
    assert len(runs[0]) == len(runs[1]) == 4
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_a_sample_that_fills_up_a_batch_is_not_scored(tmp_path):
    write_two_classes(tmp_path)
    data = image_folder(tmp_path)
    data.load()
    batch = next(data.read("val", [torch.tensor([2, -1])]))
    assert batch.labels.tolist() == [1, IGNORED_LABEL]


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda root: (root / "train/cat/0.png").write_bytes(b""), "1 of 30 images cannot be read: .*0.png: empty"),
    (lambda root: (root / "val/dog/1.jpg").write_bytes(b"no image"), "val/dog/1.jpg: cannot identify"),
    (lambda root: (root / "val/cow").mkdir(), "val: classes that train does not have: cow"),
    (lambda root: shutil.rmtree(root / "test/dog"), "test: no folder for: dog"),
    (lambda root: [p.unlink() for p in (root / "val/cat").iterdir()], "val/cat: no images in this class"),
])
def test_what_is_wrong_in_a_folder_is_named(spoil, message, tmp_path):
    for split in SPLITS:
        write_two_classes(tmp_path / split, 5)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        image_folder(tmp_path).load()


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        image_folder(tmp_path / "nowhere").load()
    with pytest.raises(DataError, match="must have at least two class folders, but has 0"):
        image_folder(tmp_path).load()
    write_two_classes(tmp_path, 1)
    with pytest.raises(DataError, match="1 images of class cat are too few to hold out a test split"):
        image_folder(tmp_path).load()
    with pytest.raises(DataError, match=r"data\.num_classes=3, but .* has 2 classes: cat, dog"):
        image_folder(tmp_path, num_classes=3).load()


# image files


def test_images_of_every_mode_become_the_same_sample(tmp_path):
    write_image(tmp_path / "grey.png", 100, mode="L")
    write_image(tmp_path / "rgb.png", 100)
    Image.new("RGBA", (20, 10), (100, 0, 155, 128)).save(tmp_path / "rgba.png")
    Image.fromarray(np.full((10, 20), 100 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "rgb.png", 3, 8).shape == (3, 8, 8)
    assert torch.equal(read_image(tmp_path / "rgba.png", 3, 8), read_image(tmp_path / "rgb.png", 3, 8))
    assert torch.equal(read_image(tmp_path / "deep.png", 1, 8), read_image(tmp_path / "grey.png", 1, 8))
    assert int(read_image(tmp_path / "deep.png", 1, 8).float().mean()) == 100


def test_the_exif_rotation_is_followed(tmp_path):
    upright = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    upright.save(tmp_path / "rotated.png", exif=exif)
    upright.save(tmp_path / "plain.png")
    assert torch.equal(read_image(tmp_path / "rotated.png", 1, 8), read_image(tmp_path / "plain.png", 1, 8).flip(1, 2))


def test_a_truncated_image_is_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a.jpg: .*truncated"):
        read_image(tmp_path / "a.jpg", 3, 8)


def test_listed_images_are_sorted_and_not_hidden(tmp_path):
    for name in ("b.PNG", "a.jpg", "._c.png", "in/d.png", ".hidden/e.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    assert [path.name for path in list_images(tmp_path, recursive=True)] == ["a.jpg", "b.PNG", "d.png"]
