"""The picture of a comparison: a run has one colour in all panels, and the legend names every run that has a curve."""

import pytest
from matplotlib.colors import to_rgba

from dltrain.drawing import curves
from dltrain.drawing.style import colour


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    kept = []
    new_figure = curves.new_figure

    def keep(width: float, height: float):
        kept.append(new_figure(width, height))
        return kept[-1]

    monkeypatch.setattr(curves, "new_figure", keep)
    return kept


def test_a_run_has_the_same_colour_where_another_one_has_no_curve(tmp_path, figures):
    line = ([1, 2], [0.1, 0.2])
    curves.draw_comparison({"train/loss": {"classifier": line, "scratch": line},
                            "val/accuracy": {"scratch": line, "tuned": line}},
                           {"accuracy": {"scratch": [0.1], "tuned": [0.2]}}, tmp_path / "a.png")
    (figure,) = figures
    expected = {name: to_rgba(colour(place)) for place, name in enumerate(("classifier", "scratch", "tuned"))}
    *panels, bars = figure.axes
    assert sum(len(axes.get_lines()) for axes in panels[:2]) == 4
    for axes in panels[:2]:
        for drawn_line in axes.get_lines():
            assert to_rgba(drawn_line.get_color()) == expected[str(drawn_line.get_label())]
    names = [label.get_text() for label in bars.get_yticklabels()]
    colours = [patch.get_facecolor()[:3] for patch in bars.patches]
    assert dict(zip(names, colours, strict=True)) == {name: expected[name][:3] for name in ("scratch", "tuned")}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["classifier", "scratch", "tuned"]


def test_more_runs_than_colours_differ_in_their_lines(tmp_path, figures):
    runs = {f"run {number}": ([1, 2], [0.1, 0.2]) for number in range(12)}
    curves.draw_comparison({"train/loss": runs}, {}, tmp_path / "a.png")
    looks = [(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].get_lines()]
    assert len({*looks}) == 12


@pytest.mark.parametrize(("count", "colours"), [(7, 7), (8, 1), (20, 1)])
def test_more_bars_than_colours_have_one_colour_and_room(count, colours, tmp_path, figures):
    curves.draw_comparison({}, {"accuracy": {f"run {number}": [0.5, 0.6] for number in range(count)}},
                           tmp_path / "a.png")
    (figure,) = figures
    assert len({bar.get_facecolor() for bar in figure.axes[0].patches}) == colours
    assert figure.get_figheight() >= count * curves.BAR_INCHES
