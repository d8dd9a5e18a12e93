"""The files of a run folder are never reached through a link that leads out of the folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

WRITTEN = (".", "checkpoints", "samples")  # folders below a run's that its files are written to


def stray_file(folder: Path) -> str:
    """What is wrong with the first entry of a run folder that is a link to another place, or neither a file nor a
    folder: writing to it would change a file elsewhere, or wait for ever. "" if there is none."""
    root = os.path.realpath(folder)
    for below in WRITTEN:
        if below != "." and (folder / below).is_symlink():
            continue  # refused above if it leads out
        for entry in os.scandir(folder / below) if (folder / below).is_dir() else ():
            if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
                continue
            target = os.path.realpath(entry.path)
            if entry.is_symlink() and not target.startswith(root + os.sep):
                return f"{entry.path} is a symbolic link to {target}, outside the run folder: delete the link"
            mode = os.stat(target).st_mode if os.path.exists(target) else stat.S_IFREG
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                return f"{entry.path} is neither a file nor a folder: delete it"
    return ""
