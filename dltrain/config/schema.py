"""The comment after a value is the rule of its key: `batch_size: 128  # int >= 1: images per step`. The part before the
first colon is checked, the rest explains.

    int | float | bool | str | list [of int | float | str] | mapping | one of a | b | c [| dotted.path]
    conditions, separated by commas:  >= 1   > 0   <= 9   < 9   in (0, 1]   = 2 mod 6
    `or null` at the end

A value without such a comment must keep the type of its default; one whose default is null or a container is not
checked. This module imports neither Hydra nor torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dltrain.config.yaml_text import FASTEST, FASTEST_DUMPER, on_one_line
from dltrain.errors import UserError, is_unicode


class Loader(FASTEST):
    """Reads numbers as OmegaConf and people do: 1e-5 too, which YAML 1.1 takes for text."""


EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))
NUMBER = r"-?\d+(?:\.\d+)?(?:[eE]-?\d+)?"
CONDITION = re.compile(
    rf"(?P<op>>=|<=|>|<)\s*(?P<bound>{NUMBER})"
    rf"|in\s*(?P<open>[\[(])\s*(?P<low>{NUMBER})\s*,\s*(?P<high>{NUMBER})\s*(?P<close>[\])])"
    rf"|=\s*(?P<remainder>\d+)\s*mod\s*(?P<modulus>\d+)"
)
TYPE = re.compile(r"(int|float|bool|str|list of (?:int|float|str)|list|mapping)\b")
DOTTED_PATH = "dotted.path"  # among the choices of a rule: any name in a module, as torch.optim.NAdam
TYPE_NAMES = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}


@dataclass(frozen=True)
class Assignment:
    """One value in a yaml file: where it stands, and the comment after it."""

    line: int
    value: Any
    comment: str


UNBUILDABLE = (yaml.YAMLError, ValueError, TypeError, LookupError)


@contextmanager
def building(place: str | Path) -> Iterator[None]:
    """What makes values of a yaml text is done inside it: yaml raises errors of several kinds for a list as a key,
    `!!int x`, or a day that no month has. They become a UserError that begins with `place`."""
    try:
        yield
    except UNBUILDABLE as error:
        raise UserError(f"{place}: not plain yaml: {on_one_line(error)}") from None


def assignments(file: Path, package: str = "") -> dict[str, Assignment]:
    """Every key of a yaml file by its full dotted name, mappings included; `package` is put before each name."""
    with building(file):
        return dict(parse(file.read_text(encoding="utf-8"), package))


@cache
def parse(text: str, package: str) -> dict[str, Assignment]:
    """`assignments` of the text of a file; a command needs those of the same files several times."""
    lines, loader = text.splitlines(), Loader(text)
    result: dict[str, Assignment] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if node.id != "mapping":
            return
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            if node is root and key.value == "defaults":
                continue
            is_block = value.id != "scalar" and not value.flow_style  # its end mark is on the line of the next key
            line = lines[value.end_mark.line] if not is_block and value.end_mark.line < len(lines) else ""
            comment = line[value.end_mark.column :].partition("#")[2]
            plain = loader.construct_object(value, deep=True)
            result[name] = Assignment(key.start_mark.line + 1, plain, comment.strip())
            visit(value, name)

    root = loader.get_single_node()
    if root is not None:
        visit(root, package)
    return result


def dump(config: Mapping[str, object], comments: Mapping[str, str], prefix: str = "") -> str:
    """The config as yaml, with the comment of each key after its value. The inverse of `assignments`."""
    lines: list[str] = []
    for key, value in config.items():
        name, indent = f"{prefix}{key}", "  " * prefix.count(".")
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{yaml_scalar(key)}:", dump(value, comments, f"{name}.").rstrip("\n")]
        else:
            comment = f"  # {comments[name]}" if comments.get(name) else ""
            lines.append(f"{indent}{yaml_scalar(key)}: {yaml_scalar(value)}{comment}")
    return "\n".join(lines) + "\n"


def yaml_scalar(value: object) -> str:
    """A plain value on one line of yaml. Raises UserError for text that is no Unicode, as names that own code reads."""
    style = '"' if type(value) is str and "\n" in value else None
    if not is_unicode(json.dumps(value, ensure_ascii=False, default=str)):
        raise UserError(f"{value!r}: is no Unicode, which config.yaml cannot hold")
    dumper = FASTEST_DUMPER if repr(value).isascii() else yaml.SafeDumper  # libyaml escapes what lies beyond the BMP
    text = yaml.dump(value, Dumper=dumper, default_flow_style=True, default_style=style, width=2**31 - 1,
                     allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def rule_of(comment: str) -> str | None:
    """The rule at the start of a comment, without the explanation; None if the comment states no rule."""
    head = comment.partition(":")[0].strip()
    return head if head.startswith("one of ") or TYPE.match(head) else None


def violation(rule: str, value: Any) -> str | None:
    """What the value must be, as a phrase; None if it obeys the rule."""
    nullable = rule.endswith("or null")
    if value is None and nullable:
        return None
    body = rule.removesuffix("or null").strip()
    if body.startswith("one of "):
        allowed = [word.strip() for word in body.removeprefix("one of ").split("|")]
        is_path = DOTTED_PATH in allowed and type(value) is str and re.fullmatch(r"\w+(\.\w+)+", value)
        return None if is_path or format_value(value) in allowed else f"must be one of {', '.join(allowed)}"
    match = TYPE.match(body)
    assert match is not None, rule
    type_name, conditions = match[1], body[match.end() :]
    if type_name == "mapping":
        return None if isinstance(value, Mapping) else "must be a mapping, as {name: value}"
    if type_name.startswith("list"):
        return list_violation(type_name, conditions, value)
    if has_type(value, type_name) and all(holds(match, value) for match in CONDITION.finditer(conditions)):
        return None
    bounds = ", ".join(match[0] for match in CONDITION.finditer(conditions))
    return f"must be {TYPE_NAMES[type_name]}{f' {bounds}' if bounds else ''}{' or null' if nullable else ''}"


def list_violation(type_name: str, conditions: str, value: object) -> str | None:
    if type(value) is not list:
        return f"must be a {type_name}, as [a, b]"
    item_type = type_name.removeprefix("list").removeprefix(" of ")
    if not item_type:
        return None
    return next((f"each {fault}" for item in value if (fault := violation(item_type + conditions, item))), None)


def has_type(value: object, type_name: str) -> bool:
    """By the exact type, since Python's bool is an int."""
    allowed = {"bool": (bool,), "str": (str,), "int": (int,), "float": (int, float)}
    return type(value) in allowed[type_name]


def holds(condition: re.Match[str], value: float) -> bool:
    group = condition.groupdict()
    if group["op"]:
        bound = float(group["bound"])
        return {">=": value >= bound, "<=": value <= bound, ">": value > bound, "<": value < bound}[group["op"]]
    if group["modulus"]:
        return value % int(group["modulus"]) == int(group["remainder"])
    low, high = float(group["low"]), float(group["high"])
    above = value >= low if group["open"] == "[" else value > low
    below = value <= high if group["close"] == "]" else value < high
    return above and below


def rule_from_default(value: object) -> str | None:
    """The rule of a key that states none: the type of its default, of 0 and 1 any number, as a dropout of 0. None if
    the default is null or a container."""
    if type(value) is int and value in (0, 1):
        return "float"
    return {bool: "bool", int: "int", float: "float", str: "str"}.get(type(value))


def format_value(value: object) -> str:
    """A value as yaml writes it: null, true, 0.1."""
    return "null" if value is None else str(value).lower() if type(value) is bool else str(value)
