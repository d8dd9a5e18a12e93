"""The machine of this process, as the system states it, without torch: cores, memory, file systems, and the limits of
the container or the batch system (control groups, version 1 and 2)."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


def processor() -> str:
    """Its name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def available_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in vars(os) else os.cpu_count() or 1


def usable_cores() -> int:
    """Those, or fewer where a control group grants less time than theirs."""
    return max(1, min(available_cores(), int(group_limits().cores or available_cores())))


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Limits(NamedTuple):
    """Of the control groups of this process; None where there is no limit. `cores`: processor seconds per second;
    `memory` and `memory_used` in bytes."""

    cores: float | None
    memory: int | None
    memory_used: int | None


def group_limits(root: Path = ROOT) -> Limits:
    """The smallest of the limits of this process's groups and of those above them. `root`: where /proc and /sys are."""
    cores: list[float] = []
    memory: list[tuple[int, int | None]] = []
    for folder in group_folders(root, "cpu"):
        quota, period = read_word(folder / "cpu.max", 0), read_word(folder / "cpu.max", 1)
        quota = quota or read_word(folder / "cpu.cfs_quota_us")
        period = period or read_word(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            cores.append(quota / period)
    for folder in group_folders(root, "memory"):
        limit = read_word(folder / "memory.max") or read_word(folder / "memory.limit_in_bytes")
        used = read_word(folder / "memory.current") or read_word(folder / "memory.usage_in_bytes")
        if limit and limit < memory_bytes():  # version 1 writes a huge number for none
            memory.append((limit, used))
    limit, used = min(memory, key=lambda pair: pair[0], default=(None, None))
    return Limits(min(cores, default=None), limit, used)


def group_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups and of those above them, up to the top."""
    file = root / "proc/self/cgroup"
    for line in file.read_text().splitlines() if file.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            tops = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            tops = [root / "sys/fs/cgroup" / controller, root / "sys/fs/cgroup" / controllers]
        else:
            continue
        for top in tops:
            folder = top / path.strip("/")  # in a container the path may be that outside of it, and not be there
            yield from (place for place in (folder, *folder.parents) if place.is_relative_to(top) and place.is_dir())


def read_word(file: Path, index: int = 0) -> int | None:
    """A number of a file of a control group; None where there is none, as for `max`."""
    try:
        return int(file.read_text().split()[index])
    except (OSError, ValueError, IndexError):
        return None


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, or of its control group if that is less."""
    info = ROOT / "proc/meminfo"
    lines = info.read_text().splitlines() if info.is_file() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limits = group_limits()
    if limits.memory is not None:
        free.append(max(0, limits.memory - (limits.memory_used or 0)))
    return min(free, default=None)


def file_system(path: Path) -> str:
    """The type of the file system of a folder, as ext4, tmpfs or nfs4; "" where the system does not tell."""
    mounts = ROOT / "proc/self/mounts"
    types = {}
    for line in mounts.read_text().splitlines() if mounts.is_file() else ():
        _, place, kind = line.split(" ")[:3]
        types[Path(place.replace("\\040", " "))] = kind
    real = path.resolve()
    return next((types[folder] for folder in (real, *real.parents) if folder in types), "")
