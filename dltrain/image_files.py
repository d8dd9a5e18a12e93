"""Image files on a disk, without decoding them and without torch: which there are, and their size."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dltrain.errors import DataError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def image_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) in pixels, from the header alone. Raises DataError."""
    try:
        with Image.open(path) as opened:
            return opened.size
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: {error}") from None


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Lists the image files of a folder by suffix, sorted; hidden files and, with `recursive`, hidden folders are left
    out."""
    return sorted(path for path in (folder.rglob("*") if recursive else folder.iterdir())
                  if path.suffix.lower() in IMAGE_SUFFIXES
                  and not any(name.startswith(".") for name in path.relative_to(folder).parts))


def find_images(paths: str) -> list[Path]:
    """Lists the files of `a.png`, `a.png,b.png` or a folder, whose images are listed by name, those in folders below it
    too. Raises DataError."""
    files: list[Path] = []
    for word in [paths] if Path(paths).exists() else paths.split(","):
        path = Path(word.strip()).expanduser()
        if path.is_dir():
            below = list_images(path, recursive=True)
            if not below:
                raise DataError(f"input={path}: no images in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
            files += below
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"input={path}: no such file or folder")
    return files
