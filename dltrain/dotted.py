"""Values in nested mappings by their dotted keys, as data.batch_size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value with its dotted key; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        is_node = isinstance(value, Mapping) and len(value) > 0
        flat |= flatten(value, f"{prefix}{key}.") if is_node else {f"{prefix}{key}": value}
    return flat


def select(node: Any, key: str) -> tuple[bool, Any]:
    """Whether there is a value at a dotted key of nested dicts, and the value."""
    *parents, last = key.split(".")
    for name in parents:
        node = node.get(name) if type(node) is dict else None
    return (True, node[last]) if type(node) is dict and last in node else (False, None)
