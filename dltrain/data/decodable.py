"""Whether every photo can be read, found out before the first step and not after hours; and which are copies.

All files are decoded once, in threads, and what is known of those that can be is remembered in the user's cache folder
(or the folder DLTRAIN_CACHE) by their path, size and time of change, so that a second start only looks at these.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from PIL import Image
from rich.progress import track

from dltrain.data.cache import cache_file, read_json, stamp_of, write_json
from dltrain.data.datamodule import SPLITS, DataModule
from dltrain.data.images import to_8_bits
from dltrain.data.loader import Waiting
from dltrain.data.threads import ReadingThreads, reading
from dltrain.errors import DataError, FaultyData
from dltrain.image_files import NO_FILE, has_damaged_exif

DRAFT_PX = 64  # a JPEG is decoded at about this size: all of the file is read, in a fraction of the time
SampleT = TypeVar("SampleT")


class Record(NamedTuple):
    """What is known of a photo that can be decoded. `digest`: of its bytes, equal for copies. `changed_ns`: 0 if the
    file changed or vanished meanwhile."""

    bytes: int
    changed_ns: int
    digest: str
    damaged_exif: bool


def settle_photos(data: DataModule, splits: dict[str, list[SampleT]], path_of: Callable[[SampleT], Path]
                  ) -> dict[str, list[SampleT]]:
    """Decodes the photo of each sample. Returns the samples that are kept: data.on_bad decides about photos that cannot
    be decoded, data.on_leak about copies in two splits. Raises DataError."""
    paths = list(dict.fromkeys(path_of(sample) for split in SPLITS for sample in splits[split]))
    records, faults = inspect_photos(paths, data.timeout_seconds)
    if faults and data.on_bad == "stop":
        raise FaultyData(f"{len(faults)} of {len(paths)} images cannot be read", [*faults.values()],
                         "data.on_bad=skip leaves them out")
    data.leave_out("a photo that cannot be read", faults.values())
    data.photo_digests = {path: record.digest[:16] for path, record in records.items()}
    data.damaged_exif = [str(path) for path, record in records.items() if record.damaged_exif]
    kept = {split: [sample for sample in splits[split] if path_of(sample) in records] for split in SPLITS}
    for split in SPLITS:
        if splits[split] and not kept[split]:
            raise DataError(f"data.on_bad=skip: none of the {len(splits[split])} photos of the {split} split can be "
                            f"read, for example {next(iter(faults.values()))}")
    return data.settle_leaks(kept, lambda sample: records[path_of(sample)].digest, lambda sample: str(path_of(sample)))


def inspect_photos(paths: Sequence[Path], timeout_seconds: float | None = None
                   ) -> tuple[dict[Path, Record], dict[Path, str]]:
    """Decodes every file that is new or changed. Returns what is known of those that can be decoded, and what is wrong
    with the others. Raises MachineError where none can be read within the timeout."""
    if not paths:
        return {}, {}
    here = os.path.join(os.getcwd(), "")
    keys = {path: name if os.path.isabs(name := str(path)) else here + name for path in paths}
    cache = cache_of(keys.values())
    known = read_cache(cache)
    records = {path: record for path, key in keys.items() if (record := known.get(key)) is not None
               and [record.bytes, record.changed_ns] == stamp_or_zeros(key)}
    new = [path for path in paths if path not in records]
    inspected: dict[Path, tuple[Record | None, str]] = {}
    waiting = Waiting(lambda: "a photo")
    pool = ReadingThreads(min(os.cpu_count() or 1, len(new)), "inspect")
    with waiting.limited(timeout_seconds):
        waiting.since = time.perf_counter()
        results = track(pool.map(partial(reading, inspect, str), new), f"reading {len(new):,} photos", len(new),
                        transient=True, disable=not sys.stdout.isatty())
        for path, result in zip(new, results, strict=True):
            inspected[path] = result
            waiting.since = time.perf_counter()
    pool.close()
    decoded = {path: record for path, (record, _) in inspected.items() if record}
    if decoded:
        write_json(cache, known | {keys[path]: record for path, record in decoded.items()})
    return records | decoded, {path: f"{path}: {fault}" for path, (_, fault) in inspected.items() if fault}


def inspect(path: Path) -> tuple[Record | None, str]:
    """What is known of a photo, or what is wrong with it."""
    stamp = stamp_or_zeros(path)
    try:
        if path.exists() and not path.is_file():
            return None, NO_FILE
        raw = path.read_bytes()
        if not raw:
            return None, "empty"
        with Image.open(io.BytesIO(raw)) as image:
            is_damaged = has_damaged_exif(image)
            image.draft("RGB", (DRAFT_PX, DRAFT_PX))
            image.load()
            if image.mode[0] in "IF":
                to_8_bits(image)
    except Image.UnidentifiedImageError:
        return None, "cannot identify image file"
    except MemoryError:  # no fault of the photo
        raise
    except Exception as error:
        return None, str(error) or type(error).__name__
    return Record(stamp[0], stamp[1], hashlib.blake2b(raw, digest_size=16).hexdigest(), is_damaged), ""


def stamp_or_zeros(path: str | Path) -> list[int]:
    """Zeros for a file that is not there."""
    try:
        return stamp_of(path)
    except OSError:
        return [0, 0]


def cache_of(files: Iterable[str]) -> Path:
    """A file for the photos below one folder. `files`: their absolute paths."""
    folders = {file.rpartition(os.sep)[0] or os.sep for file in files}
    return cache_file("photos", os.path.commonpath(folders)).with_suffix(".json")


def read_cache(file: Path) -> dict[str, Record]:
    try:
        kept = cast(dict[str, tuple[int, int, str, bool]], read_json(file) or {})
        return {path: Record(*values) for path, values in kept.items()}
    except (TypeError, AttributeError):  # of another version
        return {}
