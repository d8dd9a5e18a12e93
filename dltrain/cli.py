"""`dltrain VERB words`: finds the verb, turns a user's mistake into one line and an exit code.

Helping, listing, explaining, completing and refusing end here without torch; what trains is imported only when it is
about to. Everything after the verb is Hydra's own syntax.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from dltrain.errors import InterruptedRun, UserError, nearest

VERBS = ("train", "resume", "eval", "predict", "ls", "why")


def main() -> int:
    """The console script. Returns the exit code."""
    try:
        return command(sys.argv[1:])
    except UserError as error:
        print(f"dltrain: error: {error}", file=sys.stderr)
        return error.exit_code
    except InterruptedRun as stop:
        print(f"dltrain: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("dltrain: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dltrain ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def command(argv: list[str]) -> int:
    if "COMP_LINE" in os.environ:
        return complete(argv)
    verb, words = split_verb(argv)
    if any(word in ("--help", "-h") for word in words):
        return show(lambda: __import__("dltrain.listing", fromlist=["_"]).help_text())
    if verb == "ls":
        return show(lambda: __import__("dltrain.listing", fromlist=["_"]).ls(words))
    if verb == "why":
        return explain(words)
    if verb == "train":
        return train(words)
    from dltrain import verbs

    return getattr(verbs, {"resume": "resume", "eval": "evaluate", "predict": "predict"}[verb])(words)


def split_verb(argv: list[str]) -> tuple[str, list[str]]:
    """`train` is the verb when none is given. A bare first word that is no verb is refused."""
    if not argv or argv[0].startswith("-") or "=" in argv[0] or argv[0][0] in "+~":
        return "train", argv
    if argv[0] in VERBS:
        return argv[0], argv[1:]
    raise UserError(f"unknown command '{argv[0]}'{nearest(argv[0], list(VERBS)) or '; there are: ' + ', '.join(VERBS)}")
