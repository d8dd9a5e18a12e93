"""What an examination of the machine states: facts in sections, and findings with their remedies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Finding(NamedTuple):
    """Something to know, and what to do. `is_problem`: whether a run may fail by it."""

    text: str
    remedy: str
    is_problem: bool


class Report:
    """`sections`: facts by the name of their section."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, object]] = {}
        self.findings: list[Finding] = []

    def state(self, section: str, facts: Mapping[str, object]) -> None:
        self.sections.setdefault(section, {}).update(facts)

    def problem(self, text: str, remedy: str) -> None:
        self.findings.append(Finding(text, remedy, is_problem=True))

    def note(self, text: str, remedy: str) -> None:
        self.findings.append(Finding(text, remedy, is_problem=False))

    def run(self, checks: Iterable[Callable[[Report], None]]) -> None:
        """Runs each check. What it raises is a finding; the others run all the same."""
        for check in checks:
            try:
                check(self)
            except Exception as error:
                message = " ".join(str(error).split())[:200]
                self.problem(f"{check.__name__.replace('_', ' ')}: {type(error).__name__}: {message}",
                             "a bug in dltrain doctor; send this text")

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_problem]

    def as_json(self) -> dict[str, object]:
        return {**self.sections, "problems": [listed(finding) for finding in self.problems],
                "notes": [listed(finding) for finding in self.findings if not finding.is_problem]}

    def as_text(self) -> str:
        lines = []
        for section, facts in self.sections.items():
            width = max(map(len, facts), default=0)
            lines += [section, *(f"  {name:{width}}  {fact}" for name, fact in facts.items())]
        for title, is_problem in (("problems", True), ("notes", False)):
            findings = [finding for finding in self.findings if finding.is_problem == is_problem]
            if findings or is_problem:
                lines.append(title)
            for finding in findings:
                lines += [f"  {finding.text}", f"    -> {finding.remedy}"]
            if is_problem and not findings:
                lines.append("  none")
        return "\n".join(lines)


def listed(finding: Finding) -> dict[str, str]:
    return {"text": finding.text, "remedy": finding.remedy}


def in_gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def without_home(text: str) -> str:
    """A path without the user's name."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
