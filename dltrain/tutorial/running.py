"""Runs the commands of the slides, one after the other, and collects what came out."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dltrain import __version__
from dltrain.disk import write_text
from dltrain.drawing.tables import format_count, format_duration
from dltrain.errors import CHECK_FAILED, SUCCESS, UNDECIDED_CLAIM
from dltrain.machine import processor, usable_cores
from dltrain.studies.claims import PREFIX
from dltrain.tutorial.pages import Section
from dltrain.tutorial.results import Outcome
from dltrain.verbs import VERBS

ENDED = (SUCCESS, CHECK_FAILED, UNDECIDED_CLAIM)  # exit codes of a command that has done its work
PICTURE_PX = 1200  # width of a stored picture, at most


def first_with(sections: Sequence[Section]) -> dict[str, int]:
    """Command -> the first slide that has it; equal commands run once."""
    numbers: dict[str, int] = {}
    for section in sections:
        numbers.setdefault(section.command, section.number)
    return numbers


def placed(words: Sequence[str], name: str, folder: Path) -> tuple[list[str], Path]:
    """The words of a command that writes below `folder`, and its run folder there."""
    verb = words[0] if words[0] in VERBS else "train"
    if verb == "train":
        own = [word.removeprefix("name=") for word in words if word.startswith("name=")]
        return [*words, *([] if own else [f"name={name}"]), f"output_dir={folder}"], folder / (own or [name])[0]
    return [*words, *([f"output_dir={folder}"] if verb == "show" else [])], folder


def run_command(section: Section, name: str, folder: Path) -> dict[str, Any]:
    """Runs the command of a slide, unless it has ended before; what another command of the slide has left is deleted.
    Returns its record: command, seconds, exit_code, date, resumed, versions, hardware. Prints what the command prints,
    and keeps it as NAME.txt."""
    file, output = folder / f"{name}.json", folder / f"{name}.txt"
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    words, run_folder = placed(section.words, name, folder)
    if before.get("command") == section.command and before["exit_code"] in ENDED and run_folder.exists():
        return before
    folder.mkdir(parents=True, exist_ok=True)
    if run_folder != folder and run_folder.exists() and before.get("command") != section.command:
        shutil.rmtree(run_folder)
    write_text(file, json.dumps({"command": section.command, "exit_code": None}))  # it may be killed
    record = {"command": section.command, "resumed": run_folder != folder and run_folder.exists(),
              "date": date.today().isoformat(),
              "versions": f"dltrain {__version__}, torch {version('torch')}",
              "hardware": describe_hardware()}
    print(f"\n{section.number}. {section.title}\n$ {section.command}", flush=True)
    started, lines = time.monotonic(), []
    with subprocess.Popen([sys.executable, "-m", "dltrain", *words], stdout=subprocess.PIPE, text=True,
                          encoding="utf-8") as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    record |= {"seconds": round(time.monotonic() - started, 1), "exit_code": process.returncode}
    write_text(output, "".join(lines))
    write_text(file, json.dumps(record, indent=1) + "\n")
    return record


def describe_hardware() -> str:
    threads = int(os.environ.get("OMP_NUM_THREADS") or usable_cores())
    return f"{format_count(threads, 'thread')} on {processor()}"


def collect(section: Section, record: Mapping[str, Any], name: str, folder: Path, pictures: Path | None) -> Outcome:
    """What the section states of a command that has ended. `pictures`: where a copy of its picture is put; None:
    nowhere."""
    _, run_folder = placed(section.words, name, folder)
    file = run_folder / "result.json"
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    verdicts = {key.removeprefix(PREFIX): value for key, value in result.items() if key.startswith(PREFIX)}
    patterns = [text.strip() for text in section.options.get("numbers", "").split(";") if text.strip()]
    numbers = {key: float(f"{value:.6g}") for pattern in patterns for key, value in result.items()
               if fnmatch.fnmatchcase(key, pattern) and isinstance(value, int | float)}
    lines: list[str] = []
    if pattern := section.options.get("lines"):
        printed = (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        lines = [line.rstrip() for line in printed if re.search(pattern, line)]
    picture = section.options.get("picture", "")
    source = folder / picture if picture.startswith("show/") else run_folder / picture
    stored = ""
    if picture and pictures and source.is_file():
        stored = f"pictures/{name}.png"
        copy_picture(source, pictures / f"{name}.png")
    return Outcome(record["command"], record["seconds"], record["exit_code"], record["date"], record["versions"],
                   record["hardware"], verdicts, numbers, lines, stored, record["resumed"])


def copy_picture(source: Path, target: Path) -> None:
    """At most PICTURE_PX wide."""
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        if image.width <= PICTURE_PX:
            shutil.copyfile(source, target)
            return
        size = PICTURE_PX, round(image.height * PICTURE_PX / image.width)
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(target, optimize=True)


def run_sections(sections: Sequence[Section], chosen: Sequence[Section], folder: Path, pictures: Path | None
                 ) -> dict[int, Outcome]:
    """Runs the commands of the `chosen` sections. Returns what came out of those that have ended, by slide; of every
    section in `sections` with one of these commands."""
    numbers, records = first_with(sections), dict[str, dict[str, Any]]()
    for section in chosen:
        if section.command not in records:
            records[section.command] = run_command(section, name_of(numbers[section.command]), folder)
    outcomes = {}
    for section in sections:
        record = records.get(section.command)
        if record and record["exit_code"] in ENDED:
            outcomes[section.number] = collect(section, record, name_of(numbers[section.command]), folder, pictures)
        elif record:
            print(f"slide {section.number}: exit code {record['exit_code']} after "
                  f"{format_duration(record['seconds'])}: {section.command}")
    return outcomes


def name_of(number: int) -> str:
    return f"slide_{number:02d}"
