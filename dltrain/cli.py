"""`dltrain VERB words`: finds the verb and turns a user's mistake into one line and an exit code.

Each verb is a file below commands/ with its own help. Torch is imported only where a command needs it: not for help,
lists, explanations, completion or errors in the command. train, show, bench and why take Hydra's syntax; the other
verbs take key=value words.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from types import ModuleType

from dltrain import __version__
from dltrain.disk import naming_full_disk
from dltrain.errors import InterruptedRun, MachineError, UserError
from dltrain.late_imports import collect_after_imports, import_plots_late
from dltrain.own_modules import guard_imports
from dltrain.ranks import forget_other_starters
from dltrain.signals import caught

# verb -> file below commands/
COMMANDS = {"train": "train", "resume": "resume", "extend": "extend", "fork": "fork", "eval": "evaluate",
            "predict": "predict", "show": "show", "check": "check", "bench": "bench", "prove": "prove",
            "verify": "verify", "replay": "replay",
            "ls": "ls", "why": "why", "new": "new", "doctor": "doctor", "clean": "clean",
            "export": "export"}
FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p")


def main() -> int:
    """Runs the command. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a symbol that the terminal's encoding does not have
    forget_other_starters()
    guard_imports()  # a user's own models and data are modules in the current folder
    import_plots_late()
    collect_after_imports()
    try:
        with caught():
            return dispatch(sys.argv[1:])
    except UserError as error:
        print(f"dltrain: error: {error}", file=sys.stderr)
        return error.exit_code
    except InterruptedRun as stop:
        from dltrain import slurm

        print(f"dltrain: {stop}{slurm.requeue_after(stop.exit_code - 128, stop.requeue)}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("dltrain: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dltrain ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from dltrain import installation, out_of_memory, own_code

        if shortage := out_of_memory.shortage_of(error):
            print(f"dltrain: error: {shortage.message()}", file=sys.stderr)
            return MachineError.exit_code
        if message := installation.describe_mismatch(error):
            print(f"dltrain: error: {message}", file=sys.stderr)
            return MachineError.exit_code
        if (frame := own_code.frame_of(error)) is None:
            raise  # a bug in dltrain, with its traceback
        print(f"dltrain: error: {own_code.message_of(error)}\n{own_code.describe(frame)}", file=sys.stderr)
        return own_code.EXIT_CODE


def dispatch(argv: list[str]) -> int:
    if "COMP_LINE" in os.environ:
        from dltrain.commands import completion

        return completion.complete(list(COMMANDS))
    if argv == ["--version"]:
        print(f"dltrain {__version__}")
        return 0
    if argv[:1] == ["help"]:
        return explain(argv[1:])
    verb, words = split_verb(argv)
    if {"--help", "-h"} & {*words}:
        return explain([verb] if argv[:1] == [verb] else [])
    with naming_full_disk():
        return int(command(verb).run(words))


def explain(words: list[str]) -> int:
    """`dltrain help`, `help VERB` and `help KEY [choices]`."""
    from dltrain.commands import help as texts

    if words and words[0] not in COMMANDS:
        return int(command("why").run(words))
    print(command(words[0]).HELP if words else texts.overview())
    return 0


def split_verb(argv: list[str]) -> tuple[str, list[str]]:
    """The verb, `train` if none is given, and the words after it. Raises UserError for an unknown first word."""
    if argv and argv[0].startswith("resume="):
        return "resume", [argv[0].replace("resume=", "run=", 1), *argv[1:]]
    flags = 0  # --config-dir conf before the verb
    while flags < len(argv) and argv[flags].startswith("-"):
        flags += 2 if argv[flags] in FLAGS_WITH_VALUE else 1
    if flags and argv[flags : flags + 1] and argv[flags] in COMMANDS:
        return argv[flags], [*argv[:flags], *argv[flags + 1 :]]
    if not argv or argv[0][:1] in ("-", "+", "~") or "=" in argv[0]:
        return "train", argv
    if argv[0] in COMMANDS:
        return argv[0], argv[1:]
    from dltrain.config import words

    if words.name_choices(argv[:1]):
        words.refuse_bare_words(word for word in argv if not word.startswith("-"))
    hint = words.suggest_word(argv[0], list(COMMANDS)) or f"; there are: {', '.join(COMMANDS)}"
    raise UserError(f"unknown command '{argv[0]}'{hint}")


def command(verb: str) -> ModuleType:
    return importlib.import_module(f"dltrain.commands.{COMMANDS[verb]}")


if __name__ == "__main__":
    sys.exit(main())
