"""A JSON Schema (draft 7) of the yaml files that a user writes, made from the rules in the comments of all yaml files:
an editor completes keys with it, checks values and shows what they mean.

A key that several choices define, as model.depth, may have a value by any of their rules: a schema cannot know which of
them a file belongs to. The keys of a node are closed where dltrain reads them by name (trainer, the optimizer), and
where the node's `_target_` is one of dltrain's own; an own class has its own keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from dltrain.config import groups, schema
from dltrain.config.free_keys import DERIVED
from dltrain.config.key_index import KeyIndex, Setting, ruling

Schema = dict[str, Any]
DRAFT = "http://json-schema.org/draft-07/schema#"
# The kinds of files, and the key that the keys of such a file stand under; config: files with `# @package _global_`.
KINDS = {"config": "", "trainer": "trainer", "augment": "augment", "task": "task", "backbone": "model.backbone"}
CLOSED = re.compile(r"trainer(\.keep_checkpoints)?|task\.freezing|(.*\.)?pretrained")  # an unknown key is a mistake
BY_NAME = ("task.optimizer", "task.schedule")  # closed unless their name is a dotted path
OPEN = ("hydra", "study", "inputs")
INTERPOLATION = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
REFERENCE = {"$ref": "#/definitions/interpolation"}
TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "list": "array", "mapping": "object"}


def json_schema(index: KeyIndex, kind: str = "config") -> Schema:
    """Of the files of one of the KINDS."""
    root = node_schema(index, KINDS[kind])
    root["properties"] |= {"defaults": defaults_schema(index)}
    if kind == "config":
        root["properties"] |= {key: {} for key in (*sorted(DERIVED), "recipe")}  # what a composed config has besides
        root["additionalProperties"] = False
    return {"$schema": DRAFT, "title": f"dltrain {kind}", "definitions": {"interpolation": INTERPOLATION}, **root}


def node_schema(index: KeyIndex, key: str) -> Schema:
    """Of a mapping, whose keys are the config's below `key`; "" is the config itself."""
    names = [other.rpartition(".")[2] for other in index.below(key)]
    result: Schema = {"type": "object", "properties": {
        name: key_schema(index, f"{key}.{name}" if key else name) for name in names if name != "defaults"}}
    if CLOSED.fullmatch(key):
        result["additionalProperties"] = False
    elif key in BY_NAME:
        result |= {"if": {"properties": {"name": {"pattern": r"\."}}, "required": ["name"]},
                   "else": {"propertyNames": {"enum": names}}}
    elif "_target_" in names and not key.startswith(OPEN):
        targets = sorted({str(setting.value) for setting in index.values(f"{key}._target_").values()})
        known = [*names, "defaults"]
        result |= {"if": {"properties": {"_target_": {"enum": targets}}, "required": ["_target_"]},
                   "then": {"propertyNames": {"enum": known}}}
    return result


def key_schema(index: KeyIndex, key: str) -> Schema:
    """Of the value of a key, with its description and its default."""
    settings = index.definitions(key)
    if key.startswith(OPEN):
        return {"description": describe(settings)} if settings else {}
    if index.below(key):
        node = node_schema(index, key)
        return node if all(type(one.value) is dict for one in settings) else {"anyOf": [node, *leaves(index, key)]}
    options = leaves(index, key)
    result: Schema = {"description": describe(settings)} if settings else {}
    if (default := index.default(key)) is not None and "${" not in str(default[1].value):
        result["default"] = default[1].value
    return result if {} in options else {"anyOf": [*options, REFERENCE], **result}


def leaves(index: KeyIndex, key: str) -> list[Schema]:
    """A schema for each rule that choices have for the key, {} where one has none."""
    chains = index.settings[key]
    group = group_of(key)
    own = [chain for (other, _), chain in chains.items() if other == group] or list(chains.values())
    rules = dict.fromkeys(map(rule_of_chain, own))
    return unique(value_schema(rule) if rule else {} for rule in rules)


def group_of(key: str) -> str:
    """The group whose choices define the key; those of others only set it."""
    return "model/backbone" if key.startswith("model.backbone.") else key.partition(".")[0] if "." in key else ""


def rule_of_chain(chain: list[Setting]) -> str | None:
    """As checks.stated_rules: the last rule that is stated, or the type of the first default."""
    first = chain[0].value
    is_interpolated = type(first) is str and "${" in first
    return ruling(chain) or (None if is_interpolated else schema.rule_from_default(first))


def value_schema(rule: str) -> Schema:
    """Of a rule, in the grammar of schema.py. `= r mod m` is expressed for r = 0, and for odd numbers."""
    body = rule.removesuffix("or null").strip()
    kinds = [choice_schema(body)] if body.startswith("one of ") else [typed_schema(body)]
    if rule.endswith("or null"):
        kinds.append({"type": "null"})
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def choice_schema(body: str) -> Schema:
    words = [word.strip() for word in body.removeprefix("one of ").split("|")]
    values: list[Any] = []
    for word in words:
        if word != schema.DOTTED_PATH:
            read = yaml.load(word, Loader=schema.Loader)
            values += [read] if type(read) is str else [read, word]  # 2007 and "2007"
    choice: Schema = {"enum": values}
    path = {"type": "string", "pattern": r"^\w+(\.\w+)+$"}
    return {"anyOf": [choice, path]} if schema.DOTTED_PATH in words else choice


def typed_schema(body: str) -> Schema:
    match = schema.TYPE.match(body)
    assert match is not None, body
    name, conditions = match[1], body[match.end() :]
    if name.startswith("list of "):
        item = typed_schema(name.removeprefix("list of ") + conditions)
        return {"type": "array", "items": {"anyOf": [item, REFERENCE]}}
    result: Schema = {"type": TYPES[name]}
    for condition in schema.CONDITION.finditer(conditions):
        result |= bounds(condition)
    return result


def bounds(condition: re.Match[str]) -> Schema:
    group = condition.groupdict()
    if group["op"]:
        key = {">=": "minimum", "<=": "maximum", ">": "exclusiveMinimum", "<": "exclusiveMaximum"}[group["op"]]
        return {key: number(group["bound"])}
    if group["modulus"]:
        remainder, modulus = int(group["remainder"]), int(group["modulus"])
        if remainder == 0:
            return {"multipleOf": modulus}
        return {"not": {"multipleOf": 2}} if modulus == 2 else {}
    return {"minimum" if group["open"] == "[" else "exclusiveMinimum": number(group["low"]),
            "maximum" if group["close"] == "]" else "exclusiveMaximum": number(group["high"])}


def number(text: str) -> float:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def describe(settings: list[Setting]) -> str:
    """The rules and what they say, one line for each that differs."""
    lines = [": ".join(filter(None, [one.rule, one.sentence])) for one in settings]
    return "\n".join(dict.fromkeys(filter(None, lines)))


def defaults_schema(index: KeyIndex) -> Schema:
    """Of a defaults list: names of files, and choices of groups, of which dltrain's and the user's own are offered."""
    named = [*groups.GROUPS, "task"]
    offered = {f"{prefix}/{group}": {"anyOf": [{"enum": groups.names(group, *index.folders)},
                                               {"type": ["string", "null", "array"]}]}
               for group in named for prefix in ("", "override ")}
    entry = {"type": "object", "properties": offered, "maxProperties": 1,
             "additionalProperties": {"type": ["string", "null", "array"]}}
    return {"type": "array", "items": {"anyOf": [{"type": "string"}, entry]},
            "description": "the choices and files that this one builds on, in the order of merging"}


def unique(schemas: Iterable[Schema]) -> list[Schema]:
    return list({json.dumps(one, sort_keys=True): one for one in schemas}.values())
