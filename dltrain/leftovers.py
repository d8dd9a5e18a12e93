"""What runs leave behind and no longer need: found without a change, deleted one run folder at a time under its lock.

A link is never followed, and a folder with a live run is skipped with all below it. Folders that are not of a run of
dltrain are left alone. A run folder is deleted only if it has no checkpoint to continue from and no file of another's.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from dltrain import run_lock
from dltrain.data.cache import cache_file, read_json, stamp_of

KINDS = {"checkpoints": "previous.ckpt of finished runs",
         "last": "last.ckpt of finished runs, which eval checkpoint=last reads",
         "failed": "runs that failed before their first checkpoint",
         "empty": "runs that were stopped before it", "temporary": "files of saves that were killed",
         "cache": "what the cache of this user has of files that have changed or are gone"}
TEMPORARY = re.compile(r"\..+\.tmp|\.probe")
TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")
REPLAYED = re.compile(r"step_\d+(/\w+\.(csv|png))?")
CACHED = re.compile(r"[0-9a-f]{16}(\.\w+)?")
OLD_CACHES = {"decoded"}  # of earlier versions
# What a run writes before its first checkpoint.
OWN = {run_lock.FILE, "log.txt", "config.yaml", "command.txt", "overrides.txt", "environment.json", "metrics.csv",
       "first_steps.json", "splits.json", "samples.tsv", "vocabulary.json", "left_out.txt", "damaged_exif.txt",
       "own_code.json", "trackers.json", "error.txt", "report.html", "checkpoints"}


class Leftover(NamedTuple):
    kind: str  # one of KINDS
    path: Path
    num_bytes: int
    reason: str
    folder: Path  # whose lock protects it


class Survey(NamedTuple):
    leftovers: list[Leftover]
    kept: list[str]  # lines: what is left alone, and why


def find(root: Path) -> Survey:
    """What is left below a folder, and in the cache."""
    survey = Survey([], [])
    for folder in folders_below(root, survey.kept):
        leftovers, note = left_in(folder)
        survey.leftovers.extend(leftovers)
        survey.kept.extend([f"{folder}: {note}"] if note else [])
    survey.leftovers.extend(left_in_cache())
    return survey


def folders_below(folder: Path, kept: list[str]) -> Iterator[Path]:
    """The folder and all below it, in the order of their names. A line for each that a live run has goes to `kept`."""
    if owner := run_lock.owner_of(folder):
        kept.append(f"{folder}: in use by {owner}")
        return
    yield folder
    for child in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if child.is_dir(follow_symlinks=False) and child.name not in ("checkpoints", "samples"):
            yield from folders_below(folder / child.name, kept)


def left_in(folder: Path) -> tuple[list[Leftover], str]:
    """What is left in the folder of a run, without the folders below it; and why it is kept although it has nothing to
    continue from, "" otherwise."""
    entries = {entry.name: entry for entry in os.scandir(folder)}
    if not is_run(folder, entries):
        return [], ""
    weights = folder / "checkpoints"
    saves = {entry.name: entry for entry in os.scandir(weights)} if is_folder(entries.get("checkpoints")) else {}
    every = [*entries.values(), *saves.values()]
    temporary = [Leftover("temporary", Path(entry.path), size_of(entry), "a save that was killed", folder)
                 for entry in every if TEMPORARY.fullmatch(entry.name) and is_file(entry)]
    if "result.json" in entries:
        names = {"previous.ckpt": "checkpoints", "last.ckpt": "last"} if "best.ckpt" in saves else {}
        return temporary + [Leftover(kind, weights / name, size_of(saves[name]), "the run is finished", folder)
                            for name, kind in names.items() if is_file(saves.get(name))], ""
    if any(name.endswith(".ckpt") for name in saves):
        return temporary, ""
    if "overrides.txt" in entries and not (folder.parent / "results.csv").is_file():
        return temporary, "a job of a sweep that has not ended"
    if others := sorted(entry.name for entry in every if not is_own(entry)):
        return temporary, f"no checkpoint, but it has {others[0]}, which a run does not write before that"
    size = sum(map(size_of, every)) + sum(file.stat().st_size for file in (folder / "replay").glob("*/*"))
    if "error.txt" in entries:
        return [Leftover("failed", folder, size, first_line(folder / "error.txt"), folder)], ""
    return [Leftover("empty", folder, size, "stopped before its first checkpoint", folder)], ""


def is_run(folder: Path, entries: Mapping[str, os.DirEntry[str]]) -> bool:
    """Whether dltrain has made the folder: by its config.yaml, else by the record of a process in the lock, or, if it
    is empty, by a name that is a time."""
    if is_file(entries.get("config.yaml")):
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
        return bool(re.match("version:", text)) and bool(re.search("^choices:", text, re.MULTILINE))
    if is_file(entries.get(run_lock.FILE)):
        return (folder / run_lock.FILE).read_text(errors="replace").startswith("process ")
    return not entries and bool(TIME.fullmatch(folder.name))


def left_in_cache() -> list[Leftover]:
    """Files that dltrain has written there, by their names."""
    caches = cache_file("x", "").parent.parent
    leftovers = []
    for file in sorted(caches.glob("*/*")):
        if CACHED.fullmatch(file.name) and not file.is_symlink() and file.is_file() and (reason := why_useless(file)):
            leftovers.append(Leftover("cache", file, file.stat().st_size, reason, caches))
    return leftovers


def why_useless(file: Path) -> str:
    """"" for a file of the cache that is of use, or may be."""
    kind, suffix = file.parent.name, file.suffix.lstrip(".")
    if kind in OLD_CACHES:
        return "of an earlier version"
    if suffix.isdigit():
        return "" if run_lock.is_alive(int(suffix)) else "a save that was killed"
    if (content := read_json(file.with_suffix(".json"))) is None and file.suffix == ".json":
        return "damaged, or of an earlier version"
    if kind == "texts":
        with suppress(OSError, TypeError, KeyError, ValueError):
            stamps: list[list[str | int]] = content["files"]  # type: ignore[index]
            return "" if all(stamp_of(str(name)) == stamp for name, *stamp in stamps) else "the text has changed"
        return "the text is gone"
    if kind == "photos" and type(content) is dict and not any(map(os.path.exists, content)):
        return "the photos are gone"
    return ""


def delete(leftovers: list[Leftover], root: Path) -> tuple[list[Leftover], list[str]]:
    """Returns those below `root`, and in the cache, that were deleted, and a line for each folder that a run has taken
    since."""
    deleted, kept = [], []
    for folder, group in groupby(leftovers, key=lambda item: item.folder):
        items = list(group)
        if items[0].kind == "cache":
            for item in items:
                item.path.unlink(missing_ok=True)
            deleted += items
            continue
        try:
            with run_lock.locked(folder):
                still = {(item.kind, item.path) for item in left_in(folder)[0]}
                for item in items:
                    if (item.kind, item.path) in still:
                        remove(item, root)
                        deleted.append(item)
        except run_lock.FolderInUse as error:
            kept.append(str(error).partition(";")[0].removeprefix("run folder "))
    return deleted, kept


def remove(item: Leftover, root: Path) -> None:
    """A file, or the folder of a run, which has none below it but checkpoints/ and replay/; the lock goes last. With
    the last run of a folder below `root` that folder goes."""
    if item.path != item.folder:
        item.path.unlink()
        return
    checkpoints = item.path / "checkpoints"
    if checkpoints.is_dir():
        for file in checkpoints.iterdir():
            file.unlink()
        checkpoints.rmdir()
    if (item.path / "replay").is_dir():
        shutil.rmtree(item.path / "replay")
    for file in sorted(item.path.iterdir(), key=lambda file: file.name == run_lock.FILE):
        file.unlink()
    item.path.rmdir()
    if item.path.parent != root:
        with suppress(OSError):  # it has other runs
            item.path.parent.rmdir()


def is_own(entry: os.DirEntry[str]) -> bool:
    """Whether a run writes it before its first checkpoint. A link is never one."""
    if entry.name == "checkpoints":
        return is_folder(entry)
    if entry.name == "replay":  # of the step at which a run diverged
        files = Path(entry.path).rglob("*")
        return is_folder(entry) and all(REPLAYED.fullmatch(str(file.relative_to(entry.path))) for file in files)
    is_known = entry.name in OWN or entry.name.startswith("events.out.tfevents.") or TEMPORARY.fullmatch(entry.name)
    return bool(is_known) and is_file(entry)


def is_file(entry: os.DirEntry[str] | None) -> bool:
    return entry is not None and entry.is_file(follow_symlinks=False)


def is_folder(entry: os.DirEntry[str] | None) -> bool:
    return entry is not None and entry.is_dir(follow_symlinks=False)


def size_of(entry: os.DirEntry[str]) -> int:
    return entry.stat(follow_symlinks=False).st_size if is_file(entry) else 0


def first_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[0][:100] if lines else ""
