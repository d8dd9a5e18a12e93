"""One writer per run folder: a lock that ends with the process that has it, however it ends.

It is a POSIX record lock on FOLDER/.lock. Child processes do not inherit it, as they would inherit that of flock:
loader processes that outlive a killed run do not have it. NFS has it across machines, version 4 by itself and version 3
with its lock service. On a disk without locks the record in the file decides: two starts in the same instant may then
both pass, and a process that has ended is recognised on its own machine only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dltrain.disk import unwritable, write_text, writing
from dltrain.errors import MachineError, UserError

FILE = ".lock"
TAKEN = {errno.EACCES, errno.EAGAIN}  # the lock is another process's; other errors: the disk has no locks
FLOCK = "hhqqi0q"  # struct flock of Linux: type, whence, start, length, process
HELD: set[tuple[int, int]] = set()  # device and inode of folders: a record lock does not exclude its own process


class FolderInUse(UserError):
    """Another process has the folder: nothing in it may be touched."""

    def __init__(self, folder: Path, owner: str, remedy: str = ""):
        name = (owner.splitlines() or ["another process"])[0]
        super().__init__(f"run folder {folder} is in use by {name}; wait, or choose another name={remedy}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder if it is not there. Raises FolderInUse, or MachineError if the folder cannot be written to."""
    descriptor = acquire(folder)
    HELD.add(key := key_of(folder))
    try:
        probe(folder)
        yield
    finally:
        HELD.discard(key)
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def probe(folder: Path) -> None:
    """Raises MachineError if a run could not write below its folder: a file is written and renamed there and, if there
    is one, in checkpoints/; files that a resumed run changes must be writable."""
    for place in (folder, folder / "checkpoints"):
        if place.is_dir():
            write_text(place / ".probe", "dltrain writes here\n")
            (place / ".probe").unlink()
    for file in folder.iterdir():
        if file.is_file() and not os.access(file, os.W_OK):
            raise unwritable(file, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), 0, "nothing is changed")


def remove_if_empty(folder: Path) -> bool:
    """Removes a folder that has nothing but the lock and the log of a run refused before it began, unless another
    process has it. Returns whether it did."""
    try:
        with locked(folder):
            if not {child.name for child in folder.iterdir()} <= {FILE, "log.txt"}:
                return False
            for child in folder.iterdir():
                child.unlink()
            folder.rmdir()
            return True
    except (FolderInUse, MachineError):
        return False


def acquire(folder: Path) -> int:
    """The descriptor of the locked file, with this process written into it."""
    while True:
        with writing(folder / FILE, kept="nothing is changed"):
            folder.mkdir(parents=True, exist_ok=True)
            if key_of(folder) in HELD:  # to close a second descriptor of the file would end the lock
                raise FolderInUse(folder, record_of(os.getpid()))
            try:
                descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # the folder has just been removed
                continue
        try:
            take(descriptor, folder)
            if has_name(descriptor, folder / FILE):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # a run that was refused before it began has just removed the file


def take(descriptor: int, folder: Path) -> None:
    """Raises FolderInUse, MachineError."""
    owner = os.pread(descriptor, 1000, 0).decode(errors="replace")
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise FolderInUse(folder, owner) from None
        if owner and not has_ended(owner):
            raise FolderInUse(folder, owner, f"; if that process has ended, delete {folder / FILE}") from None
    with writing(folder / FILE, kept="nothing is changed"):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, record_of(os.getpid()).encode(), 0)


def owner_of(folder: Path) -> str:
    """The live process that has the folder, as "process 12 on host"; "" for none. Changes nothing."""
    if key_of(folder) in HELD:
        return record_of(os.getpid()).splitlines()[0]
    try:
        descriptor = os.open(folder / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe: no run of dltrain has it
            return ""
        owner = os.pread(descriptor, 1000, 0).decode(errors="replace")
        is_live = is_taken(descriptor)
    except OSError:  # the disk has no locks
        is_live = bool(owner) and not has_ended(owner)
    finally:
        os.close(descriptor)
    return (owner.splitlines() or ["another process"])[0] if is_live else ""


def is_taken(descriptor: int) -> bool:
    """Whether another process has the lock of an open file. On Linux the lock is not taken for it (F_GETLK), so that a
    run that starts in the same instant is not refused. Raises OSError on a disk without locks."""
    if sys.platform == "linux":
        query = struct.pack(FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        return bool(struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, query))[0] != fcntl.F_UNLCK)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return True
        raise
    return False


def key_of(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def has_name(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def record_of(pid: int) -> str:
    return f"process {pid} on {platform.node()}\nbegun at {ticks_at_start(pid)}\n"


def has_ended(owner: str) -> bool:
    """Whether a record is of a process of this machine that has ended; its number may be another's by now."""
    match = re.fullmatch(r"process (\d+) on (.+)\nbegun at (\d+)\n", owner)
    if match is None or match[2] != platform.node():
        return False
    return not is_alive(int(match[1])) or ticks_at_start(int(match[1])) != int(match[3])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def ticks_at_start(pid: int) -> int:
    """When a process began, in clock ticks since the machine started; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
