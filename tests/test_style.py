"""The style of pictures: colours that can be told apart, and axes that all look alike."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import dltrain
from dltrain.data.scenes import Scenes
from dltrain.drawing import style
from dltrain.drawing.images import LEAST_LIGHT, brighten
from dltrain.drawing.masks import compare_masks

# Linear RGB as people without one kind of cones see it: G. Machado et al., 2009, table 1, severity 1.
SIMULATED = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, simulated: object) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour #rrggbb under D65, as these eyes see it."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(simulated) @ linear, 0, 1) / (TO_XYZ @ np.ones(3))
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours: tuple[str, ...], simulated: object) -> float:
    return min(float(np.linalg.norm(lab(one, simulated) - lab(other, simulated)))
               for one, other in combinations(colours, 2))


@pytest.mark.parametrize("eyes", list(SIMULATED))
def test_any_two_colours_of_lines_differ_for_all_eyes(eyes):
    """By several times the 2.3 of L*a*b* that are just noticeable; green and red of the usual ten do not."""
    assert nearest(style.COLOURS, SIMULATED[eyes]) > 12
    assert max(lab(colour, SIMULATED[eyes])[0] for colour in style.COLOURS) < 80  # of 100, which is white


def test_the_usual_colours_would_not_pass():
    usual = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2")
    assert min(nearest(usual, simulated) for simulated in SIMULATED.values()) < 12


def test_after_all_colours_the_lines_change():
    kinds = [(style.colour(place), style.line(place)) for place in range(len(style.COLOURS) * len(style.LINES))]
    assert len(set(kinds)) == len(kinds)
    assert {line for _, line in kinds[: len(style.COLOURS)]} == {"-"}


def test_axes_get_the_style_when_they_are_saved(tmp_path):
    figure = style.new_figure(4, 3)
    left, right, bars = figure.subplots(1, 3)
    left.plot([1, 2])
    right.imshow([[1, 2]])
    bars.barh([0, 1], [3, 4])
    style.save_figure(figure, tmp_path / "a.png")
    assert not left.spines["top"].get_visible()
    assert right.spines["top"].get_visible()
    visible = [[any(line.get_visible() for line in lines) for lines in (axes.get_xgridlines(), axes.get_ygridlines())]
               for axes in (left, right, bars)]
    assert visible == [[True, True], [False, False], [True, False]]
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_no_other_file_makes_figures_or_names_colours_by_their_place():
    """The confusion matrix is drawn to pixels for TensorBoard, and has no lines."""
    for file in Path(dltrain.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name not in ("style.py", "confusion.py"):
            assert not re.search(r"\bFigure\(", text), file
        assert not re.search(r"""color=f?["']C[{\d]""", text), file


def test_dark_scenes_are_drawn_brighter_in_their_hues_and_stay_as_they_are():
    scenes = Scenes(64, [14, 32])
    for index in range(8):
        image, _, mask = scenes.draw("test", index)
        before = image.clone()
        bright = brighten(image)
        assert torch.equal(image, before), "the data stay"
        assert float(image.float().mean(0).median() / 255) < LEAST_LIGHT
        assert float(bright.float().mean(0).median() / 255) == pytest.approx(LEAST_LIGHT, abs=0.01)
        lit = (image > 20).all(0)
        factors = bright[:, lit].float() / image[:, lit]
        assert (factors.max(0).values - factors.min(0).values).max() < 0.06, "one factor for all channels of a pixel"
        assert torch.equal(compare_masks([(image, mask, mask)], [*"_0123456789"])[:, 6:198:3, 6:198:3], bright)


def test_other_pictures_are_drawn_as_they_are():
    photo = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(brighten(photo), photo)
    assert not brighten(torch.zeros(1, 4, 4, dtype=torch.uint8)).any(), "black stays black"
