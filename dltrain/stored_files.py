"""Reads the files of a run folder. They may be damaged, cut short or written by others: what each must hold is checked
here, and a fault is one line that names the file, what is wrong and what to do. Imports no torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dltrain import own_modules
from dltrain.config import schema, yaml_text
from dltrain.config.free_keys import FREE
from dltrain.disk import write_text
from dltrain.dotted import flatten, select
from dltrain.errors import CheckpointError, UserError, printable, refuse_other_version, suggest

MOST_BYTES = 100_000_000  # of a file of text in a run folder
RESTORE = "restore it from a copy, or train again"
NODES = ("choices", "data", "model", "task", "trainer")  # of the config of a run that is no study
BUILT = ("data", "model", "task")  # of these, the nodes that name a class
FREE_OF_CHECKPOINT = FREE - {"class_names"}


def read_text(file: Path, advice: str = RESTORE, kind: type[UserError] = CheckpointError,
              most_bytes: int = MOST_BYTES) -> str:
    """Raises an error of this kind for what is no file of text."""
    try:
        if not file.is_file():
            fault = "a folder, not a file" if file.is_dir() else "not a file that can be read"
        elif file.stat().st_size > most_bytes:
            fault = f"{file.stat().st_size / 1e6:.0f} MB, more than such a file has"
        else:
            return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        fault = f"damaged (not text: byte {error.object[error.start]:#04x} at {error.start})"
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    raise kind(f"{file}: {fault}; {advice}")


def read_json(file: Path, advice: str = RESTORE) -> dict[str, Any]:
    """Raises CheckpointError for what is no JSON object."""
    try:
        content = json.loads(read_text(file, advice))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged (not JSON: {first_line(error)}); {advice}") from None
    if type(content) is not dict:
        raise CheckpointError(f"{file}: damaged (must be a JSON object); {advice}")
    return content


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


# config.yaml


def read_config(folder: Path, key: str = "run") -> dict[str, Any]:
    """config.yaml of a run folder, given as `key`; its values obey the rules that it states. Raises UserError if the
    folder is not a run's or the file is damaged, CheckpointError if it is of a version that cannot be read."""
    file = folder / "config.yaml"
    if not os.path.lexists(file):
        raise UserError(f"{key}={folder}: not a run folder (it has no config.yaml){name_others(folder)}")
    own_modules.run_folders.add(str(folder.resolve()))  # code in it came with the run
    text = read_text(file, RESTORE, UserError, yaml_text.MOST_BYTES)
    try:
        yaml_text.refuse_text(text, str(file))
    except ValueError as error:
        raise UserError(f"{error}; {RESTORE}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: damaged ({' '.join(str(error).split())[:160]}); {RESTORE}") from None
    try:
        config = yaml.load(text, Loader=yaml_text.FASTEST)
        lines = schema.parse(text, "")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # a date or a key that yaml cannot build
        raise UserError(f"{file}: damaged ({first_line(error)}); {RESTORE}") from None
    if type(config) is not dict:
        raise UserError(f"{file}: damaged (must be a mapping of keys); {RESTORE}")
    refuse_other_version(str(config.get("version", "0.1")), f"{key}={folder}")
    if fault := config_fault(config, {name: rule for name, line in lines.items()
                                      if (rule := schema.rule_of(line.comment))}):
        raise UserError(f"{file}: {fault}; {RESTORE}")
    return config


def name_others(folder: Path) -> str:
    """The runs beside this folder, or in outputs: the one of the most similar name, or the newest three."""
    runs = next((files for place in (folder.parent, Path("outputs")) if (files := [*place.glob("*/config.yaml")])), [])
    names = [str(file.parent) for file in sorted(runs, key=lambda file: os.lstat(file).st_mtime, reverse=True)]
    if not names:
        return "; dltrain ls runs lists the runs"
    more = f" and {len(names) - 3} more, see dltrain ls runs" if len(names) > 3 else ""
    return f"{suggest(str(folder), names)}; there are: {', '.join(names[:3])}{more}"


def config_fault(config: dict[str, Any], rules: Mapping[str, str]) -> str | None:
    """What is wrong with a config, or None. `rules`: by dotted key."""
    if node := next((key for key in NODES if type(config.get(key, {})) is not dict), None):
        return f"'{node}' must be a mapping of keys"
    for key, rule in rules.items():
        is_there, value = select(config, key)
        if is_there and (fault := schema.violation(rule, value)):
            return f"{key}={shorten(value)}: {fault}"
    if any(type(choice) is not str for choice in config.get("choices", {}).values()):
        return "the values of 'choices' must be names"
    names = config.get("class_names") or []
    if type(names) is not list or any(type(name) is not str for name in names) or len({*names}) < len(names):
        return "class_names must be a list of different names"
    return None


def refuse_incomplete_config(config: Mapping[str, Any], file: Path) -> None:
    """Raises UserError for the config of a study, and for one that lacks what every run has."""
    if "study" in config:
        raise UserError(f"{file.parent} is a study, which has no weights of its own; name one of the runs below it")
    missing = [key for key in NODES if key not in config] or [
        f"{key}._target_" for key in BUILT if type(config[key].get("_target_")) is not str]
    if missing:
        raise UserError(f"{file}: it has no key '{missing[0]}'; {RESTORE}")


def refuse_changed_files(folder: Path, own: Mapping[str, Any], checkpoint: Path) -> None:
    """`own`: what dltrain keeps in a checkpoint of the run; earlier versions keep neither config nor vocabularies.
    Raises UserError where config.yaml no longer has those values, CheckpointError for other vocabularies."""
    if own.get("config") is not None:
        refuse_changed_config(folder / "config.yaml", own["config"], checkpoint)
    vocabulary = folder / "vocabulary.json"
    if own.get("vocabularies") not in (None, digest(read_vocabularies(vocabulary))):
        state = "damaged or edited" if os.path.lexists(vocabulary) else "missing"
        raise CheckpointError(f"{vocabulary}: {state}; {checkpoint.name} was trained with other symbols; {RESTORE}")


def refuse_changed_config(file: Path, kept: Mapping[str, Any], checkpoint: Path) -> None:
    now, then = read_config(file.parent), yaml.load(schema.dump(kept, {}), Loader=yaml_text.FASTEST)
    changed = [f"{key} ({shorten(value)} there, {shorten(select(now, key)[1])} here)"
               for key, value in flatten(then).items()
               if key not in FREE_OF_CHECKPOINT and not key.startswith("choices.")
               and select(now, key) != (True, value)]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(f"{file}: damaged or edited, it differs from the config that {checkpoint.name} keeps: "
                        f"{', '.join(changed[:5])}{more}; write these values back; other values of data, augment and "
                        "trainer are words of dltrain eval")


def digest(vocabularies: Mapping[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(vocabularies, sort_keys=True).encode()).hexdigest()


def shorten(value: object) -> str:
    """On one line."""
    text = printable(schema.format_value(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


# JSON


def read_vocabularies(file: Path) -> dict[str, list[str]]:
    """Lists of different symbols, by name; empty where there is no file. Raises CheckpointError."""
    if not os.path.lexists(file):
        return {}
    content = read_json(file)
    for name, symbols in content.items():
        if type(symbols) is not list or any(type(symbol) is not str for symbol in symbols):
            raise CheckpointError(f"{file}: damaged ('{name}' must be a list of texts); {RESTORE}")
        if len({*symbols}) < len(symbols):
            raise CheckpointError(f"{file}: damaged ('{name}' has the same symbol twice); {RESTORE}")
    return content


def read_splits(file: Path) -> dict[str, Any]:
    """What a run keeps of its splits; empty where there is no file. Raises CheckpointError."""
    if not os.path.lexists(file):
        return {}
    content = read_json(file)
    for key, value in content.items():
        is_list_of_keys = type(value) is list and all(type(name) is str for name in value)
        is_split = type(value) is dict and type(value.get("samples")) is int and type(value.get("digest")) in (
            str, type(None))
        if not (is_list_of_keys if key == "sizes" else is_split):
            raise CheckpointError(f"{file}: damaged ('{key}'); {RESTORE}")
    return content


RESULT_TYPES = {"headline": (str,), "headline_mode": (str,), "best_epoch": (int,), "steps": (int,),
                "seconds": (int, float)}


def read_result(file: Path) -> dict[str, Any]:
    """The result of a finished run, or of a study, which has no headline; empty where there is none. Raises
    CheckpointError."""
    if not os.path.lexists(file):
        return {}
    advice = "delete it, and dltrain resume tests the run again"
    result = read_json(file, advice)
    faults = [key for key, types in RESULT_TYPES.items() if result.keys() & RESULT_TYPES.keys() - {"seconds", "steps"}
              and type(result.get(key)) not in types]
    headline = result.get("headline")
    if not faults and headline is not None and not is_number(result.get(headline)):
        faults = [headline]
    if faults or "version" not in result:
        raise CheckpointError(f"{file}: damaged (no valid {', '.join(faults) or 'version'}); {advice}")
    return result


def is_number(value: object) -> bool:
    return type(value) in (int, float)


# metrics.csv


INTEGER = re.compile(r"[0-9]{1,15}")


class Rows(NamedTuple):
    """What can be read of metrics.csv: the columns; of each row its values, None for a damaged one; what is wrong."""

    columns: list[str]
    rows: list[dict[str, str] | None]
    fault: str


def read_rows(file: Path, most: int | None = None) -> Rows:
    """The first `most` readings, or all. A row is intact if it has a value, or a blank, for each column, and its step
    and, if it has one, its epoch are integers."""
    try:
        size = file.stat().st_size
        if not file.is_file() or size > MOST_BYTES:
            return Rows([], [], f"of {size / 1e6:.0f} MB, more than such a file has" if size else "not a file")
        text = file.read_bytes().decode("utf-8", "replace")
        lines = list(islice(csv.reader(io.StringIO(text, newline="")), None if most is None else most + 1))
    except OSError as error:
        return Rows([], [], f"cannot be read ({error.strerror})")
    except csv.Error as error:
        return Rows([], [], f"damaged ({error})")
    columns = lines[0] if lines else []
    if columns[:2] != ["step", "epoch"]:
        return Rows([], [None] * len(lines[1:]), "damaged (line 1 must name the columns step, epoch, ...)")
    rows = [dict(zip(columns, line, strict=True)) if is_intact(line, len(columns)) else None for line in lines[1:]]
    bad = [number for number, row in enumerate(rows, start=2) if row is None]
    return Rows(columns, rows, f"damaged (line {bad[0]} is no reading)" if bad else "")


def is_intact(line: list[str], num_columns: int) -> bool:
    if len(line) != num_columns or not INTEGER.fullmatch(line[0]) or (line[1] and not INTEGER.fullmatch(line[1])):
        return False
    try:
        for text in line[2:]:
            if text:
                float(text)
    except ValueError:
        return False
    return True


def read_metrics(file: Path) -> list[dict[str, str]]:
    """Raises CheckpointError if a row is damaged."""
    content = read_rows(file)
    if content.fault:
        raise CheckpointError(f"{file}: {content.fault}; {RESTORE}; the weights of the run do not need it")
    return [row for row in content.rows if row is not None]


def repair_metrics(file: Path, expected: int) -> str:
    """Keeps the intact ones of the first `expected` rows, those that were written before the checkpoint, and the
    damaged file as metrics.damaged.csv. Returns a line for the user; "" if all of them are there."""
    content = read_rows(file, expected) if os.path.lexists(file) else Rows([], [], "missing")
    intact = [row for row in content.rows[:expected] if row is not None]
    if len(intact) == expected:
        return ""
    kept = ""
    if os.path.lexists(file):
        damaged = file.with_name("metrics.damaged.csv")
        os.replace(file, damaged)
        kept = f"; {damaged} is what it was"
    if content.columns:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, content.columns)
        writer.writeheader()
        writer.writerows(intact)
        write_text(file, text.getvalue())
    return (f"{file} is {content.fault or 'cut short'}: {expected - len(intact)} of the {expected} readings before the "
            f"checkpoint are lost, the weights are not{kept}")
