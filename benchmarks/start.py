"""Seconds of the commands that answer without torch, beside an empty Python process."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.timing import ROUNDS, seconds

COMMANDS = ["--help", "ls", "why task.optimizer.lr model=resnet56 data=cifar10", "model=rsnet56",
            "model=resnet20 task.optimizer.lrr=1"]


def run() -> dict[str, float]:
    processes = {f"dltrain {words}": ["-m", "dltrain.cli", *words.split()] for words in COMMANDS}
    processes["python -c pass"] = ["-c", "pass"]
    return {name: median_seconds(arguments) for name, arguments in processes.items()}


def median_seconds(arguments: list[str]) -> float:
    command = [sys.executable, *arguments]
    return round(statistics.median(seconds(lambda: subprocess.run(command, capture_output=True, check=False))
                                   for _ in range(ROUNDS)), 3)
