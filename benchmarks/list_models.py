"""Seconds of `dltrain ls models px=224`, at the first time and at the second, beside an empty Python process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from benchmarks.timing import Row, measure, seconds

COMMAND = ["-m", "dltrain", "ls", "models", "px=224"]


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as cache:
        first = seconds_of(COMMAND, cache)
        row = measure("dltrain ls models px=224, the second time", "s", {
            "dltrain": lambda: seconds_of(COMMAND, cache), "the first time": lambda: first,
            "python -c pass": lambda: seconds_of(["-c", "pass"], cache)}, "<= 0.5 s")
    return [row]


def seconds_of(arguments: list[str], cache: str) -> float:
    env = {**os.environ, "DLTRAIN_CACHE": cache}
    return seconds(lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=env))
