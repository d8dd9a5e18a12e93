"""`dltrain help`: the overview, and explanations of verbs, keys, choices and exit codes. It imports neither Hydra nor
torch, but for a key with choices, whose value is composed."""

from __future__ import annotations

import importlib
import textwrap
from types import ModuleType

from dltrain.config.groups import GROUPS
from dltrain.config.renamed import SHORT_FORMS
from dltrain.errors import EXIT_CODES, SIGNALS
from dltrain.verbs import VERBS

COLUMNS = 80
HELP = """\
dltrain help [WORD]    explains a verb, a key, a group of choices, a choice or the exit codes

  dltrain help predict                     a verb, as dltrain predict --help
  dltrain help task.optimizer.lr           a key: its rule, its default, which yaml files set it, an example
  dltrain help lr model=resnet56 data=cifar10    also its value there, as dltrain why
  dltrain help task.optimizer              the keys below one
  dltrain help data                        a group of choices
  dltrain help data=cifar10                one choice: what it sets
  dltrain help codes                       the exit codes
  --config-dir FOLDER                      your own configs too"""
OVERVIEW = """\
dltrain: train deep learning's classic systems from one command
  dltrain [VERB] [choices] [key=value ...]    every choice has a default

{verbs}

Examples
  dltrain                                real handwritten digits, about a minute
  dltrain model=resnet56 data=cifar10    the names choose the paper's recipe
  dltrain model=plain20 lr=0.05 trainer=cpu
  dltrain name=first seed=3              outputs/first; again: continues it
  dltrain -m model=plain20,resnet20 seed=0,1    a sweep: four runs, one table
  dltrain why task.optimizer.lr model=resnet56 data=cifar10

{choices}
{short_forms}
Your own configs: --config-dir FOLDER    every key and value: --cfg job
Completion: eval "$(dltrain -sc install=bash)"    Hydra's flags: --hydra-help
Look at the runs: tensorboard --logdir outputs    Exit codes: dltrain help codes"""


def run(words: list[str]) -> int:
    print(answer(words))
    return 0


def answer(words: list[str]) -> str:
    """Raises UserError for a word that nothing has."""
    if not words:
        return overview()
    if words[0] in VERBS:
        return str(module_of(words[0]).HELP)
    if words == ["codes"]:
        return exit_codes()
    from dltrain.commands import help_key

    text = help_key.explain(words)
    if any("=" in word and not word.startswith("-") for word in words[1:]):  # choices, or values
        text += "\n\n" + module_of("why").answer(words)
    return text


def module_of(verb: str) -> ModuleType:
    return importlib.import_module(f"dltrain.commands.{VERBS[verb].file}")


def overview() -> str:
    lines, group = [], ""
    for name, verb in VERBS.items():
        lines.append(f"{'' if verb.group == group else verb.group:<11}{name:<9}{verb.purpose}")
        group = verb.group
    choices = ", ".join(f"{group}=" for group in GROUPS)
    short = ", ".join(f"{short}= is {key}=" for short, key in SHORT_FORMS.items())
    return OVERVIEW.format(verbs="\n".join(lines), choices=wrap(f"Choices: {choices}; dltrain ls lists them"),
                           short_forms=wrap(f"Short: {short}, resume=FOLDER is resume run=FOLDER"))


def exit_codes() -> str:
    lines = ["exit codes of all verbs", ""]
    for code, meaning in EXIT_CODES.items():
        head = "  128 + n  " if code == SIGNALS else f"  {code:<9}"
        lines.append(textwrap.fill(meaning, COLUMNS, initial_indent=head, subsequent_indent=" " * len(head)))
    return "\n".join(lines)


def wrap(text: str) -> str:
    return textwrap.fill(text, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
