"""The user's cache folder, ~/.cache/dltrain or the folder DLTRAIN_CACHE: what is known of files that did not change."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path


def cache_file(kind: str, key: str) -> Path:
    """The file, without suffix, in which something is kept. `kind`: a folder below the cache folder."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("DLTRAIN_CACHE") or caches / "dltrain", kind)
    return folder / hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def stamp_of(file: str | Path) -> list[int]:
    """Size in bytes and time of change in ns, which show whether a file was changed. The time of the content can be set
    back, as by a copy that keeps it, that of the entry in the file system cannot. Raises OSError."""
    status = os.stat(file)
    return [status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)]


def read_json(file: Path) -> object:
    """What was kept; None if there is nothing, it is damaged, or of a version that kept no checksum."""
    try:
        if not file.is_file():
            return None
        checksum, _, text = file.read_bytes().partition(b"\n")
        content: object = json.loads(text) if checksum == checksum_of(text) else None
    except (OSError, ValueError, RecursionError):
        return None
    return content


def checksum_of(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def write_json(file: Path, content: object) -> None:
    """Replaces the file, a checksum and then the JSON, whole or not at all. A cache that cannot be written only costs
    time."""
    text = json.dumps(content).encode()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        try:
            temporary.write_bytes(checksum_of(text) + b"\n" + text)
            temporary.replace(file)
        finally:  # it is still there after a failure only
            temporary.unlink(missing_ok=True)
