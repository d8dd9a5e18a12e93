"""data.decoding=fast: large JPEGs are decoded at a reduced size, and torch scales; the photos are those that Pillow
reads, and runs without this key have Pillow's pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from dltrain.data import classification, images
from dltrain.data.image_folder import ImageFolder
from dltrain.data.images import read_image
from dltrain.errors import DataError, UserError
from dltrain.run_dir import RunDir
from dltrain.same_config import refuse_other_config

PX = 32


def photo(width: int, height: int) -> Image.Image:
    """Waves of different lengths in the three channels, and a dark upper left corner."""
    y, x = np.mgrid[:height, :width] / height
    waves = [128 + 100 * np.sin(2 * np.pi * (a * x + b * y)) for a, b in ((1, 0.5), (0.3, 1.2), (1.1, 1.3))]
    pixels = np.stack(waves, axis=2)
    pixels[: height // 3, : width // 3] *= 0.2
    return Image.fromarray(pixels.round().astype(np.uint8))


def mean_difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().mean())


@pytest.mark.parametrize("keys", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2, "quality": 30},
                                  {"progressive": True}])
def test_jpeg_of_the_right_size_has_the_pixels_that_pillow_reads(keys, tmp_path):
    photo(40, PX).save(tmp_path / "a.jpg", **keys)
    whole = torch.from_numpy(np.asarray(Image.open(tmp_path / "a.jpg")).copy()).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "a.jpg", 3, PX, "fast"), whole[:, :, 4:36])


@pytest.mark.parametrize("size", [(50, 40), (44, 63), (20, 24)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_file_of_less_than_twice_the_size_is_scaled_as_by_pillow(size, suffix, tmp_path):
    photo(*size).save(tmp_path / f"a.{suffix}", quality=95)
    side, (left, top) = min(size), ((length - min(size)) // 2 for length in size)
    square = Image.open(tmp_path / f"a.{suffix}").crop((left, top, left + side, top + side))
    expected = np.asarray(square.resize((PX, PX), Image.Resampling.BILINEAR)).astype(int)
    image = read_image(tmp_path / f"a.{suffix}", 3, PX, "fast")
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 2  # torch rounds its weights to 16 bits
    assert image.is_contiguous()


@pytest.mark.parametrize("size", [(96, 64), (200, 150), (300, 700)])
def test_large_jpeg_is_decoded_at_a_reduced_size(size, tmp_path, monkeypatch):
    photo(*size).save(tmp_path / "a.jpg", quality=95)
    expected = read_image(tmp_path / "a.jpg", 3, PX)
    sizes: list[tuple[int, int]] = []
    scale = images.scale_square

    def noted(image: Image.Image, px: int) -> Tensor:
        sizes.append(image.size)
        return scale(image, px)

    monkeypatch.setattr(images, "scale_square", noted)
    image = read_image(tmp_path / "a.jpg", 3, PX, "fast")
    assert PX <= min(sizes[0]) < 2 * PX
    assert mean_difference(image, expected) < 4
    assert mean_difference(image, expected.flip(2)) > 20


@pytest.mark.parametrize("size", [(50, 40), (200, 150)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_photos_are_upright(orientation, size, tmp_path):
    tag = Image.Exif()
    tag[0x0112] = orientation
    photo(*size).save(tmp_path / "a.jpg", quality=95, exif=tag)
    image, expected = read_image(tmp_path / "a.jpg", 3, PX, "fast"), read_image(tmp_path / "a.jpg", 3, PX)
    assert mean_difference(image, expected) < 4
    assert mean_difference(image.flip(1), expected) > 20


@pytest.mark.parametrize(("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("RGB", "jpg"), ("RGBA", "png"),
                                              ("P", "png"), ("I;16", "png")])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(50, 40), (80, 96)])
def test_files_of_all_modes_have_the_colours_that_pillow_reads(mode, suffix, channels, size, tmp_path):
    picture = photo(*size)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}", channels, PX, "fast")
    assert image.shape == (channels, PX, PX)
    assert mean_difference(image, read_image(tmp_path / f"a.{suffix}", channels, PX)) < 4


def test_picture_of_python_is_scaled_like_a_file(tmp_path):
    photo(50, 40).save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png", 3, PX, "fast")
    assert torch.equal(read_image(photo(50, 40), 3, PX, "fast"), expected)
    assert not torch.equal(read_image(photo(50, 40), 3, PX), expected)


@pytest.mark.parametrize("size", [(50, 40), (200, 150)])
def test_cut_jpeg_is_refused_by_name(size, tmp_path):
    photo(*size).save(tmp_path / "a.jpg")
    raw = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"a\.jpg: .*[Tt]runcated"):
        read_image(tmp_path / "a.jpg", 3, PX, "fast")


def folder(root: Path, **more: Any) -> ImageFolder:
    data = ImageFolder(root=str(root), val_share=0.2, test_share=0.2, num_workers=0, batch_size=8, channels=3,
                       num_classes=None, image_px=PX, **more)
    data.load()
    return data


def test_training_and_prediction_decode_alike_and_runs_without_the_key_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    for number in range(10):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo(60 + number, 44).save(file)
    fast, earlier = folder(tmp_path / "photos", decoding="fast"), folder(tmp_path / "photos")
    for data, decoding in ((fast, "fast"), (earlier, "pillow")):
        (batch,) = data.read("train", [torch.arange(3)])
        expected = [read_image(path, 3, PX, decoding) for path in data.paths["train"][:3]]
        assert torch.equal(batch.images, torch.stack(expected))
        assert torch.equal(batch.images, torch.stack([data.read_input(path) for path in data.paths["train"][:3]]))
    assert fast.paths == earlier.paths


def test_photos_for_the_statistics_are_read_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classification, "STATISTICS_BYTES", 4 * 3 * PX**2)
    for number in range(20):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo(40 + number, 44).save(file)
    data = folder(tmp_path / "photos", decoding="fast")
    batches = list(data.pixel_batches(11))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert torch.equal(torch.cat(batches), data.training_pixels(11))


def test_run_of_an_earlier_version_continues_as_it_began(tmp_path):
    (tmp_path / "config.yaml").write_text("version: 0.2.0\ndata: {image_px: 32}\n")
    refuse_other_config(RunDir(tmp_path), OmegaConf.create({"data": {"image_px": 32, "decoding": "pillow"}}))
    with pytest.raises(UserError, match=r"data\.decoding"):
        refuse_other_config(RunDir(tmp_path), OmegaConf.create({"data": {"image_px": 32, "decoding": "fast"}}))
