"""What a person types, before Hydra reads it: short forms of keys, text that Hydra's grammar cannot read, and names of
choices without their group."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from dltrain.config import groups
from dltrain.config.renamed import SHORT_FORMS
from dltrain.errors import UserError, is_unicode, suggest

GROUPS_TO_GUESS = ("model", "data", "experiment", "augment", "trainer", "recipe")
PLAIN_TEXT = re.compile(r"[^\s'\"\[\]{},$\\]+")  # a value that means the same with quotes around it
HARD_TO_READ = re.compile(r"[^\x00-\x7f]|[~#()=]")  # what Hydra's grammar takes for something else, or not at all
CALL = re.compile(r"\w+\(.*\)")  # of a sweep, as range(3)


def full_key(key: str) -> str:
    return SHORT_FORMS.get(key, key)


def expand(words: Iterable[str]) -> list[str]:
    """The words with full keys, and with quotes around text that Hydra's grammar does not read, as ~/x, a(1) or é.
    Raises UserError for a word that is no Unicode, which config.yaml cannot hold."""
    expanded = []
    for word in words:
        if not is_unicode(word):
            raise UserError(f"{word!r}: is no Unicode; rename the file or folder, or make a link to it")
        key, equals, value = word.partition("=")
        if equals and HARD_TO_READ.search(value) and PLAIN_TEXT.fullmatch(value) and not CALL.fullmatch(value):
            value = f"'{value}'"
        if word != "experiment=null":  # the default, but not as an override in Hydra's eyes
            expanded.append("recipe=none" if word == "recipe=null" else f"{full_key(key)}{equals}{value}")
    return expanded


def take_config_folders(words: Iterable[str]) -> tuple[list[str], list[Path]]:
    """The words without `--config-dir FOLDER` and `hydra.searchpath=[FOLDER]`, and these folders of the user's configs.
    Raises UserError if one of them is no folder."""
    others, folders = [], []
    remaining = iter(words)
    for word in remaining:
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(value or next(remaining, ""))
        elif flag == "hydra.searchpath":
            folders += [entry.strip(" '\"").removeprefix("file://") for entry in value.strip("[]").split(",")]
        else:
            others.append(word)
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir: no folder '{folder}'")
    return others, [Path(folder) for folder in folders]


def refuse_bare_words(words: Iterable[str], *folders: Path) -> None:
    """Raises UserError for words without `=`, with the choices that they name where there are such."""
    words = list(words)
    bare = [word for word in words if "=" not in word and not word.startswith("~")]
    if not bare:
        return
    named = name_choices(bare, folders)
    if len(named) == len(bare):
        others = [word for word in words if word not in bare]
        raise UserError(f"cannot read '{' '.join(bare)}'; did you mean 'dltrain {' '.join([*named, *others])}'?")
    unknown = next(word for word in bare if not name_choices([word], folders))
    raise UserError(f"cannot read '{unknown}': a word is key=value, as in model=resnet56 or task.optimizer.lr=0.05 "
                    "(quote blanks and commas: 'key=\"a b\"')")


def name_choices(names: Iterable[str], folders: Iterable[Path] = ()) -> list[str]:
    """["resnet20", "cifar10"] to ["model=resnet20", "data=cifar10"]: each group once, without names of no choice."""
    chosen: dict[str, str] = {}
    for name in names:
        group = next((group for group in GROUPS_TO_GUESS
                      if group not in chosen and groups.path_of(group, name, *folders)), None)
        if group is not None:
            chosen[group] = name
    return [f"{group}={name}" for group, name in chosen.items()]


def suggest_word(word: str, verbs: list[str]) -> str:
    """`; did you mean 'train'?` or `; did you mean 'model=resnet20'?`, whichever is closest; "" if nothing is close."""
    meant = {name: f"{group}={name}" for group in reversed(GROUPS_TO_GUESS) for name in groups.names(group)}
    return suggest(word, [*verbs, *meant], {**meant, **{verb: verb for verb in verbs}})
