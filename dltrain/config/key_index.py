"""Every key of the yaml files of configs/ and of a user's folders: which files set it, to which value, by which rule.

It reads the files as text and follows their defaults lists as Hydra does, without Hydra (tests/test_help_key.py
compares the two). `help` answers from it, and the JSON Schema of the yaml files is made from it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dltrain.config import groups, schema

INDEXED = (*groups.GROUPS, "task")
PACKAGE = re.compile(r"^#\s*@package\s+(\S+)\s*$", re.MULTILINE)
Choice = tuple[str, str]  # group, name
Place = tuple[Path, str]  # a yaml file and the package that its keys stand under


class Setting(NamedTuple):
    """One value in a yaml file. `rule`: None where its comment states none; `sentence`: the rest of the comment."""

    file: Path
    line: int
    value: Any
    rule: str | None
    sentence: str


class KeyIndex:
    """The keys of dltrain's configs and of those in `folders`."""

    def __init__(self, *folders: Path):
        self.folders = folders

    @cached_property
    def places(self) -> dict[Choice, list[Place]]:
        """The files of each choice in the order in which they are merged, without those of the choices that it makes in
        other groups."""
        places = {("", "train"): [(groups.CONFIGS / "train.yaml", "")]}
        for group in INDEXED:
            for name in groups.names(group, *self.folders):
                if (path := groups.path_of(group, name, *self.folders)) is not None:
                    places[group, name] = list(merged(path, package_of(path, group)))
        return places

    @cached_property
    def settings(self) -> dict[str, dict[Choice, list[Setting]]]:
        """Key -> choice -> its settings in the order in which they are merged."""
        settings: dict[str, dict[Choice, list[Setting]]] = defaultdict(lambda: defaultdict(list))
        for choice, places in self.places.items():
            for place in places:
                for key, setting in settings_in(*place).items():
                    settings[key][choice].append(setting)
        return dict(settings)  # a key that nothing sets is not added by looking it up

    @cached_property
    def default_choices(self) -> list[Choice]:
        """What a command without words chooses, without the recipe."""
        train = groups.CONFIGS / "train.yaml"
        chosen = {group: groups.chosen_by(train, group) for group in groups.GROUPS}
        for group in ("model", "data"):
            path = groups.path_of(group, str(chosen[group]))
            assert path is not None
            for other in ("task", "augment", "model/backbone"):
                chosen[other] = groups.chosen_by(path, other) or chosen.get(other)
        return [("", "train"), *((group, name) for group, name in chosen.items() if name)]

    def definitions(self, key: str) -> list[Setting]:
        """The settings that state the key's rule, each once; if none does, all. None of a mapping that no file sets as
        such, as model.pretrained, into which a whole file is merged."""
        stated = {(one.file, one.line): one for chain in self.settings.get(key, {}).values() for one in chain}
        return [one for one in stated.values() if one.rule] or list(stated.values())

    def choice_with(self, key: str, setting: Setting) -> Choice:
        """The first choice that has this setting of the key, and no later rule if possible."""
        having = [(choice, chain) for choice, chain in self.settings[key].items() if setting in chain]
        return next((choice for choice, chain in having if ruling(chain) == setting.rule), having[0][0])

    def values(self, key: str) -> dict[Choice, Setting]:
        """The value that each choice gives the key."""
        return {choice: chain[-1] for choice, chain in self.settings.get(key, {}).items()}

    def default(self, key: str) -> tuple[Choice, Setting] | None:
        """The value in a run without words and without a recipe, and the choice that gives it. None if such a run does
        not have the key."""
        values = self.values(key)
        order = ["", "trainer", "augment", "task", "data", "model"]  # of merging
        given = [(choice, values[choice]) for choice in self.default_choices if choice in values]
        return max(given, key=lambda one: order.index(one[0][0]), default=None)

    def below(self, key: str) -> list[str]:
        """The keys right below a mapping, in full; "" is the whole config."""
        prefix = f"{key}." if key else ""
        names = (other.removeprefix(prefix).partition(".")[0] for other in self.settings if other.startswith(prefix))
        return [prefix + name for name in dict.fromkeys(names)]


def ruling(chain: Sequence[Setting]) -> str | None:
    """The last rule that is stated where a choice sets a key."""
    return next((setting.rule for setting in reversed(chain) if setting.rule), None)


def settings_in(file: Path, package: str) -> dict[str, Setting]:
    """Key -> what one file sets it to. The user's own files may change while a process lives."""
    read = packaged_settings if file.is_relative_to(groups.CONFIGS) else read_settings
    return read(file, package)


@cache
def packaged_settings(file: Path, package: str) -> dict[str, Setting]:
    return read_settings(file, package)


def read_settings(file: Path, package: str) -> dict[str, Setting]:
    settings = {}
    for key, line in schema.assignments(file, package).items():
        rule = schema.rule_of(line.comment)
        sentence = line.comment[len(rule) :].lstrip(": ") if rule else line.comment
        settings[key] = Setting(file, line.line, line.value, rule, sentence)
    return settings


def package_of(file: Path, group: str) -> str:
    """What Hydra puts before the keys of a file: its `# @package` line, or else its group."""
    stated = PACKAGE.search(file.read_text(encoding="utf-8"))
    return group.replace("/", ".") if stated is None else stated[1].removeprefix("_global_").lstrip(".")


def merged(file: Path, package: str) -> Iterator[Place]:
    """The file and those that its defaults list includes by path, in the order of merging."""
    entries = [entry for entry in groups.content(file).get("defaults", []) if type(entry) is str]
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        if entry == "_self_":
            yield file, package
            continue
        name, at, stated = entry.partition("@")
        base = groups.CONFIGS / f"{name[1:]}.yaml" if name.startswith("/") else file.parent / f"{name}.yaml"
        if base.is_file():
            group = base.parent.relative_to(groups.CONFIGS).as_posix() if base.is_relative_to(groups.CONFIGS) else ""
            inner = ".".join(filter(None, [package, stated])) if at else package_of(base, group)
            yield from merged(base, inner)
