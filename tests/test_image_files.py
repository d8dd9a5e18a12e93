"""Images from files: torchvision's data sets, folders of images, and single files of all kinds."""

import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain.batches import IGNORED_LABEL
from dltrain.data.datamodule import SPLITS
from dltrain.data.image_folder import ImageFolder
from dltrain.data.images import read_image
from dltrain.data.torchvision_sets import TorchvisionImages
from dltrain.errors import DataError
from dltrain.image_files import scan_images
from tests.test_data import as_rows

# torchvision's data sets: MNIST from files that the test writes


def write_mnist(root: Path, count: int = 60) -> np.ndarray:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for prefix, images in (("train", pixels), ("t10k", 255 - pixels)):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return pixels


def torchvision_set(source: str, root: Path, **more: Any) -> TorchvisionImages:
    keys: dict[str, Any] = {"channels": 1, "num_classes": 10, "image_px": 28, "batch_size": 100, "num_val": 10,
                            "download": False, **more}
    return TorchvisionImages(source=source, root=str(root), **keys)


def test_mnist_is_read_and_its_validation_split_held_out(tmp_path):
    pixels = write_mnist(tmp_path)
    data = torchvision_set("MNIST", tmp_path)
    data.load()
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 50, "val": 10, "test": 60}
    assert data.splits["train"].images.shape[1:] == (1, 28, 28)
    assert torch.bincount(data.splits["val"].labels).tolist() == [1] * 10
    assert as_rows(torch.cat([data.splits["train"].images, data.splits["val"].images])) == as_rows(pixels)
    assert torch.equal(data.splits["test"].images[:, 0], torch.from_numpy(255 - pixels))
    assert data.class_names == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(("source", "file", "place"), [
    ("CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py (data_batch_1 to 5 and test_batch)"),
    ("CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python (train and test)"),
    ("MNIST", "", "MNIST/raw (train-images-idx3-ubyte and three more)"),
    ("FashionMNIST", "", "FashionMNIST/raw (train-images-idx3-ubyte and three more)")])
def test_a_missing_data_set_is_one_line_with_address_place_and_alternative(source, file, place, tmp_path):
    with pytest.raises(DataError) as caught:
        torchvision_set(source, tmp_path).load()
    start, _, end = str(caught.value).partition(" unpacked into ")
    assert re.fullmatch(rf"{source} is not in {tmp_path}: put https?://\S+/{file}", start)
    assert end == f"{tmp_path}/{place}, or set data.root; data=digits needs no download"


def test_a_missing_svhn_names_its_files(tmp_path):
    with pytest.raises(DataError, match=rf"^SVHN is not in {tmp_path}: put http\S+/train_32x32\.mat unpacked into "
                                        rf"{tmp_path} \(train_32x32\.mat and test_32x32\.mat\), or set data\.root; "):
        torchvision_set("SVHN", tmp_path).load()


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(*args, **keys):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"^MNIST is not in \S+ and cannot be downloaded \(no network\): put http"):
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


def write_image(path: Path, value: int, size: tuple[int, int] = (20, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(path)


def image_folder(root: Path, **more: Any) -> ImageFolder:
    keys: dict[str, Any] = {"channels": 3, "num_classes": None, "image_px": 8, "batch_size": 4, "val_share": 0.25,
                            "test_share": 0.25, "num_workers": 0, **more}
    return ImageFolder(root=str(root), **keys)


def write_two_classes(root: Path, count: int = 8) -> None:
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
    (lambda root: [path.unlink() for path in (root / "val/cat").iterdir()], "val/cat: no images in this class"),
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
    Image.new("RGBA", (20, 10), (100, 0, 155, 255)).save(tmp_path / "rgba.png")
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
    assert [path.name for path in scan_images(tmp_path, recursive=False)[0]] == ["a.jpg", "b.PNG"]
    assert [path.name for path in scan_images(tmp_path)[0]] == ["a.jpg", "b.PNG", "d.png"]
