"""Writing files, whole or not at all, and what becomes of a disk that refuses it: one line, MachineError."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dltrain.errors import MachineError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # on the disk, in a quota, by the size limit of the process
KEPT = "the checkpoints are kept"
NO_UNICODE = "backslashreplace"  # how a symbol that UTF-8 does not have, a byte of a file name, is written


def write_text(path: Path, text: str) -> None:
    """Replaces the file whole or not at all. The bytes of a file name that are no Unicode stand in it as \\udcff, which
    JSON reads as that name again. Raises MachineError if the disk refuses it."""
    write_bytes(path, text.encode("utf-8", NO_UNICODE))


def write_bytes(path: Path, content: bytes, kept: str = KEPT) -> None:
    """As `write_text`. `kept`: what a failed write did not change."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, len(content), kept):
        try:
            temporary.unlink(missing_ok=True)  # it may be a link
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # it is still there after a failure only
                temporary.unlink(missing_ok=True)


def append_text(path: Path, text: str) -> None:
    """Raises MachineError if the disk refuses it."""
    with writing(path, len(text)), open(path, "a", encoding="utf-8", errors=NO_UNICODE, newline="") as file:
        file.write(text)


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


FOLDER_GONE = ("its folder is gone, moved or deleted while it was in use; dltrain resume run=FOLDER continues a run "
               "from where it is now")


@contextmanager
def writing(path: Path, num_bytes: int = 0, kept: str = KEPT) -> Iterator[None]:
    """What writes `path`, a file of `num_bytes` or a folder, is done inside it: an OSError becomes a MachineError.
    `kept`: what a failed write did not change."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error, num_bytes, kept) from error


def unwritable(path: Path, error: OSError, num_bytes: int, kept: str) -> MachineError:
    """The error for a file that cannot be written: the reason, on a full disk with sizes, what is kept, the remedy."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        return MachineError(f"cannot save {path}: {FOLDER_GONE}")
    if error.errno not in NO_SPACE:
        return MachineError(f"cannot save {path}: {reason}; {kept}; make it writable, or choose another place")
    needs = f"needs {num_bytes / 1e6:.3f} MB, " if num_bytes else ""
    return MachineError(f"cannot save {path}: {reason} ({needs}{free_bytes(path) / 1e6:.3f} MB free); {kept}; free "
                        "some disk space and run the same command again")


@contextmanager
def naming_full_disk() -> Iterator[None]:
    """Around what no `writing` is around, as a user's own callback or a library: an OSError of a full disk becomes a
    MachineError."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise unwritable(Path(error.filename or "a file"), error, 0, "what is complete is kept") from error


def free_bytes(path: Path) -> int:
    """On the disk of a file or folder that need not be there yet; 0 if that cannot be measured."""
    there = next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), Path("/"))
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return 0
