"""The font of all pictures: DejaVu Sans, which comes with matplotlib and has the letters of many alphabets."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import ImageFont


@cache
def font_file() -> str:
    import matplotlib  # imported late: it is slow

    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@cache
def load_font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(), size_px)
