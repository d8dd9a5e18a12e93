"""The picture of a comparison: a run has one colour in all panels, and the legend names every run that has a curve."""

from matplotlib.colors import to_rgba

from dltrain.drawing import curves


def test_a_run_has_the_same_colour_where_another_one_has_no_curve(tmp_path, monkeypatch):
    figures = []

    def keep(width: float, height: float):
        figures.append(new_figure(width, height))
        return figures[-1]

    new_figure = curves.new_figure
    monkeypatch.setattr(curves, "new_figure", keep)
    line = ([1, 2], [0.1, 0.2])
    curves.draw_comparison({"train/loss": {"classifier": line, "scratch": line},
                            "val/accuracy": {"scratch": line, "tuned": line}},
                           {"accuracy": {"scratch": [0.1], "tuned": [0.2]}}, tmp_path / "a.png")
    (figure,) = figures
    expected = {name: to_rgba(f"C{place}") for place, name in enumerate(("classifier", "scratch", "tuned"))}
    *panels, bars = figure.axes
    assert sum(len(axes.get_lines()) for axes in panels[:2]) == 4
    for axes in panels[:2]:
        for drawn_line in axes.get_lines():
            assert to_rgba(drawn_line.get_color()) == expected[str(drawn_line.get_label())]
    names = [label.get_text() for label in bars.get_yticklabels()]
    colours = [patch.get_facecolor()[:3] for patch in bars.patches]
    assert dict(zip(names, colours, strict=True)) == {name: expected[name][:3] for name in ("scratch", "tuned")}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["classifier", "scratch", "tuned"]
