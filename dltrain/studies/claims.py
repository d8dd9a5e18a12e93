"""Claims about numbers, and whether they held: printed in one form by every study."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from dltrain.drawing.tables import format_number
from dltrain.errors import UserError, suggest

CLAIM = re.compile(r"(\S+): (.+?) (>=|<=|>|<) (.+?)(?: - (\d+(?:\.\d+)?))?")
SIGNS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


class Claim(NamedTuple):
    """"metric: left sign right - margin", as "test/accuracy: deep > shallow" or "test/accuracy: a >= b - 0.01"."""

    text: str
    metric: str
    left: str
    sign: str
    right: str
    margin: float

    def holds(self, left: float, right: float) -> bool:
        return bool(SIGNS[self.sign](left, right - self.margin))

    def explain(self, left: float, right: float) -> str:
        margin = f" - {self.margin:g}" if self.margin else ""
        return (f"{self.metric} {format_number(left)} of {self.left} {self.sign} {format_number(right)} of "
                f"{self.right}{margin}")


class Verdict(NamedTuple):
    """A claim in words, whether it held, and the numbers that show it."""

    claim: str
    held: bool
    evidence: str


def parse_claim(text: str, names: Sequence[str]) -> Claim:
    """`names`: of the runs that a claim may compare. Raises UserError."""
    match = CLAIM.fullmatch(text)
    if match is None:
        raise UserError(f"study.claims: '{text}': must be 'metric: run > run', with >, <, >= or <=, or 'metric: run >= "
                        "run - 0.01'")
    metric, left, sign, right, margin = match.groups()
    for name in (left, right):
        if name not in names:
            hint = suggest(name, list(names)) or f"; there are: {', '.join(names)}"
            raise UserError(f"study.claims: '{text}': no run '{name}'{hint}")
    return Claim(text, metric, left, sign, right, float(margin or 0))


def print_verdicts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Prints a line per claim; returns them for result.json."""
    print()
    for verdict in verdicts:
        print(f"  {'held' if verdict.held else 'did not hold'}: {verdict.claim}: {verdict.evidence}")
    return {f"claim, {verdict.claim}": verdict.held for verdict in verdicts}
