"""Image files on a disk, without decoding them and without torch: which there are, and their size.

A photo's EXIF tag may say that its pixels are stored turned or mirrored. Every size, box and mask of dltrain is that of
the upright photo, as people see it.
"""

from __future__ import annotations

import glob
import os
import struct
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from dltrain.errors import DataError

ImageSource = Path | Image.Image  # a file, or a PIL image
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
NO_FILE = "no regular file, but a pipe, a socket or a device"
SYSTEM_NAMES = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir"}  # what systems write beside people's files
ORIENTATION = 0x0112  # the EXIF tag
# Pillow warns of a picture above 89 million pixels and refuses one above twice as many; the refusal is enough.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
DRAWN_BESIDE = ("_mask", "_attention")  # the endings of the names of what `predict` draws beside the first picture


class Header(NamedTuple):
    """`stored`: (width, height) of the pixels in the file. `orientation`: the EXIF tag, 1 to 8; from 5 on the upright
    photo has its sides exchanged."""

    stored: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright photo."""
        width, height = self.stored
        return (height, width) if self.orientation >= 5 else (width, height)


def read_header(path: Path) -> Header:
    """Raises DataError."""
    try:
        with Image.open(path) as opened:
            return Header(opened.size, orientation_of(opened))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {error}") from None


def orientation_of(image: Image.Image) -> int:
    """1 to 8. 1, as the pixels are stored, where there is no such tag and where the EXIF data are damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds for a damaged block
        return 1
    return value if value in range(1, 9) else 1


def has_damaged_exif(image: Image.Image) -> bool:
    """Whether the EXIF data have, or may have, an orientation that cannot be read. 0 is not in the standard, but some
    programs write it where they do not know the orientation."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:
        return True
    if value is not None:
        return value not in range(9)
    return "exif" in image.info and hides_orientation(image.info["exif"])


def hides_orientation(block: bytes) -> bool:
    """Whether the first directory of a block of EXIF data is cut, or has an orientation that was not read."""
    tiff = block.removeprefix(b"Exif\x00\x00")
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
    except struct.error:
        return True
    entries = tiff[start + 2 : start + 2 + 12 * count]
    tags = [tag for (tag,) in struct.iter_unpack(f"{order}H10x", entries[: len(entries) // 12 * 12])]
    return len(tags) < count or ORIENTATION in tags


def exists(path: Path) -> bool:
    """Whether there is a file of this name; a name that the system does not take, as one with a zero byte, has none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def no_image(path: Path) -> str:
    """A message: there is no such image, or only a broken link. Characters that nobody sees are shown."""
    try:
        return f"no image {readable(str(path))}, a broken link to {readable(os.readlink(path))}"
    except (OSError, ValueError):  # no link
        return f"no image {readable(str(path))}"


def no_image_called(name: str, folder: Path, suffix: str = "") -> str:
    """A message: the folder has no image of this name, whatever its suffix, or only a broken link."""
    return no_image(next((path for path in sorted(folder.iterdir()) if path.stem == name), folder / f"{name}{suffix}"))


def readable(text: str) -> str:
    """A text on one line, in quotation marks and with escapes if it has characters that nobody sees."""
    return text if text.isprintable() else repr(text)


def image_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of the upright photo in pixels, from the header alone. Raises DataError."""
    return read_header(path).size


def scan_images(folder: Path, recursive: bool = True) -> tuple[list[Path], dict[str, list[Path]]]:
    """The image files of a folder and, with `recursive`, of those below it, through links too, sorted; and the other
    files by the reason why they are left out. Hidden files and folders, and those that systems write, are in neither.
    """
    images: list[Path] = []
    others: dict[str, list[Path]] = defaultdict(list)
    seen = set()

    def visit(base: str) -> None:
        if (real := os.path.realpath(base)) in seen:  # a link to a folder above, or to one that was there already
            others["a second link to a folder"].append(Path(base))
            return
        seen.add(real)
        parent = Path(base)
        for entry in entries_of(base):  # in this order the images are sorted by the names of all their folders
            name, is_link = entry.name, entry.is_symlink()
            if is_hidden(name):
                continue
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                if recursive:
                    visit(entry.path)
            elif is_link and not os.path.exists(entry.path):
                others["a broken link"].append(parent / name)
            elif not (os.path.isfile(entry.path) if is_link else entry.is_file()):  # a pipe would be waited for
                others[NO_FILE].append(parent / name)
            elif (suffix := name[name.rfind("."):] if "." in name else "").lower() in IMAGE_SUFFIXES:
                images.append(parent / name)
            else:
                others[f"no picture by its suffix {suffix}".strip()].append(parent / name)

    visit(str(folder))
    return images, dict(others)


def entries_of(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name; nothing if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=attrgetter("name"))
    except OSError:
        return []


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """The files by their names without suffix. Raises DataError where two have one name."""
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise DataError(f"{path}: {files[path.stem].name} has the same name but for its suffix; keep one of them")
        files[path.stem] = path
    return files


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_NAMES


def find_images(paths: str) -> dict[Path, Path]:
    """The files of `a.png`, `a.png,b.png`, a pattern as `day*/*.png`, or a folder, whose images are listed by name,
    those in folders below it too. Each with its path relative to that folder, or its name. Raises DataError."""
    files: dict[Path, Path] = {}
    for word in [paths] if Path(paths).exists() else paths.split(","):
        path = Path(word.strip()).expanduser()
        if path.is_dir():
            below, _ = scan_images(path)
            if not below:
                raise DataError(f"input={path}: no images in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
            files |= {file: file.relative_to(path) for file in below}
        elif path.is_file():
            files[path] = Path(path.name)
        elif path.exists():
            raise DataError(f"input={path}: {NO_FILE}")
        elif matches := sorted(Path(match) for match in glob.glob(str(path), recursive=True)):
            base = Path(os.path.commonpath([match.parent for match in matches]))
            files |= {match: match.relative_to(base) for match in matches if match.is_file()}
        else:
            raise DataError(f"input={path}: no such file or folder")
    return files


def output_names(files: Iterable[Path]) -> list[str]:
    """A name without suffix for what is drawn of each relative path: the path itself without its suffix, or with it
    where another one, or what is drawn beside another one (DRAWN_BESIDE), would have the same."""
    files = list(files)
    stems = Counter(str(file.with_suffix("")) for file in files)
    beside = {f"{stem}{ending}" for stem in stems for ending in DRAWN_BESIDE}
    return [str(file) if stems[stem] > 1 or stem in beside else stem
            for file in files for stem in [str(file.with_suffix(""))]]
