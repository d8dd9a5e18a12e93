"""The user's cache folder, ~/.cache/dltrain or the folder DLTRAIN_CACHE: what is known of files that did not change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_file(kind: str, key: str) -> Path:
    """The file, without suffix, in which something is kept. `kind`: a folder below the cache folder."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("DLTRAIN_CACHE") or caches / "dltrain", kind)
    return folder / hashlib.sha256(key.encode()).hexdigest()[:16]


def stamp_of(file: Path) -> list[int]:
    """Size in bytes and time of change in ns, which show whether a file was changed. Raises OSError."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
