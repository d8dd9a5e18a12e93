"""Image files: checking, reading and writing them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.errors import DataError
from dltrain.image_files import ImageSource, orientation_of


def read_image(source: ImageSource, channels: int, px: int | None = None, decoding: str = "pillow") -> Tensor:
    """Reads a file, or takes a PIL image, as (C, H, W) uint8, rotated upright by its EXIF tag. With `px` the short side
    is scaled to it and the central square cut out. 16-bit grey is scaled to 8 bits. Raises DataError with the path.

    `decoding`: of images that are scaled. fast: a JPEG of at least twice the size is decoded at a half, a quarter or an
    eighth of it, as libjpeg can, and torch scales; pillow: whole, and Pillow scales, between pixels of odd margins."""
    if isinstance(source, Image.Image):
        return to_pixels(source, channels, px, decoding)
    path = source
    try:
        with Image.open(path) as opened:
            if px is not None and decoding == "fast":
                opened.draft(None, (px, px))  # no side gets shorter than px; only for JPEGs
            return to_pixels(opened, channels, px, decoding)
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {str(error) or type(error).__name__}") from None


# What Pillow calls the operation that makes a photo upright, by the EXIF orientation.
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}


def to_pixels(image: Image.Image, channels: int, px: int | None, decoding: str = "pillow") -> Tensor:
    """Raises ValueError for values of which nobody knows what is black and what is white."""
    orientation = orientation_of(image)
    if image.mode[0] in "IF":
        image = to_8_bits(image)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if image.has_transparency_data:  # what shows through is white, as in a browser; the colours below are anything
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode != (mode := "L" if channels == 1 else "RGB"):  # else a copy
        image = image.convert(mode)
    if px is not None and decoding == "fast":
        return scale_square(image, px)
    if px is not None and image.size != (px, px):
        image = ImageOps.fit(image, (px, px), method=Image.Resampling.BILINEAR)
    return to_tensor(image).contiguous()


def to_tensor(image: Image.Image) -> Tensor:
    """(C, H, W) uint8, a view of pixels that lie together."""
    return torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1).permute(2, 0, 1)


def scale_square(image: Image.Image, px: int) -> Tensor:
    """The central square, scaled to (C, px, px) uint8."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    if image.size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    pixels = to_tensor(image)
    if side != px:
        pixels = F.interpolate(pixels[None], (px, px), mode="bilinear", antialias=True)[0]
    return pixels.contiguous()


def to_8_bits(image: Image.Image) -> Image.Image:
    """Of 16-bit, 32-bit or floating point grey. 16-bit files use all of 0 to 65,535; integers of 32 bits are read as
    8-bit values if they fit, else as 16-bit ones; floats as 0 to 1 if they fit, else as 0 to 255."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and (high > 255 or image.format == "PNG"))
    largest = 65535 if is_16_bit else 1 if image.mode == "F" and high <= 1 else 255
    if not 0 <= low <= high <= largest:  # NaN too
        raise ValueError(f"values from {low:g} to {high:g}: save it with 8 or 16 bits, or as floats from 0 to 1")
    return Image.fromarray((values * (255 / largest)).round().astype(np.uint8))


def read_central_squares(paths: Iterable[Path], channels: int, px: int = 64) -> Tensor:
    """Reads the central square of each image, scaled, as (N, C, px, px) uint8."""
    return torch.stack([read_image(path, channels, px) for path in paths])


def resolve_below(folder: Path, name: str) -> Path:
    """Returns the path of `name` in a folder. Raises ValueError for a path that leaves the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"'{name}' must be a name below {folder}")
    return folder / name


def write_images(images: Iterable[Tensor], folder: Path) -> str:
    """Writes each (C, H, W) uint8 as 00.png, 01.png, ... Returns the argument of `predict` that reads them."""
    for index, image in enumerate(images):
        to_pil_image(image).save(folder / f"{index:02d}.png")
    return f"input={folder}"


def copy_images(paths: Iterable[Path], folder: Path) -> str:
    """Copies the files. Returns the argument of `predict` that reads them."""
    for path in paths:
        (folder / path.name).write_bytes(path.read_bytes())
    return f"input={folder}"
