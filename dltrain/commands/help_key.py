"""What `dltrain help` says of a key, of a group of choices and of a choice."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from dltrain.config import groups, renamed, schema
from dltrain.config.examples import choice_words, example
from dltrain.config.key_index import Choice, KeyIndex, Setting
from dltrain.config.words import full_key, name_choices, suggest_word, take_config_folders
from dltrain.errors import UserError, suggest
from dltrain.verbs import VERBS

COLUMNS, MOST_VALUES, MOST_LETTERS = 80, 8, 130
PURPOSES = {"model": "the net, and with it the task that it is trained for",
            "model/backbone": "what turns images into feature maps, of a model that has one",
            "data": "the data set: where its samples come from, and their splits",
            "augment": "random transforms of training images, and their normalisation",
            "trainer": "the device, how long to train, when to save and to log",
            "recipe": "the values that train a model on a data set, found by the two names, as cifar_resnet-on-cifar10",
            "experiment": "a prepared command: one run, a sweep, or a comparison of several runs",
            "task": "loss, metrics, optimizer and schedule; the model chooses it, it is not typed"}


def explain(words: list[str]) -> str:
    """The answer to `dltrain help WORDS`, of which the first is a key, a group, or a choice. Raises UserError with the
    nearest word if it is none of them."""
    (word, *_), folders = take_config_folders(words)
    index = KeyIndex(*folders)
    group, equals, name = word.partition("=")
    if equals and (group, name) in index.places:
        return explain_choice(index, (group, name))
    key = full_key(group)
    if key in PURPOSES:
        return explain_group(index, key)
    if key in index.settings or index.below(key):
        return explain_key(index, key)
    if not equals and (named := name_choices([word], folders)):
        group, _, name = named[0].partition("=")
        return explain_choice(index, (group, name))
    raise unknown(index, word, key)


def unknown(index: KeyIndex, word: str, key: str) -> UserError:
    if (new := renamed.new_name(key)) is not None:
        return UserError(f"'{key}' is a key of an earlier version; use {new}")
    last = {other.rpartition(".")[2]: other for other in reversed(index.settings)}
    hint = (suggest(word, [*PURPOSES, *renamed.SHORT_FORMS]) or suggest_word(word, list(VERBS))
            or suggest(key, list(index.settings)) or suggest(key.rpartition(".")[2], list(last), last))
    return UserError(f"help: '{word}' is no verb, key or choice{hint or '; dltrain help lists the verbs'}")


def explain_key(index: KeyIndex, key: str) -> str:
    below = index.below(key)
    definitions = index.definitions(key)
    if below and not any(one.rule for one in definitions):
        return "\n".join([f"{key}    it holds these keys; dltrain help KEY explains one", "",
                          *(line_of(index, other) for other in below)])
    default = index.default(key)
    ruling = next((one for one in definitions if default and one.file in files_of(index, default[0])), definitions[0])
    short = next((f"    short: {short}" for short, full in renamed.SHORT_FORMS.items() if full == key), "")
    lines = [key + short, *rule_lines(ruling)]
    if default:
        choice, setting = default
        by = f" of {choice[0]}={choice[1]}" if choice[0] else ""
        lines.append(wrap(f"default {short_value(setting.value)}{by}, set in {place(setting)}", "  "))
        if place(setting) != place(ruling):
            lines.append(wrap(f"its rule stands in {place(ruling)}", "  "))
    else:
        group, name = index.choice_with(key, ruling)
        lines.append(wrap(f"only of some choices; {schema.format_value(ruling.value)} of {group}={name}, set in "
                          f"{place(ruling)}", "  "))
    lines += other_rules(definitions, ruling) + other_values(index, key, default[1].value if default else ruling.value)
    why = wrap(f"dltrain why {key} [choices] shows which value counts", "  ")
    lines += ["", command_lines(example(index, key, ruling)), why]
    return "\n".join(lines)


def command_lines(command: str) -> str:
    """On several lines as a shell reads them, where it is too long for one."""
    return wrap(command, "  ", 4).replace("\n", " \\\n")


def files_of(index: KeyIndex, choice: Choice) -> list[Path]:
    return [file for file, _ in index.places[choice]]


def rule_lines(setting: Setting) -> list[str]:
    rule = setting.rule or schema.rule_from_default(setting.value)
    if rule is None:
        stated = "any value" if setting.value is None or type(setting.value) in (dict, list) else "a fixed value"
    else:
        stated = rule if setting.rule else f"{rule}, as its value is"
    return [wrap(f"{stated}: {setting.sentence}" if setting.sentence else stated, "  ")]


def other_rules(definitions: list[Setting], ruling: Setting) -> list[str]:
    """Where other choices mean something else by the key."""
    known = {(ruling.rule, ruling.sentence)}
    others = []
    for one in definitions:
        if one.rule and (one.rule, one.sentence) not in known:
            known.add((one.rule, one.sentence))
            others.append(wrap(f"{one.file.stem}: {one.rule}: {one.sentence}", "    "))
    more = [f"    and {len(others) - MOST_VALUES} more"] if len(others) > MOST_VALUES else []
    return ["  elsewhere", *others[:MOST_VALUES], *more] if others else []


def other_values(index: KeyIndex, key: str, default: object) -> list[str]:
    """The values that choices give the key, other than the default."""
    choices: dict[str, list[Choice]] = {}
    for choice, setting in index.values(key).items():
        text = short_value(setting.value)
        if text != short_value(default) and "${" not in text:
            choices.setdefault(text, []).append(choice)
    if not choices:
        return []
    lines = [wrap(f"{text:<8} {shorten('; '.join(choice_words(some)))}", "    ", 13) for text, some in choices.items()]
    more = [f"    and {len(lines) - MOST_VALUES} more values"] if len(lines) > MOST_VALUES else []
    return ["  other values", *lines[:MOST_VALUES], *more]


def short_value(value: object) -> str:
    """A value as yaml writes it; of nodes that are built, the names of their classes."""
    if type(value) is list:
        return f"[{', '.join(map(short_value, value))}]"
    if type(value) is dict and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return schema.format_value(value)


def line_of(index: KeyIndex, key: str) -> str:
    """One line: the key, its default, its rule."""
    setting, default = next(iter(index.definitions(key)), None), index.default(key)
    if setting is None or (index.below(key) and not setting.rule):
        return f"  {key}    holds further keys"
    value = schema.format_value(default[1].value if default else setting.value)
    about = f"{setting.rule}: {setting.sentence}" if setting.rule else setting.sentence
    return cut(f"  {key}={value}  {about}".rstrip())


def explain_group(index: KeyIndex, group: str) -> str:
    names = groups.names(group, *index.folders)
    lines = [wrap(f"{group}    {PURPOSES[group]}", ""), wrap(", ".join(names), "  "), ""]
    if group == "model":
        lines[2:2] = ["  dltrain ls models describes them, dltrain help model=resnet56 one of them"]
    elif group in groups.GROUPS:
        default = next((name for other, name in index.default_choices if other == group), None)
        lines[2:2] = [f"  by default {default}; dltrain help {group}={names[0]} says what one sets"] if default else [
            f"  dltrain help {group}={names[0]} says what one sets"]
    keys = index.below(group.replace("/", "."))
    return "\n".join([*lines, *(line_of(index, key) for key in keys)]).rstrip()


def explain_choice(index: KeyIndex, choice: Choice) -> str:
    group, name = choice
    path = groups.path_of(group, name, *index.folders)
    assert path is not None
    lines = [wrap(f"{group}={name}    {groups.describe(path)}", ""), f"  {display(path)}"]
    makes = [f"{other}={chosen}" for other in ("task", "model/backbone", "data", "augment", "recipe", "model")
             if other != group and (chosen := groups.chosen_by(path, other))]
    lines += [f"  chooses {', '.join(makes)}, unless the command does"] if makes else []
    lines.append("")
    lines += [cut(f"  {key}={schema.format_value(chain[choice][-1].value)}  {chain[choice][-1].sentence}".rstrip())
              for key, chain in index.settings.items() if choice in chain and not holds_keys(index, key, choice)]
    return "\n".join(lines).rstrip()


def holds_keys(index: KeyIndex, key: str, choice: Choice) -> bool:
    return any(choice in index.values(other) for other in index.below(key))


def place(setting: Setting) -> str:
    """The file and the line, as `why` writes them."""
    return f"{display(setting.file)}:{setting.line}"


def display(file: Path) -> str:
    """Relative to the current folder, or to the folder of dltrain's configs, if it lies below it."""
    if file.is_relative_to(Path.cwd()):
        return os.path.relpath(file)
    return str(file.relative_to(groups.CONFIGS.parent)) if file.is_relative_to(groups.CONFIGS) else str(file)


def shorten(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else textwrap.shorten(text, MOST_LETTERS, placeholder=" ...")


def cut(text: str) -> str:
    return text if len(text) <= COLUMNS else text[: COLUMNS - 4].rstrip() + " ..."


def wrap(text: str, indent: str, hanging: int | None = None) -> str:
    """`hanging`: columns before the lines after the first; by default two more than before the first."""
    after = " " * (len(indent) + 2 if hanging is None else hanging)
    return textwrap.fill(text, COLUMNS, initial_indent=indent, subsequent_indent=after, break_on_hyphens=False,
                         break_long_words=False)
