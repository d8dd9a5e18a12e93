"""A command that sets a key to another value than its default, with the choices that such a run needs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from dltrain.config import groups, schema
from dltrain.config.key_index import Choice, KeyIndex, Setting, ruling

PLAIN = re.compile(r"[\w./+-]+")  # text that needs no quotes
NUMBERS = (1, 2, 3, 8, 10, 16, 32, 64, 0.1, 0.5, 0.9, 1e-3)


def example(index: KeyIndex, key: str, setting: Setting) -> str:
    """`setting`: where the rule of the key is stated."""
    words = choices_for(index, key, setting)
    value = next((value for value in candidates(index, key, setting) if fits(setting, value)), setting.value)
    return shlex.join(["dltrain", *words, f"{key}={word_of(value)}"])


def choices_for(index: KeyIndex, key: str, setting: Setting) -> list[str]:
    """The choices to be made so that the key is there; none where a run without words has it."""
    if index.default(key) is not None:
        return []
    group, name = index.choice_with(key, setting)
    if group == "task":
        return [f"model={model_with(index, task=name)}"]
    if group == "model/backbone":
        return [f"model={model_with(index, group)}", f"{group}={name}"]
    if group == "data":
        return [f"model={model_for(index, name)}", f"data={name}"]
    return [f"{group}={name}"]


def model_for(index: KeyIndex, data: str) -> str:
    """A model that trains on these data, if possible one whose own default they are."""
    batch_type = groups.batch_type_of_data(data, *index.folders)
    fitting = [model for model in groups.names("model", *index.folders)
               if groups.batch_type_of_model(model, *index.folders) == batch_type]
    own = [model for model in fitting if chosen(index, model, "data") == data]
    return next(iter([*own, *fitting]), "MODEL")


def model_with(index: KeyIndex, group: str = "task", task: str | None = None) -> str:
    """The first model that chooses something of the group, or this task."""
    models = groups.names("model", *index.folders)
    return next(model for model in models if (name := chosen(index, model, group)) and task in (None, name))


def chosen(index: KeyIndex, model: str, group: str) -> str | None:
    path = groups.path_of("model", model, *index.folders)
    return groups.chosen_by(path, group) if path else None


def candidates(index: KeyIndex, key: str, setting: Setting) -> Iterator[Any]:
    """Values to try: those that choices with the same rule give the key come first."""
    chains = index.settings[key].values()
    yield from (chain[-1].value for chain in chains if ruling(chain) == setting.rule)
    rule, value = setting.rule or schema.rule_from_default(setting.value) or "", setting.value
    if rule.startswith("one of "):
        for word in rule.removesuffix("or null").removeprefix("one of ").split("|"):
            yield word.strip()
    if rule.startswith("bool"):
        yield value is not True
    if type(value) in (int, float):
        yield from (2 * value, value / 2, value + 1)
    if rule.startswith("list of "):
        yield from ([number] for number in NUMBERS)
    yield from NUMBERS
    if rule.startswith("str"):
        yield key.rpartition(".")[2].upper()


def fits(setting: Setting, value: Any) -> bool:
    """Whether the value may be typed, obeys the rule, and is another one than that of the setting."""
    rule = setting.rule or schema.rule_from_default(setting.value)
    if value is None or "${" in str(value) or value == schema.DOTTED_PATH:
        return False
    typed = {"true": True, "false": False}.get(value, value) if type(value) is str else value
    is_other = typed != setting.value and str(typed) != str(setting.value)  # a choice of numbers is text here
    return is_other and (rule is None or schema.violation(rule, typed) is None)


def word_of(value: Any) -> str:
    """A value in the grammar of the command line."""
    if type(value) is list:
        return f"[{','.join(map(word_of, value))}]"
    if type(value) is dict:
        return "{" + ",".join(f"{name}:{word_of(item)}" for name, item in value.items()) + "}"
    text = schema.format_value(value)
    return text if type(value) is not str or PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def choice_words(choices: Sequence[Choice]) -> list[str]:
    """Choices as they are typed, those of one group together: `model=alexnet, vgg11`."""
    of_group: dict[str, list[str]] = {}
    for group, name in choices:
        of_group.setdefault(group, []).append(name)
    return [f"{group}={', '.join(names)}" if group else "every run" for group, names in of_group.items()]
