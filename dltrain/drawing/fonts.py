"""The fonts of all pictures: DejaVu Sans, which comes with matplotlib and has the letters of many alphabets, and for a
text with other letters a font of the system that has them."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.metadata import distribution
from pathlib import Path

from PIL import ImageFont

log = logging.getLogger("dltrain")
DEJAVU = "fonts/ttf/DejaVuSans.ttf"
EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH")
chosen: list[str] = []  # the fonts of the system that are in use
without_font: set[str] = set()  # letters that no font has
missing_families: set[str] = set()  # the fonts that a warning has named


@cache
def font_file() -> str:
    file = Path(str(distribution("matplotlib").locate_file(f"matplotlib/mpl-data/{DEJAVU}")))  # an import is slow
    if not file.is_file():
        import matplotlib

        file = Path(matplotlib.get_data_path()) / DEJAVU
    return str(file)


def load_font(size_px: int, text: str = "") -> ImageFont.FreeTypeFont:
    """A font that has the letters of the text."""
    return open_font(font_for(text), size_px)


@cache
def open_font(file: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size_px)


@lru_cache(maxsize=10_000)
def font_for(text: str) -> str:
    """The file of DejaVu Sans or, if it lacks letters of the text, of the font of the system that has most of these. A
    warning names letters that no font has, and the font to install, each such font once."""
    needed = {letter for letter in text if unicodedata.category(letter)[0] in "LNPS"} - without_font
    if text.isascii() or not needed:
        return font_file()
    for file in (font_file(), *chosen):
        if needed <= letters_of(file, needed):
            return file
    lacking = needed - letters_of(font_file(), needed)
    best, most, missing = font_file(), (0, 0), set(lacking)
    for file in system_fonts():
        letters = letters_of(file, lacking)
        if not letters or not can_be_drawn(file):
            continue
        missing -= letters
        count = len(letters), len(letters_of(file, needed))
        if count > most:
            best, most = file, count
        if most == (len(lacking), len(needed)):
            break
    if missing:
        warn_of(missing)
    if best != font_file():
        chosen.append(best)
    return best


def letters_of(file: str, needed: Iterable[str]) -> set[str]:
    """Those of the needed letters that a font has."""
    codes = charmap(file)
    return {letter for letter in needed if ord(letter) in codes}


@lru_cache(maxsize=16)
def charmap(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):  # not a font that FreeType reads
        return frozenset()


def can_be_drawn(file: str) -> bool:
    """False for a font of pictures of one size, as those of coloured emoji."""
    try:
        ImageFont.truetype(file, 12)
    except OSError:
        return False
    return True


def system_fonts() -> list[str]:
    """All fonts of the system, upright ones of normal weight first."""
    from matplotlib.font_manager import findSystemFonts

    special = ("bold", "italic", "oblique", "black", "light", "thin", "mono")
    return sorted(findSystemFonts(), key=lambda file: (any(word in Path(file).name.lower() for word in special), file))


def family_names(texts: Iterable[str]) -> list[str]:
    """The families with which matplotlib draws the texts: it takes each letter from the first that has it."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    files = dict.fromkeys([font_file(), *map(font_for, texts)])
    for file in files:
        fontManager.addfont(file)
    return [FT2Font(file).family_name for file in files]


def warn_of(letters: set[str]) -> None:
    """Says which letters have no font, and which font to install."""
    without_font.update(letters)
    families = {family_of(letter) for letter in letters} - missing_families
    missing_families.update(families)
    if families:
        log.warning(f"dltrain: warning: no font has the letters {' '.join(sorted(letters)[:10])}, which are boxes in "
                    f"pictures; install {' and '.join(sorted(families))}")


def family_of(letter: str) -> str:
    """A free font that has the letter."""
    script = unicodedata.name(letter, "").replace("-", " ").split(" ")[0]
    if script in EAST_ASIAN:
        return "Noto Sans CJK"
    return "Noto Emoji" if unicodedata.category(letter)[0] == "S" else f"Noto Sans {script.title()}".strip()
