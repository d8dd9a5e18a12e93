"""Runs benchmarks by name, or all of them, and writes results/NAME.json: `python -m benchmarks framework augment`.
`python -m benchmarks table` writes the table of docs/benchmarks.md from these files."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import pkgutil
import warnings
from dataclasses import asdict
from pathlib import Path

import benchmarks
from benchmarks import table, timing
from benchmarks.timing import Row
from dltrain.benchmark.environment import describe_environment
from dltrain.memory import keep_freed_memory

NOT_BENCHMARKS = {"__main__", "table", "timing", "peers", "random_data"}
NAMES = tuple(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in NOT_BENCHMARKS)


def main() -> None:
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
    described = "\n".join(f"  {name:<17} {' '.join((module.__doc__ or '').split())}"
                          for name, module in modules.items())
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, epilog=described,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES, "table"], metavar="NAME", help="all by default")
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS, help="medians of so many")
    arguments = parser.parse_args()
    timing.ROUNDS = arguments.rounds
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    keep_freed_memory()  # as a run does
    for name in arguments.names or NAMES:
        if name == "table":
            table.write()
            continue
        print(name, flush=True)
        rows: list[Row] = modules[name].run()
        for line in map(table.describe, rows):
            print(f"  {line}", flush=True)
        file = table.RESULTS / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        content = {**describe_environment(), "rounds": timing.ROUNDS, "rows": [asdict(row) for row in rows]}
        content["command"] = f"python -m benchmarks {name}"
        write(file, content)


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
