"""What came out when the commands of the slides were run: results.json, which `scripts/reproduce --tutorial` writes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dltrain.disk import write_text
from dltrain.drawing.tables import format_duration, format_number
from dltrain.tutorial.pages import CHAPTERS, FOLDER, Section, chapter_text, read_sections

FILE = FOLDER / "results.json"
INTRODUCTION = """\
# The tutorial, executed

Every slide of G. Shakhnarovich's *Deep Learning Tutorial, Part II* (2016), from 6 to 56, as a command of seconds to
minutes on two CPU cores, on embedded data. `dltrain tutorial` lists them, `dltrain tutorial 19` prints what a slide
says and its command, `dltrain tutorial 19 run=true` runs it.
"""
ORDER = ("SUPPORTED", "UNDECIDED", "NOT SUPPORTED")


class Outcome(NamedTuple):
    """Of one command. `seconds`: of the whole command, since its last start if it was stopped and resumed (`resumed`);
    `verdicts`: claim -> outcome; `numbers` and `lines`: those that the section names; `picture`: a file below
    docs/tutorial, or ""."""

    command: str
    seconds: float
    exit_code: int
    date: str
    versions: str
    hardware: str
    verdicts: dict[str, str]
    numbers: dict[str, float]
    lines: list[str]
    picture: str = ""
    resumed: bool = False

    def summary(self) -> str:
        """Of the verdicts, as "2 SUPPORTED, 1 UNDECIDED"; a dash if the command makes no claim."""
        counts = Counter(self.verdicts.values())
        return ", ".join(f"{counts[outcome]} {outcome}" for outcome in ORDER if outcome in counts) or "-"

    def setting(self) -> str:
        again = ", resumed" if self.resumed else ""
        return f"{format_duration(self.seconds)}{again}, {self.date}, {self.hardware}, {self.versions}"


def read_outcomes(file: Path = FILE) -> dict[int, Outcome]:
    """Slide number -> what came out."""
    slides = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {int(number): Outcome(**values) for number, values in slides.items()}


def write_outcomes(outcomes: Mapping[int, Outcome], file: Path = FILE) -> None:
    values: dict[str, Any] = {str(number): outcomes[number]._asdict() for number in sorted(outcomes)}
    write_text(file, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def outcome_of(section: Section, outcomes: Mapping[int, Outcome]) -> Outcome | None:
    """None if the command has not been run, or was another one then."""
    outcome = outcomes.get(section.number)
    return outcome if outcome and outcome.command == section.command else None


def to_markdown(outcome: Outcome | None) -> str:
    """The paragraph of a page that says what came out. Pictures are named as seen from docs/tutorial."""
    if outcome is None:
        return "**What came out** not yet run.\n"
    blocks = [f"**What came out** ({outcome.setting()})"]
    if outcome.numbers:
        rows = "\n".join(f"| {name} | {format_number(value)} |" for name, value in outcome.numbers.items())
        blocks.append(f"| number | value |\n| --- | --- |\n{rows}")
    if outcome.verdicts:
        rows = "\n".join(f"| {claim} | {verdict} |" for claim, verdict in outcome.verdicts.items())
        blocks.append(f"| claim | verdict |\n| --- | --- |\n{rows}")
    if outcome.lines:
        blocks.append("\n".join(["```text", *outcome.lines, "```"]))
    if outcome.picture:
        blocks.append(f"![what the command draws]({outcome.picture})")
    return "\n\n".join(blocks) + "\n"


def to_text(outcome: Outcome | None) -> list[str]:
    """The same for a terminal, as lines."""
    if outcome is None:
        return ["not yet run"]
    width = max(map(len, outcome.numbers), default=0)
    return [outcome.setting(), *(f"{name:<{width}}  {format_number(value)}" for name, value in outcome.numbers.items()),
            *(f"{verdict}  {claim}" for claim, verdict in outcome.verdicts.items()), *outcome.lines]


def with_results(chapter: str, outcomes: Mapping[int, Outcome]) -> str:
    """The text of a chapter with what came out behind each command."""
    text = chapter_text(chapter)
    for section in read_sections().values():
        if section.chapter == chapter:
            head, mark, tail = text.partition(f"## {section.number}. {section.title}\n")
            before, look, after = tail.partition("\n**Look at** ")
            text = f"{head}{mark}{before}\n{to_markdown(outcome_of(section, outcomes))}{look}{after}"
    return re.sub(r"<!--.*?-->\n+", "", text, flags=re.DOTALL)  # options


def index_page(outcomes: Mapping[int, Outcome]) -> str:
    """docs/tutorial/index.md: the chapters, and slide -> command -> seconds -> verdicts."""
    sections = list(read_sections().values())
    titles = [(chapter, chapter_text(chapter).partition("\n")[0].removeprefix("# ")) for chapter in CHAPTERS]
    listed = "\n".join(f"- [{title}](../../dltrain/tutorial/{chapter}.md)" for chapter, title in titles)
    rows = []
    for section in sections:
        outcome = outcome_of(section, outcomes)
        link = f"[{section.number}. {section.title}](../../dltrain/tutorial/{section.chapter}.md#{section.anchor})"
        time, verdicts = (format_duration(outcome.seconds), outcome.summary()) if outcome else ("not yet run", "")
        rows.append(f"| {link} | `{section.command}` | {time} | {verdicts} |")
    count = sum(outcome_of(section, outcomes) is not None for section in sections)
    return "\n".join([
        INTRODUCTION, listed, "",
        "`scripts/reproduce --tutorial` runs all commands and writes this table and every number of the pages.",
        f"{count} of {len(sections)} slides have been run. A [verdict](../experiments.md#verdicts) needs three",
        "seeds; a dash is a command that makes no claim.", "",
        "| slide | command | time | verdicts |", "| --- | --- | --- | --- |", *rows, ""])
