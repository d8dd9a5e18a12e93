"""Downloads of files and data sets. An incomplete or altered file never takes the place of the real one."""

from __future__ import annotations

import hashlib
import http.client
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.hub

from dltrain.errors import DataError

DatasetT = TypeVar("DatasetT")
ATTEMPTS = 3
TIMEOUT_SECONDS = 30


def download(url: str, file: Path, size: int, sha256: str, instruction: str) -> None:
    """Downloads `url` to `file`, which must have `size` bytes and this `sha256`. After three failed attempts raises
    DataError with the `instruction` what to do instead, and leaves no file."""
    partial_file = file.with_suffix(".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"downloading {file}", flush=True)
    for attempt in range(1, ATTEMPTS + 1):
        fault = try_download(url, partial_file, size, sha256)
        if fault is None:
            partial_file.replace(file)
            return
        partial_file.unlink(missing_ok=True)
        if attempt < ATTEMPTS:
            print(f"{url}: {fault}, retry {attempt + 1}/{ATTEMPTS}", flush=True)
    raise DataError(f"no file {file}, and it cannot be downloaded ({fault}): {instruction}")


def try_download(url: str, file: Path, size: int, sha256: str) -> str | None:
    """Returns what went wrong, or None."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torch.hub sets none and would wait for ever
    try:
        torch.hub.download_url_to_file(url, str(file), progress=False)
    except (OSError, http.client.HTTPException) as error:
        return " ".join(str(error).split())[:80] or type(error).__name__
    finally:
        socket.setdefaulttimeout(previous)
    received = file.stat().st_size
    return f"incomplete ({received} of {size} bytes)" if received < size else checksum_fault(file, sha256)


def checksum_fault(file: Path, sha256: str) -> str | None:
    """Returns how the checksum of the file differs, or None."""
    content = file.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual == sha256:
        return None
    return f"{len(content):,} bytes with sha256 {actual[:12]}..., must be {sha256[:12]}..."


def download_dataset(construct: Callable[[], DatasetT], name: str, root: Path, instruction: str,
                     may_download: bool) -> DatasetT:
    """Returns `construct()`, a torchvision data set that downloads and checks its own files below `root`. Raises
    DataError with the `instruction` what to do instead if that fails or is not allowed."""
    if not may_download:
        raise DataError(f"{name} is not in {root}: {instruction}")
    print(f"downloading {name} into {root}", flush=True)
    try:
        return construct()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataError(f"{name} is not in {root} and cannot be downloaded ({reason}): {instruction}") from None
