"""Every photo is decoded once before the first step; a second start reads only what is new or changed."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dltrain.data import decodable
from dltrain.data.decodable import cache_of, inspect_photos


def photo(path: Path, seed: int = 0, size: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded."""
    files: list[str] = []
    original = decodable.inspect

    def note(path):
        files.append(path.name)
        return original(path)

    monkeypatch.setattr(decodable, "inspect", note)
    return files


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_photo_that_is_cut_anywhere_is_named(suffix, tmp_path):
    paths = [photo(tmp_path / f"{index}.{suffix}", index) for index in range(4)]
    whole = paths[2].read_bytes()
    for share in (0.9, 0.5, 0.1):
        paths[2].write_bytes(whole[: int(len(whole) * share)])
        records, faults = inspect_photos(paths)
        assert list(records) == [path for path in paths if path != paths[2]]
        assert list(faults) == [paths[2]]
        assert faults[paths[2]].startswith(f"{paths[2]}: ")
    paths[2].write_bytes(b"")
    assert inspect_photos(paths)[1] == {paths[2]: f"{paths[2]}: empty"}
    paths[2].write_bytes(whole)
    assert inspect_photos(paths)[1] == {}


def test_only_what_is_new_or_changed_is_decoded_again(tmp_path, monkeypatch, decoded):
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "no/folder/yet"))
    paths = [photo(tmp_path / f"{index}.jpg", index) for index in range(4)]
    inspect_photos(paths)
    assert sorted(decoded) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    decoded.clear()
    inspect_photos(paths)
    assert decoded == []
    photo(paths[1], 9)
    os.utime(paths[1], ns=(1, 1))
    paths.append(photo(tmp_path / "4.jpg"))
    inspect_photos(paths)
    assert sorted(decoded) == ["1.jpg", "4.jpg"]
    decoded.clear()
    cache_of(map(str, paths)).write_text("{cut")
    inspect_photos(paths)
    assert len(decoded) == 5


def test_a_bad_photo_is_not_remembered(tmp_path, decoded):
    paths = [photo(tmp_path / f"{index}.jpg", index) for index in range(2)]
    paths[0].write_bytes(paths[0].read_bytes()[:400])
    for _ in range(2):
        assert len(inspect_photos(paths)[1]) == 1
    assert decoded.count("0.jpg") == 2
    assert decoded.count("1.jpg") == 1


def test_a_photo_whose_values_have_no_meaning_is_named_before_the_first_step(tmp_path):
    """It can be decoded, but nobody knows what is black and what is white: read_image refuses it."""
    for name, value in (("good", 0.5), ("high", 5000.0), ("nan", np.nan)):
        Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / f"{name}.tif")
    good, high, nan = (tmp_path / f"{name}.tif" for name in ("good", "high", "nan"))
    records, faults = inspect_photos([good, high, nan])
    assert [*records] == [good]
    assert faults[high] == f"{high}: values from 5000 to 5000: save it with 8 or 16 bits, or as floats from 0 to 1"
    assert faults[nan].startswith(f"{nan}: values from nan to nan")


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch, decoded):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "file/below"))
    paths = [photo(tmp_path / "0.jpg")]
    for _ in range(2):
        inspect_photos(paths)
    assert len(decoded) == 2
