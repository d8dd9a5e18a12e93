"""The picture of a sweep: axes, main effects and parallel coordinates."""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from dltrain.drawing.effects import draw_parallel, effects
from dltrain.drawing.scales import is_log_spaced, scale_of
from dltrain.drawing.style import new_figure
from dltrain.sweeps import picture
from dltrain.sweeps.table import read_table
from tests import many_jobs


@pytest.mark.parametrize(("numbers", "is_log"), [
    ([0.001, 0.01, 0.1], True), ([0.001, 0.003, 0.01, 0.03], True), ([0.1, 0.2, 0.5], True), ([16, 32, 64], True),
    ([0, 1e-5, 1e-4, 1e-3], True), ([1, 2, 3], False), ([0.1, 0.5, 0.9], False), ([0.1, 0.01], False),
    ([-1, 1, 10], False), ([10, 20, 30, 40], False), (np.geomspace(1, 9, 5).tolist(), True),
    (np.linspace(1, 9, 5).tolist(), False)])
def test_an_axis_is_logarithmic_where_the_values_are(numbers, is_log):
    assert is_log_spaced(numbers) is is_log


def test_places_of_values_on_an_axis():
    scale = scale_of(["0.1", "0.001", "1e-2", "0.01"])
    assert scale.kind == "log"
    assert scale.places == pytest.approx({"0.1": -1, "0.001": -3, "1e-2": -2, "0.01": -2})
    assert [place for place, _ in scale.ticks] == pytest.approx([-3, -2, -1])
    zero = scale_of(["0", "0.001", "0.01", "0.1"])
    assert (zero.kind, zero.places["0"]) == ("log", pytest.approx(-4)), "one step below"
    assert scale_of(["9", "7", "8"]) == ("linear", {"9": 9, "7": 7, "8": 8}, [(7, "7"), (8, "8"), (9, "9")])
    assert scale_of(["adam", "sgd", "adam"]) == ("names", {"adam": 0, "sgd": 1}, [(0, "adam"), (1, "sgd")])
    assert scale_of(["nan", "1", "2"]).kind == "names"
    many = scale_of([str(value) for value in np.geomspace(1.5e-4, 0.7, 40)])
    assert [label for _, label in many.ticks] == ["0.0001", "0.001", "0.01", "0.1", "1"]


def test_a_main_effect_is_the_mean_of_all_jobs_with_a_value():
    random = np.random.default_rng(0)
    values, results = random.choice(["a", "b", "c"], 40), random.normal(size=40)
    means = effects([*values, "d"], [*results, 7.0])
    for value in "abc":
        assert means[value] == pytest.approx((results[values == value].mean(), results[values == value].std(ddof=1)))
    assert means["d"] == (7, 0)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_parallel_lines_end_at_their_results(mode):
    axes = new_figure(4, 3).subplots()
    draw_parallel(axes, ["lr", "depth"], [("0.1", "8"), ("0.01", "20"), ("0.001", "8")], "val/x", [0.5, 0.9, 0.6], mode)
    lines = axes.collections[0]
    paths = [np.asarray(path.vertices) for path in lines.get_paths()]
    ends = [path[-1] for path in paths]
    assert [tuple(end) for end in ends] == [(2, pytest.approx(height)) for height in
                                            ([0, 0.25, 1] if mode == "max" else [1, 0.25, 0])], "the best is on top"
    starts = {round(float(path[0, 1]) * 2) / 2 for path in paths}
    assert starts == {0, 0.5, 1}


def test_panels_of_a_sweep(tmp_path, monkeypatch):
    """With one key no effects, with two also these, with three also parallel coordinates."""
    figures = [new_figure(11, 8) for _ in range(3)]
    unused = iter(figures)
    monkeypatch.setattr(picture, "new_figure", lambda *_: next(unused))
    swept = {"task.optimizer.lr": ["0.001", "0.01", "0.1"], "data.batch_size": ["32", "64"],
             "augment.normalize": ["box", "standard"]}
    many_jobs.simulate(tmp_path / "s", 12, epochs=1, readings=1, swept=swept)
    table = read_table(tmp_path / "s")
    for count in (1, 2, 3):
        groups: dict[tuple[str, ...], list[Any]] = defaultdict(list)
        for group, jobs in table.groups().items():
            groups[group[:count]] += jobs
        picture.draw(groups, table.headline, "max", table.settings[:count], "s", tmp_path / "results.png")
    panels = [[axes for below in figure.subfigs for axes in below.axes] for figure in figures]
    assert [*map(len, panels)] == [2, 2 + 2, 2 + 3 + 1]
    test, effect = panels[1][1:3]
    assert [axes.get_xlabel() for axes in (test, effect)] == ["task.optimizer.lr (log)"] * 2
    assert [label.get_text() for label in effect.get_xticklabels()] == ["0.001", "0.01", "0.1"]
    gaps = np.diff(effect.get_xticks())
    assert math.isclose(*gaps)
    assert (tmp_path / "results.png").stat().st_size > 20_000
