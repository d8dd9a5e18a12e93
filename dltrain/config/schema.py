"""The comment behind a key is its contract: `batch_size: 128  # int >= 1: images a step` is read, and held.

Grammar of the part before the first colon:
    int | float | bool | str | list [of <rule>] | one of a | b | c
    conditions, separated by commas:  >= 1   > 0   <= 9   < 9   in (0, 1]   = 2 mod 6
    `or null` at the end
A key without such a comment must keep the type that its default has. No torch, no Hydra: this runs before both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dltrain.config.groups import Loader

NUMBER = r"-?\d+(?:\.\d+)?(?:[eE]-?\d+)?"
CONDITION = re.compile(
    rf"(?P<op>>=|<=|>|<)\s*(?P<bound>{NUMBER})"
    rf"|in\s*(?P<open>[\[(])\s*(?P<low>{NUMBER})\s*,\s*(?P<high>{NUMBER})\s*(?P<close>[\])])"
    rf"|=\s*(?P<rest>\d+)\s*mod\s*(?P<modulus>\d+)"
)
KIND = re.compile(r"(int|float|bool|str|list of (?:int|float|str)|list)\b")


@dataclass(frozen=True)
class Assignment:
    """One value in one yaml file: where it stands and what the comment behind it says."""

    file: Path
    line: int
    value: Any
    comment: str


def assignments(file: Path, package: str = "") -> dict[str, Assignment]:
    """Every key of a yaml file by its full dotted name, containers too; `package` stands before each."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    found: dict[str, Assignment] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            if node is root and key.value == "defaults":
                continue
            block = not isinstance(value, yaml.ScalarNode) and not value.flow_style  # ends on the next key's line
            line = lines[value.end_mark.line] if not block and value.end_mark.line < len(lines) else ""
            comment = line[value.end_mark.column :].partition("#")[2]
            plain = yaml.load(yaml.serialize(value), Loader=Loader)
            found[name] = Assignment(file, key.start_mark.line + 1, plain, comment.strip())
            visit(value, name)

    root = yaml.compose(text, Loader=Loader)
    if root is not None:
        visit(root, package)
    return found


def rule_of(comment: str) -> str | None:
    """The rule in a comment, without its explanation: None where the comment is ordinary prose."""
    head = comment.partition(":")[0].strip()
    return head if head.startswith("one of ") or KIND.match(head) else None


def broken(rule: str, value: Any) -> str | None:
    """What the value must be and is not, in words; None where it obeys."""
    nullable = rule.endswith("or null")
    if value is None and nullable:
        return None
    body = rule.removesuffix("or null").strip()
    if body.startswith("one of "):
        allowed = [word.strip() for word in body.removeprefix("one of ").split("|")]
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        return None if shown in allowed else f"must be one of {', '.join(allowed)}"
    kind = KIND.match(body)
    assert kind is not None, rule
    conditions = body[kind.end() :]
    if kind[1].startswith("list"):
        inner = kind[1].removeprefix("list").removeprefix(" of ")
        if not isinstance(value, list):
            return f"must be a {kind[1]}, as [a, b]"
        return next((f"each {fault}" for v in value if inner and (fault := broken(inner + conditions, v))), None)
    or_null = " or null" if nullable else ""
    article = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}[kind[1]]
    if not has_type(value, kind[1]):
        return f"must be {article}{in_words(conditions)}{or_null}"
    if not all(holds(match, value) for match in CONDITION.finditer(conditions)):
        return f"must be {article}{in_words(conditions)}{or_null}"
    return None


def has_type(value: Any, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str)
    numbers = (int,) if kind == "int" else (int, float)
    return isinstance(value, numbers) and not isinstance(value, bool)


def holds(condition: re.Match[str], value: float) -> bool:
    part = condition.groupdict()
    if part["op"]:
        bound = float(part["bound"])
        return {">=": value >= bound, "<=": value <= bound, ">": value > bound, "<": value < bound}[part["op"]]
    if part["modulus"]:
        return value % int(part["modulus"]) == int(part["rest"])
    low, high = float(part["low"]), float(part["high"])
    return (value >= low if part["open"] == "[" else value > low) and (
        value <= high if part["close"] == "]" else value < high)


def in_words(conditions: str) -> str:
    text = ", ".join(match[0] for match in CONDITION.finditer(conditions))
    return f" {text}" if text else ""


def rule_from_default(value: Any) -> str | None:
    """The rule of a key that states none: its default's type. None where the default is null or a container."""
    kinds = {bool: "bool", int: "int", float: "float", str: "str"}
    return kinds.get(type(value))
