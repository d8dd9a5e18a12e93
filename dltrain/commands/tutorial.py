"""`dltrain tutorial [NUMBER]`: the slides of the tutorial as commands. Lists them, prints one, or runs it."""

from __future__ import annotations

import importlib
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator

from dltrain.drawing.tables import format_duration, format_table
from dltrain.errors import UserError
from dltrain.tutorial.pages import COMMAND, Section, chapter_text, read_sections, section_of, shorten, to_plain
from dltrain.tutorial.results import outcome_of, read_outcomes, to_text

HELP = """\
dltrain tutorial [NUMBER] [run=true]    the slides of G. Shakhnarovich's Deep Learning Tutorial, Part II (2016), each
                                        with a command of seconds to minutes, on embedded data

  dltrain tutorial               lists the slides with their commands and what these took
  dltrain tutorial 19            what slide 19 says: its formula as TeX, the command, what came out, what to look at
                                 and to try next, where the code is
  dltrain tutorial 19 run=true   runs the command here; other words are added to it, as seed=1

Numbers are those printed on the slides, 6 to 56."""
RUN = {"run=true": True, "run=false": False}
INDENT = "  "


def run(words: list[str]) -> int:
    if not words:
        print(list_slides())
        return 0
    section, others = section_of(words[0]), [word for word in words[1:] if not word.startswith("run=")]
    for word in words[1:]:
        if word.startswith("run=") and word not in RUN:
            raise UserError(f"{word}: must be run=true or run=false")
    if any(RUN.get(word) for word in words[1:]):
        return run_slide(section, others)
    if others:
        raise UserError(f"tutorial: '{others[0]}' is for a command that runs: dltrain tutorial {words[0]} run=true "
                        f"{shlex.join(others)}")
    print("\n".join(describe(section)))
    return 0


def list_slides() -> str:
    outcomes, blocks, chapter = read_outcomes(), list[str](), ""
    rows: list[list[str]] = []
    for section in read_sections().values():
        if section.chapter != chapter:
            blocks += [format_table((), rows, [0, 2])] if rows else []
            chapter, rows = section.chapter, []
            blocks.append("\n" * bool(blocks) + chapter_text(chapter).partition("\n")[0].removeprefix("# "))
        outcome = outcome_of(section, outcomes)
        time = format_duration(outcome.seconds) if outcome else "-"
        rows.append([str(section.number), section.title, time, shorten(section.command)])
    blocks += [format_table((), rows, [0, 2]), "",
               "dltrain tutorial NUMBER prints a slide and its whole command, with run=true behind it runs it"]
    return "\n".join(blocks)


def describe(section: Section) -> list[str]:
    """The page of a slide for a terminal."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    formulas = [line for formula in section.formulas for line in formula.splitlines() if line.strip(" ,") != r"\qquad"]
    lines = [f"{section.number}. {section.title}", "", *wrap(section.says, width), "",
             *(INDENT * 2 + line for line in formulas), "", *wrap(section.source, width), "",
             f"$ {section.command}", "", "What came out", *(INDENT + line for line in to_text(
                 outcome_of(section, read_outcomes()))), ""]
    for title, text in (("Look at", section.look_at), ("Try next", section.try_next), ("Code", section.code),
                        ("Left out", section.left_out)):
        if text:
            lines += [title, *(INDENT + line for line in wrap(text, width - len(INDENT)))]
    return lines


def wrap(text: str, width: int) -> Iterator[str]:
    """Lines of Markdown; a command in it has a line of its own, which can be copied."""
    for place, piece in enumerate(COMMAND.split(text)):
        if place % 2:
            yield f"$ {piece}"
        elif piece := to_plain(piece).strip(" ,.:;" if place else " "):
            yield from textwrap.wrap(piece, width, break_long_words=False, break_on_hyphens=False)


def run_slide(section: Section, others: list[str]) -> int:
    """Runs the command in this process, as if it had been typed."""
    words = [*section.words, *others]
    print(f"$ {shlex.join(['dltrain', *words])}", flush=True)
    sys.argv = [sys.argv[0], *words]
    return int(importlib.import_module("dltrain.cli").dispatch(words))
