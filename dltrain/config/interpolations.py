"""The interpolations of a config, ${data.num_classes}: which resolvers they may call, and how much they may stand for.

A text of interpolations of texts of interpolations may have more letters than there is memory for: they are counted
before they are resolved. A value of the environment, ${oc.env:NAME}, is stored as it is written, so that a secret is in
no file of a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from dltrain.errors import UserError

MOST_EXPANSIONS = 10_000  # interpolations that one value leads to, with those that these lead to
MOST_TEXTS, MOST_LETTERS = 500, 3_000  # texts with interpolations in a config, letters in each
RESOLVERS = ("oc.env", "oc.select", "oc.decode", "oc.dict.keys", "oc.dict.values", "hydra", "now", "python_version")
INNERMOST = re.compile(r"\$\{([^${}]*)\}")
PIECE, ENVIRONMENT = "\0", "\1"  # stand for an interpolation that is read already
WORD = re.compile(rf"[\w.\[\]{PIECE}-]+")


def refuse_interpolations(config: object, place: Callable[[str], str] = lambda key: "") -> None:
    """Raises UserError for a resolver that is not in RESOLVERS, or that is named by pieces, and for a value whose
    interpolations lead to too many others, or in a circle. `config`: as it is written, not resolved. `place`: where a
    key is set, to be put after the message."""
    texts = dict(texts_of(config))
    costs: dict[str, float] = {}

    def cost(key: str) -> float:
        if key not in costs:
            costs[key] = math.inf  # until it is known: a circle
            costs[key] = sum(1 + sum(map(cost, keys)) for keys in references(key, texts, place))
        return costs[key]

    if len(texts) > MOST_TEXTS or max(map(len, texts.values()), default=0) > MOST_LETTERS:
        raise UserError(f"more than {MOST_TEXTS} texts with interpolations, or one of more than "
                        f"{MOST_LETTERS:,} letters{place(next(iter(texts)))}")
    for key in texts:
        try:
            is_too_much = cost(key) > MOST_EXPANSIONS
        except RecursionError:
            is_too_much = True
        if is_too_much:
            raise UserError(f"{key}: its interpolations lead to too many values, or in a circle{place(key)}")


def references(key: str, texts: Mapping[str, str], place: Callable[[str], str]) -> Iterator[list[str]]:
    """The keys, among those of `texts`, that each interpolation in a text may lead to: where it is put together from
    others, all that begin as it does. Raises UserError for a resolver that is not allowed."""
    text = texts[key]
    while match := INNERMOST.search(text):
        resolver, colon, argument = match[1].strip().partition(":")
        if colon and (resolver not in RESOLVERS or (resolver == "oc.decode" and argument.strip() != ENVIRONMENT)):
            raise UserError(f"{key}: the resolver '{resolver.replace(PIECE, '...')[:60]}' is not allowed; there "
                            f"are: {', '.join(RESOLVERS)} (oc.decode of oc.env alone){place(key)}")
        for word in () if resolver == "oc.env" else WORD.findall(argument if colon else resolver):
            name, is_cut = absolute(word, key).partition(PIECE)[0], PIECE in word
            yield [other for other in texts if other == name or other.startswith(name if is_cut else f"{name}.")]
        text = text[: match.start()] + (ENVIRONMENT if resolver == "oc.env" else PIECE) + text[match.end() :]


def absolute(word: str, key: str) -> str:
    """`.name` beside a key, `..name` a level above, else as it is; [0] as .0."""
    dots = len(word) - len(word.lstrip("."))
    parents = key.split(".")[:-dots] if dots else []
    return ".".join([*parents, word.strip(".").replace("[", ".").replace("]", "")])


def texts_of(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts with an interpolation, by key."""
    pairs = node.items() if type(node) is dict else enumerate(node) if type(node) is list else ()
    for name, value in pairs:
        inner = f"{key}.{name}" if key else str(name)
        if type(value) is str and "${" in value:
            yield inner, value
        else:
            yield from texts_of(value, inner)


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts, lists and values, interpolations resolved, but not those that read the environment."""
    written: Any = OmegaConf.to_container(config)
    if not any("oc.env" in text for _, text in texts_of(written)):
        plain: Any = OmegaConf.to_container(config, resolve=True)
        return {str(key): value for key, value in plain.items()}
    reads: list[str] = []

    def read_environment(key: str, *default: object) -> str | None:
        reads.append(key)
        return oc.env(key, *default)

    def resolved(value: object, config: Any, key: object) -> object:
        if type(value) is dict:
            return {name: resolved(inner, config[key], name) for name, inner in value.items()}
        if type(value) is list:
            return [resolved(inner, config[key], index) for index, inner in enumerate(value)]
        if type(value) is not str or "${" not in value:
            return value
        reads.clear()
        result = config[key]
        result = OmegaConf.to_container(result, resolve=True) if OmegaConf.is_config(result) else result
        return value if reads else result

    OmegaConf.register_new_resolver("oc.env", read_environment, replace=True)
    try:
        return {str(key): resolved(value, config, key) for key, value in written.items()}
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def value_at(config: DictConfig, key: str) -> object:
    """The plain value of a key, resolved; None if it cannot be."""
    try:
        value = OmegaConf.select(config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return None
