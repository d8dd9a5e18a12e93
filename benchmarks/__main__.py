"""Runs benchmarks by name, or all of them: `python -m benchmarks step augment`."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import platform
import time

import torch

from benchmarks.timing import ROUNDS

NAMES = ("step", "augment", "transforms", "recurrent", "sampling", "detection", "start", "first_step")


def main() -> None:
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
    described = "\n".join(f"  {name:<11} {' '.join((module.__doc__ or '').split())}"
                          for name, module in modules.items())
    parser = argparse.ArgumentParser(prog="python -m benchmarks", epilog=described,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help="all by default")
    chosen = parser.parse_args().names or NAMES
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{time.strftime('%Y-%m-%d')}; medians of {ROUNDS}, in turn")
    for name in chosen:
        print(name, json.dumps(modules[name].run(), indent=1), flush=True)


if __name__ == "__main__":
    main()
