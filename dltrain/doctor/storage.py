"""The folders that a run writes to: their free space, and whether what a safe save needs works there."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dltrain.data.cache import cache_file
from dltrain.disk import flush_folder
from dltrain.doctor.report import Report, in_gb, without_home
from dltrain.machine import file_system

LEAST_FREE = 1e9  # bytes


def checks_of(output_dir: str) -> list[Callable[[Report], None]]:
    """`output_dir`: the folder of the runs."""

    def check_runs(report: Report) -> None:
        check_place(report, "runs", Path(output_dir), "choose another output_dir=", is_needed=True)

    def check_cache(report: Report) -> None:
        check_place(report, "cache", cache_file("doctor", "").parent.parent, "set DLTRAIN_CACHE to another folder; "
                    "without a cache each start reads all files again", is_needed=False)

    def check_temporary(report: Report) -> None:
        check_place(report, "temporary files", Path(tempfile.gettempdir()), "set TMPDIR to another folder",
                    is_needed=False)

    return [check_runs, check_cache, check_temporary]


def check_place(report: Report, name: str, folder: Path, remedy: str, is_needed: bool) -> None:
    """Tries the folder, or the one above it in which it would be made. `is_needed`: whether a run fails without it."""
    folder = folder.expanduser().absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    find = report.problem if is_needed else report.note
    status = os.statvfs(place)
    free, kind = status.f_frsize * status.f_bavail, file_system(place)
    place_name = str(folder) + ("" if place == folder else f" (not there yet; tried {place})")
    faults, milliseconds = try_folder(place)
    report.state("storage", {
        name: without_home(place_name), f"{name}, free": f"{in_gb(free)}{f' on {kind}' if kind else ''}",
        f"{name}, tried": "; ".join(faults) or f"write and fsync in {milliseconds:.1f} ms, rename, lock"})
    for fault in faults:
        find(f"{name}: {fault}", remedy)
    if free < LEAST_FREE:
        find(f"{name}: {in_gb(free)} free in {place}", f"make room, or {remedy}")
    if status.f_files and not status.f_favail:
        find(f"{name}: {place} has no free inode, so no file can be made", f"delete files, or {remedy}")
    if kind.startswith(("nfs", "cifs", "smb", "fuse")):
        report.note(f"{name}: {place} lies on {kind}, where locks may not reach other machines",
                    "start a run on one machine at a time")


def try_folder(folder: Path) -> tuple[list[str], float]:
    """What fails of a safe save in a folder, and the milliseconds that writing and fsync took."""
    file, other = (folder / f".dltrain-doctor-{os.getpid()}-{number}" for number in (1, 2))
    faults: list[str] = []

    @contextmanager
    def noted(action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            faults.append(f"cannot {action} {folder}: {error.strerror}")

    started = time.perf_counter()
    try:
        with noted("write to"):
            with open(file, "w", encoding="utf-8") as stream:
                stream.write("dltrain doctor\n" * 256)
                stream.flush()
                with noted("fsync a file in"):
                    os.fsync(stream.fileno())
            elapsed = time.perf_counter() - started
            with noted("replace a file in"):
                other.touch()
                os.replace(file, other)
            with noted("fsync"):
                flush_folder(folder)
            with noted("lock a file in"), open(other, "a") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_free_for_another(other):
                    faults.append(f"a lock in {folder} keeps nobody out, so that two runs may write one folder")
            return faults, elapsed * 1e3
    finally:
        for leftover in (file, other):
            with noted("delete a file in"):
                leftover.unlink(missing_ok=True)
    return faults, 0.0


def is_free_for_another(file: Path) -> bool:
    """Whether another process gets the lock of a file, as a second start of a run would try."""
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-I", "-S", "-c", code, file], capture_output=True).returncode == 0
