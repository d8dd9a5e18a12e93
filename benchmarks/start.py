"""Seconds of the commands that answer without torch, beside an empty Python process."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import Row, measure, seconds

COMMANDS = ["--help", "ls", "why task.optimizer.lr model=resnet56 data=cifar10", "model=rsnet56",
            "model=resnet20 task.optimizer.lrr=1"]


def run() -> list[Row]:
    return [measure(f"dltrain {words}", "s", {
        "dltrain": lambda words=words: seconds_of(["-m", "dltrain", *words.split()]),  # type: ignore[misc]
        "python -c pass": lambda: seconds_of(["-c", "pass"])}) for words in COMMANDS]


def seconds_of(arguments: list[str]) -> float:
    return seconds(lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=False))
