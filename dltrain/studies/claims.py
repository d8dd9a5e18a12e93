"""Claims about numbers, and what runs with several seeds say of them. Printed in one form by every study.

A claim is "metric: run > run", with > < >= or <=. The right side may be a share of a run, or a number, with a margin:

    test/accuracy: residual > plain
    test/accuracy: linear >= all - 0.01
    seconds_per_epoch: stochastic depth < 0.85 * constant depth
    val/accuracy: resnet20 > 0.9

Its statistic is the mean, over the seeds, of the difference of both sides; runs with the same seed are a pair. With
Student's interval of 95 % of this mean, the claim is SUPPORTED if the whole interval agrees with it, NOT SUPPORTED if
none of it does, and else, with fewer than three seeds, or where both sides are equal with all seeds, UNDECIDED. So
without any difference a claim is SUPPORTED in 2.5 % of the cases; one that is true by as many standard deviations of a
single difference as `repeats.detectable` says is SUPPORTED in 80 %: 3.3 with three seeds, 1.7 with five, 1.0 with ten.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from dltrain.drawing.tables import format_number
from dltrain.errors import CHECK_FAILED, SUCCESS, UNDECIDED_CLAIM, UserError, suggest
from dltrain.repeats import Interval, detectable, interval_of, seeds_needed

NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
CLAIM = re.compile(rf"(.+?): (.+?) (>=|<=|>|<) (?:({NUMBER}) \* )?(.+?)(?: ([+-]) ({NUMBER}))?")
FEWEST_SEEDS = 3
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "SUPPORTED", "NOT SUPPORTED", "UNDECIDED"
PREFIX = "claim, "  # of the keys in result.json
EXACT = ("parameters", "steps")  # metrics that do not depend on the seed


class Claim(NamedTuple):
    """"metric: left sign factor * right + margin". `right`: None where the right side is the number `margin`."""

    text: str
    metric: str
    left: str
    sign: str
    factor: float
    right: str | None
    margin: float

    def excess(self, left: float, right: float) -> float:
        """By how much the claim is true of one pair; negative where it is not."""
        return (left - self.factor * right - self.margin) * (1 if self.sign[0] == ">" else -1)


class Verdict(NamedTuple):
    """A claim in words, what the numbers say of it, and these numbers."""

    claim: str
    outcome: str
    evidence: str


def parse_claims(texts: Sequence[str] | None, names: Sequence[str], metrics: Collection[str]) -> list[Claim]:
    """Claims about these runs and metrics. Raises UserError."""
    claims = [parse_claim(text, names) for text in texts or []]
    for claim in claims:
        if claim.metric not in metrics:
            hint = suggest(claim.metric, list(metrics)) or f"; there are: {', '.join(metrics)}"
            raise UserError(f"study.claims: '{claim.text}': there is no '{claim.metric}'{hint}")
    return claims


def parse_claim(text: str, names: Sequence[str]) -> Claim:
    """`names`: of the runs that a claim may compare. Raises UserError."""
    match = CLAIM.fullmatch(text)
    if match is None:
        raise UserError(f"study.claims: '{text}': must be 'metric: run > run', with >, <, >= or <=, as 'metric: run >= "
                        "run - 0.01', 'metric: run < 0.9 * run' or 'metric: run > 0.5'")
    metric, left, sign, factor, right, plus, margin = match.groups()
    number = float(margin or 0) * (-1 if plus == "-" else 1)
    is_number = re.fullmatch(f"-?{NUMBER}", right) is not None and right not in names
    for name in (left, *([] if is_number else [right])):
        if name not in names:
            hint = suggest(name, list(names)) or f"; there are: {', '.join(names)}"
            raise UserError(f"study.claims: '{text}': no run '{name}'{hint}")
    if is_number:
        return Claim(text, metric, left, sign, 1.0, None, float(factor or 1) * float(right) + number)
    return Claim(text, metric, left, sign, float(factor or 1), right, number)


def judge(claim: Claim, values: Mapping[str, Sequence[float]], is_exact: bool | None = None) -> Verdict:
    """`is_exact`: whether the metric is the same for all seeds; None: if it is one of EXACT. Raises UserError for a run
    without the metric, or where it has it for other seeds alone."""
    sides = [name for name in (claim.left, claim.right) if name is not None]
    for name in sides:
        if not values[name]:
            raise UserError(f"study.claims: '{claim.text}': the run '{name}' has no {claim.metric}")
    left, right = values[claim.left], values[claim.right] if claim.right else [0.0] * len(values[claim.left])
    if len(left) != len(right):
        raise UserError(f"study.claims: '{claim.text}': {claim.metric} is missing for some seeds")
    is_exact = claim.metric in EXACT if is_exact is None else is_exact
    means = f" {claim.sign} ".join(f"{format_number(mean(values[name]))} of {name}" for name in sides)
    excesses = [claim.excess(*pair) for pair in zip(left, right, strict=True)]
    return judge_excesses(claim.text, excesses, claim.sign in "><", is_exact, means)


def judge_excesses(text: str, excesses: Sequence[float], is_strict: bool = True, is_exact: bool = False,
                   sides: str = "") -> Verdict:
    """`excesses`: of each seed, by how much the claim is true. `is_strict`: an excess of 0 is not enough. `is_exact`:
    the number does not depend on chance, as that of parameters. `sides`: what the evidence begins with."""
    average, begins = mean(excesses), f"{sides}; " if sides else ""
    if not all(map(math.isfinite, excesses)):
        return Verdict(text, UNDECIDED, f"{begins}not finite with some seeds")
    if is_exact:
        outcome = decide(Interval(average, average), is_strict)
        return Verdict(text, outcome, f"{begins}by {format_signed(average)}, whatever the seed")
    if len(excesses) < FEWEST_SEEDS:
        return Verdict(text, UNDECIDED, f"{begins}by {format_signed(average)} with {len(excesses)} "
                       f"seed{'s' * (len(excesses) > 1)}; a verdict needs {FEWEST_SEEDS}")
    if not any(excesses):
        return Verdict(text, UNDECIDED, f"{begins}equal with each of {len(excesses)} seeds")
    interval, deviation = interval_of(excesses), stdev(excesses)
    outcome = decide(interval, is_strict)
    evidence = (f"{begins}by {format_signed(average)} ({format_signed(interval.low)} to "
                f"{format_signed(interval.high)}; {len(excesses)} seeds)")
    if outcome == UNDECIDED:
        needed = seeds_needed(abs(average) / deviation)
        evidence += f"; {format_signed(detectable(len(excesses)) * deviation)} would be seen in 80 % of such trials"
        if needed:
            evidence += f", this difference with about {needed} seeds"
    return Verdict(text, outcome, evidence)


def decide(interval: Interval, is_strict: bool) -> str:
    """`interval`: of the mean excess."""
    if interval.low > 0 or (interval.low == 0 and not is_strict):
        return SUPPORTED
    if interval.high < 0 or (interval.high == 0 and is_strict):
        return NOT_SUPPORTED
    return UNDECIDED


def format_signed(value: float) -> str:
    return f"{'+' * (value >= 0)}{format_number(value)}"


def print_verdicts(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Prints a line per claim; returns their outcomes for result.json."""
    print()
    width = max((len(verdict.outcome) for verdict in verdicts), default=0)
    for verdict in verdicts:
        print(f"  {verdict.outcome:<{width}}  {verdict.claim}: {verdict.evidence}")
    return {f"{PREFIX}{verdict.claim}": verdict.outcome for verdict in verdicts}


def code_of_claims(result: Mapping[str, Any]) -> int:
    """The exit code of a run or experiment with this result.json: that of its worst verdict."""
    outcomes = {value for key, value in result.items() if key.startswith(PREFIX)}
    if NOT_SUPPORTED in outcomes:
        return CHECK_FAILED
    return UNDECIDED_CLAIM if UNDECIDED in outcomes else SUCCESS
