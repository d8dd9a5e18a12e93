"""The pictures and texts that a run drew for TensorBoard, small enough for a page."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SIDE_PX = 420  # of a picture that is scaled down, at most
MOST_PIXELS = 40_000_000  # of one that is read
CONFIG = "run/config"  # a text that stands elsewhere on a page
MOST_OF_RUN, MOST_CHARACTERS = 4, 1500  # pictures and texts; of a text
MOST_BYTES = 400_000_000  # of an event file that is read
SMALLEST_BYTES = 160  # of a record with a picture or a text; most are numbers, of about 60 bytes
SPLITS = ("test", "val", "train")
LAYOUT = "custom_scalars__config__"


class Drawing(NamedTuple):
    """A picture, as it is stored, or a text."""

    step: int
    encoded: bytes
    text: str


class Drawings(NamedTuple):
    """`first`, `last`: of each name, such as test/confusion_matrix. `charts`: the titles of the page Custom Scalars,
    the loss and the headline first; none in the runs of earlier versions."""

    first: dict[str, Drawing]
    last: dict[str, Drawing]
    charts: list[str]

    @property
    def names(self) -> list[str]:
        """Those of the test first, then those of the validation, then the inputs of the training."""
        return sorted(self.last, key=lambda name: (split_place(name), name))


class Picture(NamedTuple):
    """`name`: such as test/confusion_matrix. `address`: a data URL, "" for a text."""

    name: str
    step: int
    address: str
    text: str


def split_place(name: str) -> int:
    split = name.partition("/")[0]
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def read_drawings(folder: Path) -> Drawings:
    """Of all event files of a run; a record that is damaged is left out."""
    from tensorboard.compat.proto.event_pb2 import Event

    drawings = Drawings({}, {}, [])
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in records(file):
            try:
                event = Event.FromString(record)
            except Exception:  # protobuf's own, by version; the other records may be whole
                continue
            for value in event.summary.value:
                name = value.tag.removesuffix("/text_summary")
                if value.HasField("image"):
                    drawing = Drawing(event.step, value.image.encoded_image_string, "")
                elif value.metadata.plugin_data.plugin_name == "text" and value.tensor.string_val:
                    drawing = Drawing(event.step, b"", value.tensor.string_val[0].decode("utf-8", "replace"))
                elif value.tag == LAYOUT and value.tensor.string_val:
                    drawings.charts[:] = titles_of(value.tensor.string_val[0])
                    continue
                else:
                    continue
                if name != CONFIG:
                    drawings.first.setdefault(name, drawing)
                    drawings.last[name] = drawing
    return drawings


def titles_of(layout: bytes) -> list[str]:
    """Of the charts of a page Custom Scalars; none of what is no such layout."""
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    try:
        titles = (chart.title for category in Layout.FromString(layout).category for chart in category.chart)
        return list(dict.fromkeys(titles))
    except Exception:
        return []


def pictures_of(folder: Path) -> list[Picture]:
    """The last of each name, scaled down, of the test first; without those of training, which show the inputs."""
    drawings, pictures = read_drawings(folder), []
    for name in drawings.names:
        step, encoded, text = drawings.last[name]
        address = as_address(encoded) if encoded else ""
        if not name.startswith(("train/", "run/")) and (address or text):
            pictures.append(Picture(name, step, address, text[:MOST_CHARACTERS]))
    return pictures[:MOST_OF_RUN]


def records(file: Path) -> Iterator[bytes]:
    """Those of an event file that may have a picture or a text, up to where it ends or is damaged: length, checksum,
    record, checksum."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size > MOST_BYTES:
        return
    with open(file, "rb") as stream:
        while len(head := stream.read(12)) == 12:
            length = struct.unpack("<Q", head[:8])[0]
            if length > MOST_BYTES or len(record := stream.read(length)) < length:
                return
            if length >= SMALLEST_BYTES or b"/text_summary" in record or b"IHDR" in record:
                yield record
            stream.read(4)


def as_address(encoded: bytes, most_px: int = SIDE_PX) -> str:
    """A data URL of a picture, scaled down to a side of `most_px` and to 128 colours; "" if it cannot be read."""
    from PIL import Image

    try:
        stored = Image.open(io.BytesIO(encoded))
        if stored.width * stored.height > MOST_PIXELS:
            return ""
        picture = stored.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    picture.thumbnail((most_px, most_px))
    small = io.BytesIO()
    picture.quantize(128).save(small, "PNG", optimize=True)
    return as_url(small.getvalue())


def as_url(encoded: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(encoded).decode()}"
