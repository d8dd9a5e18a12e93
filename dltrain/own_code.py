"""Where in a user's own code an exception comes from: the innermost frame outside dltrain and installed packages."""

from __future__ import annotations

import hashlib
import os
import site
import sys
import sysconfig
import traceback
from functools import cache
from pathlib import Path

PACKAGE = str(Path(__file__).parent)
INSTALLED = tuple(os.path.realpath(path) for path in (*sysconfig.get_paths().values(), *site.getsitepackages()))

BESIDE_TRAINING = ("benchmark", "commands", "config", "doctor", "drawing", "proof", "studies", "cli.py", "__main__.py")


def message_of(error: BaseException) -> str:
    """One line: the type, the message, and the notes that say when it happened."""
    text = " ".join(str(error).split())[:200]
    return ", ".join([f"{type(error).__name__}: {text}", *getattr(error, "__notes__", [])])


def frame_of(error: BaseException | None) -> traceback.FrameSummary | None:
    """The innermost frame in the user's code, of the error or else of what caused it; None if there is none."""
    while error is not None:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(frame.filename)]
        if frames:
            return frames[-1]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def is_own(file: str) -> bool:
    path = os.path.realpath(file)
    return os.path.isfile(path) and not path.startswith((PACKAGE + os.sep, *(root + os.sep for root in INSTALLED)))


def describe(frame: traceback.FrameSummary) -> str:
    """The file, the line and its source, on two indented lines."""
    path = os.path.relpath(frame.filename)
    return f"  {frame.filename if path.startswith('..') else path}:{frame.lineno}, in {frame.name}\n    {frame.line}"


def digests_of_code() -> dict[str, str]:
    """A digest of each loaded module of dltrain that a training goes through, and of the user, by its file, relative to
    the package's folder or to the current one."""
    here, files = os.getcwd() + os.sep, {}
    beside = tuple(os.path.join(PACKAGE, room) for room in BESIDE_TRAINING)
    for module in [*sys.modules.values()]:
        file = vars(module).get("__file__") or ""
        if file.startswith(beside):
            continue
        if file.startswith(PACKAGE) or (file.startswith(here) and is_own(file)):
            files[file.removeprefix(os.path.dirname(PACKAGE) + os.sep).removeprefix(here)] = file
    return {name: digest for name, file in sorted(files.items()) if (digest := digest_of_file(file))}


@cache
def digest_of_file(file: str) -> str:
    """As it is at the first call, since a loaded module does not change; "" if there is no file."""
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=6).hexdigest() if os.path.isfile(file) else ""
