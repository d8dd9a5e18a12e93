"""`dltrain clean`: lists what runs have left behind and no longer need, and with apply=true deletes it."""

from __future__ import annotations

import shlex
from pathlib import Path

from dltrain import leftovers
from dltrain.commands.stored import parse_value
from dltrain.drawing.tables import format_count, format_table
from dltrain.errors import UserError, suggest
from dltrain.leftovers import KINDS

LINES = "\n".join(f"    {kind:<28} {text}" for kind, text in KINDS.items())
HELP = f"""\
dltrain clean [FOLDER] [key=value ...]    lists what the runs below a folder, by default outputs, no longer need, with
                                          sizes; deletes nothing without apply=true

  apply=true                     deletes what is listed
  what=failed,empty              these kinds only; all but last and cache if it is not given
{LINES}

A live run, a run that can be continued and a folder with files that dltrain did not write are left alone. Links are not
followed."""

KEYS = ("apply", "what")


def run(words: list[str]) -> int:
    folder, apply, kinds = read_words(words)
    survey = leftovers.find(folder)
    chosen = [item for item in survey.leftovers if item.kind in kinds]
    if chosen:
        print(format_table(["what", "", "size", "why"], [
            (item.kind, str(item.path), in_megabytes(item.num_bytes), item.reason) for item in chosen], right=[2]))
    kept = survey.kept
    if not chosen:
        print(f"nothing to delete below {folder}")
    elif apply:
        deleted, taken = leftovers.delete(chosen, folder)
        kept = kept + taken
        print(f"deleted: {summary(deleted)}")
    else:
        print(f"{summary(chosen)}; nothing is deleted yet: dltrain clean {shlex.join([*words, 'apply=true'])} does it")
    for line in kept:
        print(f"left alone: {line}")
    return 0


def read_words(words: list[str]) -> tuple[Path, bool, set[str]]:
    """The folder, whether to delete, and the kinds. Raises UserError."""
    folders, apply, kinds = [], False, set(KINDS) - {"last", "cache"}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            folders.append(Path(word).expanduser())
        elif key not in KEYS:
            raise UserError(f"clean: unknown key '{key}'{suggest(key, list(KEYS)) or '; it takes apply= and what='}")
        elif key == "apply":
            apply = parse_value(key, text, "bool")
        else:
            kinds = set(text.split(","))
            if unknown := sorted(kinds - {*KINDS}):
                hint = suggest(unknown[0], list(KINDS)) or f"; there are: {', '.join(KINDS)}"
                raise UserError(f"what={text}: unknown kind '{unknown[0]}'{hint}")
    folder = (folders or [Path("outputs")])[0]
    if len(folders) > 1 or not folder.is_dir():
        raise UserError(f"clean takes one folder of runs, but {' '.join(map(str, folders)) or folder} is not one")
    return folder, apply, kinds


def summary(items: list[leftovers.Leftover]) -> str:
    return f"{format_count(len(items), 'item')}, {in_megabytes(sum(item.num_bytes for item in items))}"


def in_megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
