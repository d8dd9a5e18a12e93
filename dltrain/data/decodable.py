"""Whether every photo can be decoded, found out before the first step and not after hours.

All files are decoded once, in threads, and those that can be are remembered in the user's cache folder (or the folder
DLTRAIN_CACHE) by their path, size and time of change, so that a second start only looks at these.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from rich.progress import track

from dltrain.data.images import join_faults
from dltrain.errors import DataError

DRAFT_PX = 64  # a JPEG is decoded at about this size: all of the file is read, in a fraction of the time
Stamp = list[int]  # size in bytes and time of change in ns


def check_images(paths: Sequence[Path]) -> None:
    """Decodes every file that is new or changed. Raises DataError with the first three bad ones and the count of all.
    """
    if not paths:
        return
    memory = memory_of(paths)
    known = read_memory(memory)
    stamps = {str(path.absolute()): stamp_of(path) for path in paths}
    new = [path for path in paths if (stamp := stamps[str(path.absolute())]) is None
           or known.get(str(path.absolute())) != stamp]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = track(pool.map(find_fault, new), f"reading {len(new):,} photos", len(new), transient=True,
                        disable=not sys.stdout.isatty())
        faults = {path: fault for path, fault in zip(new, results, strict=True) if fault}
    if new:
        bad = {str(path.absolute()) for path in faults}
        write_memory(memory, {**known, **{path: stamp for path, stamp in stamps.items() if path not in bad and stamp}})
    if faults:
        raise DataError(f"{len(faults)} of {len(paths)} images cannot be read: {join_faults([*faults.values()])}")


def find_fault(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (DRAFT_PX, DRAFT_PX))
            image.load()
            return None
    except Exception as error:
        is_empty = path.exists() and path.stat().st_size == 0
        return f"{path}: {'empty' if is_empty else str(error) or type(error).__name__}"


def stamp_of(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def memory_of(paths: Sequence[Path]) -> Path:
    """A file for the photos below one folder."""
    folder = os.path.commonpath([path.absolute().parent for path in paths])
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = os.environ.get("DLTRAIN_CACHE") or caches / "dltrain"
    return Path(cache, "decoded") / f"{hashlib.sha256(folder.encode()).hexdigest()[:16]}.json"


def read_memory(file: Path) -> dict[str, Stamp]:
    try:
        known: dict[str, Stamp] = json.loads(file.read_text())
    except (OSError, ValueError):  # none yet, or cut by a crash
        return {}
    return known


def write_memory(file: Path, known: dict[str, Stamp]) -> None:
    """A cache that cannot be written only costs time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known))
        temporary.replace(file)
    except OSError:
        return
