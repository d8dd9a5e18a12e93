"""The words of a sweep that have its jobs chosen from the results so far: search=tpe trials=20, search=hyperband."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dltrain.disk import write_text
from dltrain.errors import CheckpointError, UserError
from dltrain.stored_files import read_json

TAKES = {"tpe": ("trials", "search_seed", "prune"), "random": ("trials", "search_seed"),
         "halving": ("trials", "search_seed", "factor", "min_epochs"),
         "hyperband": ("search_seed", "factor", "min_epochs")}  # the words of each method
WORDS = ("search", "trials", "prune", "search_seed", "factor", "min_epochs")
SMALLEST = {"trials": 1, "search_seed": 0, "factor": 2, "min_epochs": 1}
FILE = "search.json"  # in the folder of the sweep
DEFAULT_TRIALS = 20


class Search(NamedTuple):
    """`trials`: the jobs that are proposed; None: as many as the method takes. `prune`: of tpe. `factor`, `min_epochs`:
    of halving and hyperband, 1 job of `factor` continues after each rung, the first of which is `min_epochs` long."""

    method: str
    trials: int | None = None
    prune: bool = True
    seed: int = 0
    factor: int = 3
    min_epochs: int = 1

    def words(self) -> list[str]:
        given = {"trials": self.trials, "prune": str(self.prune).lower(), "search_seed": self.seed,
                 "factor": self.factor, "min_epochs": self.min_epochs}
        return [f"search={self.method}", *(f"{key}={value}" for key, value in given.items()
                                           if key in TAKES[self.method] and value is not None)]


def split_words(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of WORDS, and the others."""
    words = [*words]
    own = [word for word in words if word.partition("=")[0] in WORDS]
    return own, [word for word in words if word not in own]


def search_of(words: Iterable[str]) -> Search | None:
    """From those of WORDS that a command has; None if it has none. Raises UserError."""
    given = dict(word.partition("=")[::2] for word in words)
    if not given:
        return None
    method = given.pop("search", "")
    if method not in TAKES:
        word = f"search={method}" if method else f"{next(iter(given))}="
        raise UserError(f"{word}: search= must be one of {', '.join(TAKES)}")
    if stray := [key for key in given if key not in TAKES[method]]:
        raise UserError(f"{stray[0]}: search={method} does not take it, but {', '.join(TAKES[method])}")
    if given.get("prune", "true") not in ("true", "false"):
        raise UserError(f"prune={given['prune']}: must be true or false")
    numbers = {key: number_of(key, text) for key, text in given.items() if key in SMALLEST}
    return Search(method, numbers.get("trials"), given.get("prune") != "false", numbers.get("search_seed", 0),
                  numbers.get("factor", 3), numbers.get("min_epochs", 1))


def number_of(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < SMALLEST[key]:
        raise UserError(f"{key}={text}: must be an integer >= {SMALLEST[key]}")
    return int(text)


def remember(folder: Path, search: Search, words: Sequence[str], space: str) -> None:
    """Writes search.json. Raises UserError if the folder has another search. `words`: the others of the command;
    `space`: what is searched, as a text."""
    identity = f"{search._replace(trials=None)} {space}"
    if (folder / FILE).is_file() and read_json(folder / FILE, "choose another name=").get("identity") != identity:
        raise UserError(f"{folder} has a search with other words than these (only trials= may change): "
                        f"dltrain resume run={folder} continues it; choose another name= for this one")
    content = {"identity": identity, "words": [*words, *search.words()]}
    write_text(folder / FILE, json.dumps(content, indent=1) + "\n")


def words_of(folder: Path) -> list[str]:
    """The words of the search in the folder of a sweep; empty if it has none. Raises CheckpointError, UserError."""
    file = folder / FILE
    if not file.is_file():
        return []
    words = read_json(file, "type the command of the search again").get("words")
    if type(words) is not list or any(type(word) is not str for word in words):
        raise CheckpointError(f"{file}: damaged (must have the words); type the command of the search again")
    if stray := [word for word in words if word.lstrip("+~-").startswith(("hydra", "trust"))]:
        raise UserError(f"{file}: the words are keys of a config, but one is '{stray[0]}'; type the command of the "
                        "search again")
    return words
