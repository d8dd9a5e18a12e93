"""Pixels of every type become 8 bits by their range, or are refused by name: none is black, wrapped or clipped."""

import numpy as np
import pytest
from PIL import Image

from dltrain.data.images import read_image
from dltrain.errors import DataError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
EXPECTED = (RAMP * 255).round()


def saved(path, array):
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize(("name", "array"), [
    ("16.png", (RAMP * 65535).round().astype(np.uint16)), ("16.tif", (RAMP * 65535).round().astype(np.uint16)),
    ("32.tif", (RAMP * 65535).round().astype(np.int32)), ("small32.tif", (RAMP * 255).round().astype(np.int32)),
    ("unit.tif", RAMP.astype(np.float32)), ("float255.tif", (RAMP * 255).astype(np.float32)),
    ("8.png", EXPECTED.astype(np.uint8))])
def test_grey_of_any_depth(name, array, tmp_path):
    grey = read_image(saved(tmp_path / name, array), 1)
    assert np.abs(grey[0].numpy().astype(float) - EXPECTED).max() <= 1
    colour = read_image(tmp_path / name, 3)
    assert all((plane == grey[0]).all() for plane in colour)


def test_a_dark_16_bit_picture_stays_dark(tmp_path):
    """All values below 256 are still of 65,535."""
    dark = read_image(saved(tmp_path / "a.png", np.full((8, 8), 200, np.uint16)), 1)
    assert dark.unique().tolist() == [1]


@pytest.mark.parametrize("array", [np.full((8, 8), 70_000, np.int32), np.full((8, 8), -1, np.int32),
                                   np.full((8, 8), 300.0, np.float32), np.full((8, 8), -0.1, np.float32),
                                   np.full((8, 8), np.nan, np.float32)])
def test_values_that_nobody_can_read_are_refused_by_name(array, tmp_path):
    with pytest.raises(DataError, match=r"a.tif: values from \S+ to \S+: save it with 8 or 16 bits"):
        read_image(saved(tmp_path / "a.tif", array), 1)


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (10, 20, 30, 255)  # the other half: black that does not show
    image = read_image(saved(tmp_path / "a.png", pixels), 3)
    assert image[:, 0, 0].tolist() == [10, 20, 30]
    assert image[:, 0, 7].tolist() == [255, 255, 255]
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    image = read_image(tmp_path / "p.png", 3)
    assert (image[:, 0, 0].tolist(), image[:, 0, 7].tolist()) == ([200, 0, 0], [255, 255, 255])


def test_cmyk_is_not_inverted(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = read_image(tmp_path / "a.jpg", 3)[:, 4, 4].tolist()
    assert red > 240
    assert green < 15 > blue
