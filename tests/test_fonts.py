"""Letters that DejaVu Sans lacks: a font of the system that has them, or one line that says what to install."""

from pathlib import Path

import matplotlib
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

from dltrain.drawing import fonts
from dltrain.drawing.boxes import draw_boxes
from dltrain.drawing.captions import draw_caption, wrap
from dltrain.drawing.confusion import draw_confusion
from dltrain.drawing.masks import draw_legend


def test_the_usual_font_is_that_of_matplotlib():
    assert fonts.font_file() == str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


def write_font(file: Path, letters: str, height: int) -> str:
    """A font in which each of the letters is a bar of this height, in thousandths of the size."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, height), (900, height), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"letter{number}" for number in range(len(letters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": file.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, usWinAscent=900, usWinDescent=200)
    builder.setupPost()
    builder.save(file)
    return str(file)


@pytest.fixture
def install(monkeypatch):
    """install(files) makes these the fonts of the system; none to begin with."""

    def replace(files: list[str]) -> None:
        fonts.font_for.cache_clear()
        for remembered in (fonts.chosen, fonts.without_font, fonts.missing_families):
            remembered.clear()
        monkeypatch.setattr(fonts, "system_fonts", lambda: files)

    replace([])
    yield replace
    replace([])


def test_the_font_of_a_text_has_its_letters(install, tmp_path):
    road = write_font(tmp_path / "road.ttf", "标志0.9", 700)
    dogs = write_font(tmp_path / "dogs.ttf", "犬志", 300)
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    install([str(tmp_path / "damaged.ttf"), dogs, road])
    texts = {"größe 0.9": fonts.font_file(), "знак": fonts.font_file(), "标志 0.9": road, "标": road, "犬": dogs}
    assert {text: fonts.font_for(text) for text in texts} == texts
    for text, file in texts.items():
        assert {ord(letter) for letter in text} - {32} <= TTFont(file).getBestCmap().keys()


def test_pictures_show_the_letters(install, tmp_path):
    """Each picture changes where the fonts are there, and all else in it stays."""
    image = torch.full((3, 256, 256), 120, dtype=torch.uint8)
    boxes, counts = torch.tensor([[10.0, 90, 90, 200], [100, 90, 180, 200]]), torch.tensor([[5, 1], [0, 4]])

    def pictures() -> list[torch.Tensor]:
        return [draw_boxes(image, boxes, torch.tensor([0, 1]), ["标志", "dog"]), draw_caption(image, ["标志", "a dog"]),
                draw_legend([0, 1], ["标志", "dog"], 256), draw_confusion(counts, ["标志", "dog"])]

    before = pictures()
    install([write_font(tmp_path / "road.ttf", "标志", 700)])
    after = pictures()
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True) if pair[0].shape == pair[1].shape)
    assert torch.equal(before[0][:, :, 100:], after[0][:, :, 100:]), "the label of the dog"
    assert (after[2][:, :, 22:46] < 40).sum() > 2 * (before[2][:, :, 22:46] < 40).sum(), "bars, not the lines of boxes"


def test_letters_without_a_font_are_named_once(install, caplog):
    for text in ("标志", "标", "犬", "道路", "कुत्ता", "🐶", "a dog"):
        assert fonts.font_for(text) == fonts.font_file()
    families = {"志 标": "Noto Sans CJK", "क त": "Noto Sans Devanagari", "🐶": "Noto Emoji"}
    assert caplog.messages == [f"dltrain: warning: no font has the letters {letters}, which are boxes in pictures; "
                               f"install {family}" for letters, family in families.items()]


def test_a_line_of_wide_letters_is_no_wider_than_the_picture(install, tmp_path):
    install([write_font(tmp_path / "road.ttf", "标志", 700)])
    sentence = "标志标标志志" * 10
    lines = wrap(sentence, 200)
    assert "".join(lines) == sentence
    assert 150 < max(fonts.load_font(11, sentence).getlength(line) for line in lines) <= 200
