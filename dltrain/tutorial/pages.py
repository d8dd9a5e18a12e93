"""Reads the chapters of the tutorial: a section for each slide, in a fixed form. Imports no torch.

A section is a heading `## 6. Title`, then blocks with an empty line between them:

    paragraphs             what the slide says, in our own words
    $$ ... $$              its formulas
    Formula: ...           their source
    ```sh ... ```          one command, without its results
    <!-- key: value -->    options, one a line, see OPTIONS; may be missing
    **Look at** ...        what to look at in its results
    **Try next** ...       another command, in backticks
    **Code** ...           files and functions
    **Left out** ...      what of the slide the command does not show; may be missing
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dltrain.errors import UserError

FOLDER = Path(__file__).parent
CHAPTERS = ("training_tricks", "very_deep_networks", "localization", "recurrent_networks")
OPTIONS = {  # key -> what its value is
    "smoke": "words that make the command end in a few seconds, for a test",
    "numbers": "names, or patterns of names, of numbers in result.json that are stated, with ; between them",
    "lines": "a regular expression: lines of the output that are stated",
    "picture": "a picture that the command draws: its file in the run folder, or show/FILE"}
MARKS = {"Look at": "look_at", "Try next": "try_next", "Code": "code", "Left out": "left_out"}
REQUIRED = ("says", "formulas", "source", "command", "look_at", "try_next", "code")

HEADING = re.compile(r"^## (\d+)\. (.+)$", re.MULTILINE)
MARK = re.compile(r"\*\*([A-Z][a-z ]+)\*\* ")
COMMAND = re.compile(r"`(dltrain (?:[^` ]*=[^`]*|[^` ]+ [^`]+))`")  # in a text: one that can be typed as it stands


class Section(NamedTuple):
    """One slide. `says`, `look_at` and the other texts are Markdown on one line; `formulas` are TeX; `chapter` is the
    name of the file without its ending."""

    number: int
    title: str
    chapter: str
    says: str
    formulas: tuple[str, ...]
    source: str
    command: str
    look_at: str
    try_next: str
    code: str
    left_out: str
    options: dict[str, str]

    @property
    def words(self) -> list[str]:
        """Of the command, without `dltrain`."""
        return shlex.split(self.command)[1:]

    @property
    def anchor(self) -> str:
        """Of the heading, as GitHub and MyST make it."""
        text = re.sub(r"[^\w\s-]", "", f"{self.number}. {self.title}".lower())
        return re.sub(r"\s", "-", text)


def chapter_text(chapter: str) -> str:
    return (FOLDER / f"{chapter}.md").read_text(encoding="utf-8")


@cache
def read_sections() -> dict[int, Section]:
    """Slide number -> section, in the order of the chapters. Raises ValueError for a section that lacks a block."""
    sections: dict[int, Section] = {}
    for chapter in CHAPTERS:
        _, *pieces = HEADING.split(chapter_text(chapter))
        for number, title, body in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
            if int(number) in sections:
                raise ValueError(f"{chapter}.md: slide {number} has two sections")
            sections[int(number)] = parse_section(int(number), title, chapter, body)
    return sections


def parse_section(number: int, title: str, chapter: str, body: str) -> Section:
    """`body`: what follows the heading. Raises ValueError for a block that is missing or unknown."""
    place = f"{chapter}.md: slide {number}"
    values: dict[str, str] = {}
    formulas: list[str] = []
    options: dict[str, str] = {}
    for block in re.split(r"\n{2,}", body.strip()):
        text = " ".join(block.split())
        if block.startswith("$$"):
            formulas.append(block.strip("$\n"))
        elif block.startswith("<!--"):
            options |= parse_options(block, place)
        elif block.startswith("```sh\n"):
            values["command"] = block.removeprefix("```sh\n").removesuffix("\n```")
        elif text.startswith("Formula: "):
            values["source"] = text.removeprefix("Formula: ")
        elif mark := MARK.match(text):
            if mark[1] not in MARKS:
                raise ValueError(f"{place}: unknown mark '{mark[1]}'; there are: {', '.join(MARKS)}")
            values[MARKS[mark[1]]] = text[mark.end() :]
        else:
            values["says"] = f"{values['says']} {text}" if "says" in values else text
    if missing := [key for key in REQUIRED if not (formulas if key == "formulas" else values.get(key))]:
        raise ValueError(f"{place}: has no {', '.join(missing)}")
    if not values["command"].startswith("dltrain ") or "\n" in values["command"]:
        raise ValueError(f"{place}: its command must be one line that begins with dltrain")
    return Section(number, title, chapter, values["says"], tuple(formulas), values["source"], values["command"],
                   values["look_at"], values["try_next"], values["code"], values.get("left_out", ""), options)


def parse_options(block: str, place: str) -> dict[str, str]:
    options = {}
    for line in block.removeprefix("<!--").removesuffix("-->").strip().splitlines():
        key, colon, value = line.strip().partition(": ")
        if not colon or key not in OPTIONS:
            raise ValueError(f"{place}: cannot read the option '{line}'; there are: {', '.join(OPTIONS)}")
        options[key] = value
    return options


def section_of(word: str) -> Section:
    """Raises UserError for what is no slide number."""
    sections = read_sections()
    if not word.isdecimal() or int(word) not in sections:
        raise UserError(f"tutorial: no slide '{word}'; it must be a number from {min(sections)} to {max(sections)}, as "
                        "printed on the slide")
    return sections[int(word)]


def commands_in(text: str) -> list[str]:
    """The commands of a Markdown text, in backticks."""
    return COMMAND.findall(text)


def to_plain(text: str) -> str:
    """Markdown on one line as a terminal shows it: links by their names, without marks."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    return re.sub(r"\*\*|`|\$|(?<!\w)\*|\*(?!\w)", "", text)


def shorten(command: str) -> str:
    """For a table on a terminal."""
    return command if len(command) <= 90 else command[:86].rstrip() + " ..."
