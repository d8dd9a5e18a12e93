"""Parts, orders, files: what reaches the model is what was meant, and what is wrong is named."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain.batches import IGNORED_LABEL, BatchError, ClassificationBatch, generator, seed_of
from dltrain.data.classification import read_image
from dltrain.data.digits import Digits
from dltrain.data.image_folder import ImageFolder
from dltrain.data.loader import EvalLoader, TrainLoader
from dltrain.data.torchvision_sets import TorchvisionImages, stratified
from dltrain.errors import DataError

KEYS = {"channels": 1, "num_classes": 10, "image_px": 8, "batch_size": 100}


@pytest.fixture(scope="module")
def digits():
    data = Digits(**KEYS)
    data.load()
    return data


def test_digits_parts_are_disjoint_whole_and_stratified(digits):
    from sklearn.datasets import load_digits

    counts = {part: digits.num_samples(part) for part in ("train", "val", "test")}
    assert counts == {"train": 1257, "val": 180, "test": 360}
    everything = torch.cat([digits.splits[part].images.flatten(1) for part in counts])
    original = torch.from_numpy(load_digits().data)
    assert sorted(map(tuple, everything.tolist())) == sorted(
        map(tuple, (original * 255 / 16).round().to(torch.uint8).tolist()))
    for part, count in counts.items():
        shares = torch.bincount(digits.splits[part].labels) / count
        assert shares.min() > 0.09
        assert shares.max() < 0.11


def test_order_is_a_function_of_seed_and_epoch_alone():
    def epochs(seed: int, count: int) -> list[list[int]]:
        loader = TrainLoader(lambda batches: batches, 10, 4, seed)
        return [torch.cat(list(loader)).tolist() for _ in range(count)]

    assert epochs(0, 3) == epochs(0, 3)
    first, second, third = epochs(0, 3)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second != third
    assert epochs(1, 1)[0] != first


def test_loader_goes_on_from_any_position():
    whole = TrainLoader(lambda batches: batches, 10, 3, seed=5)
    expected = [batch.tolist() for _ in range(3) for batch in whole]
    assert len(expected) == 12
    for position in range(12):
        loader = TrainLoader(lambda batches: batches, 10, 3, seed=5)
        loader.load_state_dict({"position": position})
        rest = []
        while loader.position < 12:
            rest += [batch.tolist() for batch in loader]
        assert rest == expected[position:]


def test_processes_share_an_epoch():
    alone = TrainLoader(lambda batches: batches, 11, 4, seed=1).order(2)
    parts = [TrainLoader(lambda batches: batches, 11, 4, seed=1, rank=rank, world_size=2).order(2) for rank in (0, 1)]
    assert sorted(torch.cat(parts).tolist()) == sorted(alone[:10].tolist())
    assert len(parts[0]) == len(parts[1])


def test_evaluation_shares_are_padded_with_samples_that_are_not_scored(digits):
    batches = [batch for rank in (0, 1, 2, 3) for batch in
               EvalLoader(lambda b: digits.read("val", b), 178, 50, rank, 4)]
    labels = torch.cat([batch.labels for batch in batches])
    assert (labels == IGNORED_LABEL).sum() == 2
    assert (labels != IGNORED_LABEL).sum() == 178


def test_seeds_are_functions_of_their_words():
    assert seed_of("order", 1, 2) == seed_of("order", 1, 2)
    assert len({seed_of("order", a, b) for a in range(30) for b in range(30)}) == 900
    assert seed_of("order", 12, 3) != seed_of("order", 1, 23)
    assert not torch.equal(torch.rand(3, generator=generator("a", 0)), torch.rand(3, generator=generator("b", 0)))


@pytest.mark.parametrize(("batch", "said"), [
    (ClassificationBatch(torch.zeros(2, 1, 4, 4), torch.zeros(2).long()), "images must be"),
    (ClassificationBatch(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2).long()), "images must be"),
    (ClassificationBatch(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3).long()), "labels must be"),
    (ClassificationBatch(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 10])), "label 1 of the first"),
    (ClassificationBatch(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([-1, 0])), "label 0 of the first"),
])
def test_check_names_what_is_wrong(batch, said):
    with pytest.raises(BatchError, match=said):
        batch.check(10)


def test_stratified_cut():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    chosen = stratified(labels, 10)
    assert torch.bincount(labels[chosen]).tolist() == [7, 2, 1]
    assert torch.equal(chosen, stratified(labels, 10))
    assert len(stratified(labels, 13)) == 13


# torchvision's sets: MNIST from files that the test writes


def write_mnist(root, count: int = 60) -> np.ndarray:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return pixels


def torchvision_set(source: str, root, **more):
    keys = {**KEYS, "image_px": 28, "source": source, "root": str(root), "num_val": 10, "download": False, **more}
    return TorchvisionImages(**keys)


def test_mnist_is_read_and_its_validation_part_cut(tmp_path):
    pixels = write_mnist(tmp_path)
    data = torchvision_set("MNIST", tmp_path)
    data.load()
    assert {part: len(p.labels) for part, p in data.splits.items()} == {"train": 50, "val": 10, "test": 60}
    assert data.splits["train"].images.shape[1:] == (1, 28, 28)
    assert torch.bincount(data.splits["val"].labels).tolist() == [1] * 10
    together = torch.cat([data.splits["train"].images, data.splits["val"].images]).flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, pixels.reshape(60, -1).tolist()))
    assert data.class_names[:2] == ["0", "1"]


@pytest.mark.parametrize(("source", "place"), [
    ("CIFAR10", "cifar-10-batches-py"), ("CIFAR100", "cifar-100-python"), ("SVHN", "train_32x32.mat"),
    ("MNIST", "MNIST/raw"), ("FashionMNIST", "FashionMNIST/raw")])
def test_absent_set_is_one_line_with_address_place_and_a_way_on(source, place, tmp_path):
    with pytest.raises(DataError) as caught:
        torchvision_set(source, tmp_path).load()
    said = str(caught.value)
    for word in (source, "http", str(tmp_path), place, "digits"):
        assert word in said
    assert "\n" not in said


def test_too_large_a_validation_part(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(DataError, match=r"data.num_val=60: must be above 0 and below the 60"):
        torchvision_set("MNIST", tmp_path, num_val=60).load()


def test_a_share_of_the_training_part_keeps_the_classes_and_the_other_parts(tmp_path):
    write_mnist(tmp_path)
    whole, few = torchvision_set("MNIST", tmp_path), torchvision_set("MNIST", tmp_path, num_train=20)
    whole.load()
    few.load()
    assert torch.bincount(few.splits["train"].labels).tolist() == [2] * 10
    assert torch.equal(few.splits["val"].images, whole.splits["val"].images)
    assert {tuple(i) for i in few.splits["train"].images.flatten(1).tolist()} <= {
        tuple(i) for i in whole.splits["train"].images.flatten(1).tolist()}
    with pytest.raises(DataError, match=r"data.num_train=51: must be at most the 50"):
        torchvision_set("MNIST", tmp_path, num_train=51).load()


# folders of images


def picture(path, value: int, size=(20, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(path)


def folder(root, **more):
    keys = {"channels": 3, "num_classes": None, "image_px": 8, "batch_size": 4, "val_share": 0.25, "test_share": 0.25,
            "num_workers": 0, "root": str(root), **more}
    return ImageFolder(**keys)


def two_classes(root, count: int = 8):
    for number in range(count):
        picture(root / f"cat/{number}.png", 10 * number)
        picture(root / f"dog/{number}.jpg", 255 - 10 * number)


def test_one_folder_is_split_by_shares(tmp_path):
    two_classes(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "._0.png").write_bytes(b"mac")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    data = folder(tmp_path)
    data.load()
    assert data.class_names == ["cat", "dog"]
    assert data.num_classes == 2
    assert {part: data.num_samples(part) for part in ("train", "val", "test")} == {"train": 8, "val": 4, "test": 4}
    paths = [path for part in data.samples.values() for path, _ in part]
    assert len(paths) == len(set(paths)) == 16
    for part in data.samples.values():
        assert all(label == ["cat", "dog"].index(path.parent.name) for path, label in part)


def test_given_parts_are_used(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        two_classes(tmp_path / part, count)
    data = folder(tmp_path)
    data.load()
    assert [data.num_samples(part) for part in ("train", "val", "test")] == [12, 6, 4]


def test_any_number_of_workers_gives_the_same_batches(tmp_path):
    two_classes(tmp_path)
    batches = []
    for workers in (0, 2):
        data = folder(tmp_path, num_workers=workers)
        data.load()
        batches.append([batch for _ in range(2) for batch in data.train_dataloader()])
    assert len(batches[0]) == len(batches[1]) == 4
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda root: (root / "train/cat/0.png").write_bytes(b""), "1 of 30 pictures cannot be read: .*0.png: empty"),
    (lambda root: (root / "val/dog/1.jpg").write_bytes(b"no image"), "val/dog/1.jpg: cannot identify"),
    (lambda root: (root / "val/cow").mkdir(), "val: classes that train does not have: cow"),
    (lambda root: __import__("shutil").rmtree(root / "test/dog"), "test: no folder for: dog"),
    (lambda root: [p.unlink() for p in (root / "val/cat").iterdir()], "val/cat: no pictures in this class"),
])
def test_what_is_wrong_in_a_folder_is_named(spoil, said, tmp_path):
    for part in ("train", "val", "test"):
        two_classes(tmp_path / part, 5)
    spoil(tmp_path)
    with pytest.raises(DataError, match=said):
        folder(tmp_path).load()


def test_folder_missing_or_not_given(tmp_path):
    with pytest.raises(DataError, match=r"needs data\.root"):
        ImageFolder(channels=3, num_classes=None, image_px=8, batch_size=4, val_share=0.25, test_share=0.25,
                    num_workers=0, root=None).load()
    with pytest.raises(DataError, match="no such folder"):
        folder(tmp_path / "nowhere").load()
    with pytest.raises(DataError, match="0 class folders"):
        folder(tmp_path).load()


def test_pictures_of_every_kind_become_the_same_sample(tmp_path):
    picture(tmp_path / "grey.png", 100, mode="L")
    picture(tmp_path / "rgb.png", 100)
    Image.new("RGBA", (20, 10), (100, 0, 155, 128)).save(tmp_path / "rgba.png")
    Image.fromarray(np.full((10, 20), 100 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "rgb.png", 3, 8).shape == (3, 8, 8)
    assert torch.equal(read_image(tmp_path / "rgba.png", 3, 8), read_image(tmp_path / "rgb.png", 3, 8))
    assert torch.equal(read_image(tmp_path / "deep.png", 1, 8), read_image(tmp_path / "grey.png", 1, 8))
    assert int(read_image(tmp_path / "deep.png", 1, 8).float().mean()) == 100


def test_rotation_in_the_header_is_followed(tmp_path):
    upright = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    upright.save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "plain.png")
    assert torch.equal(read_image(tmp_path / "turned.png", 1, 8), read_image(tmp_path / "plain.png", 1, 8).flip(1, 2))


def test_truncated_picture_is_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a.jpg: .*truncated"):
        read_image(tmp_path / "a.jpg", 3, 8)
