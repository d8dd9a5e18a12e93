"""The pictures and texts that a run drew for TensorBoard, the last of each name, small enough for a page."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SIDE_PX = 420  # of a picture, at most
MOST_PIXELS = 40_000_000  # of one that is read
MOST_OF_RUN, MOST_CHARACTERS = 4, 1500  # pictures and texts; of a text
MOST_BYTES = 400_000_000  # of an event file that is read


class Picture(NamedTuple):
    """`name`: such as test/confusion_matrix. `address`: a data URL, "" for a text."""

    name: str
    step: int
    address: str
    text: str


def pictures_of(folder: Path) -> list[Picture]:
    """Of the test first, then those of the validation; without those of training, which show the inputs."""
    from tensorboard.compat.proto.event_pb2 import Event

    last: dict[str, tuple[int, bytes, str]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in records(file):
            try:
                event = Event.FromString(record)
            except Exception:  # protobuf's own, by version; the other records may be whole
                continue
            for value in event.summary.value:
                if value.HasField("image"):
                    last[value.tag] = event.step, value.image.encoded_image_string, ""
                elif value.metadata.plugin_data.plugin_name == "text" and value.tensor.string_val:
                    last[value.tag] = event.step, b"", value.tensor.string_val[0].decode("utf-8", "replace")
    pictures = []
    for name in sorted(last, key=lambda name: (not name.startswith("test/"), name)):
        step, encoded, text = last[name]
        address = as_address(encoded) if encoded else ""
        if not name.startswith("train/") and (address or text):
            pictures.append(Picture(name.removesuffix("/text_summary"), step, address, text[:MOST_CHARACTERS]))
    return pictures[:MOST_OF_RUN]


def records(file: Path) -> Iterator[bytes]:
    """Of an event file up to where it ends or is damaged: length, checksum, record, checksum."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size > MOST_BYTES:
        return
    with open(file, "rb") as stream:
        while len(head := stream.read(12)) == 12:
            length = struct.unpack("<Q", head[:8])[0]
            if length > MOST_BYTES or len(record := stream.read(length)) < length:
                return
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
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"
