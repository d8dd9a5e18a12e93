"""The user's own modules that a run was trained with: own_code.json has the sha256 of each file. A run whose modules
have changed says so when it is resumed, evaluated or predicted with."""

from __future__ import annotations

from dltrain import own_modules
from dltrain.errors import CheckpointError
from dltrain.run_dir import RunDir
from dltrain.stored_files import read_json

FILE = "own_code.json"
ADVICE = "delete it, and the run continues without the record"


def write_own_code(run_dir: RunDir) -> None:
    """To be called when the modules are imported."""
    if hashes := own_modules.digests():
        run_dir.write_json(FILE, hashes)


def describe_changed_code(run_dir: RunDir) -> str:
    """A line with the own modules that are not those of the training; "" if they are, or if none are recorded."""
    file = run_dir.path / FILE
    stored = read_json(file, ADVICE) if file.is_file() else {}
    if fault := next((name for name, then in stored.items() if type(then) is not str), None):
        raise CheckpointError(f"{file}: damaged (no sha256 of '{fault}'); {ADVICE}")
    now = own_modules.digests()
    changed = [f"{name} (sha256 {then[:8]} then, {now[name][:8]} now)" for name, then in stored.items()
               if name in now and now[name] != then]
    return f"your own code has changed since {run_dir} was trained: {', '.join(changed)}" if changed else ""
