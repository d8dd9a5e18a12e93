"""The papers of a model, in the words of its own docstrings: that of its class, or else of its module, and its
backbone's.

A docstring names a paper in a sentence with the year and, mostly, the arXiv number and the section. What differs from
the paper, and paragraphs on another matter (initialisation), are left out. Where the header of the model's yaml names
some of the papers, by author and year, only those are taken.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from dltrain.config import groups

YEAR = re.compile(r"\b(?:19|20)\d\d\b")
ARXIV = re.compile(r"(?:arXiv )?\b\d{4}\.\d{4,5}\b")
SENTENCE_END = re.compile(r"(?<=[\w)\"\]])(?<![A-Z])\.\s+(?=[A-Z`\"])")  # not after an initial, as K. He
NAMED = re.compile(r"\b([A-Z][\w'-]+)(?:, [A-Z][\w'-]+)*(?: et al\.?)?,? (?:and [A-Z]\w+ )?((?:19|20)\d\d)")
ASIDE = re.compile(r"^(Differs|Initialised|Its ancestors|The parameters)\b")


def papers_of(model: type, backbone: type | None = None, yaml_file: Path | None = None) -> list[str]:
    """Each paper once: those of the model that its yaml names too, or else all that its docstring names; then those
    of its backbone's class, or the first one of the backbone's module. `yaml_file`: of the model's choice."""
    headers = [groups.describe(file) for file in groups.lineage(yaml_file)] if yaml_file else []
    keys, stated = names_in(" ".join(headers)), of_class(model) or of_module(model)
    named = [sentence for sentence in stated if keys & names_in(sentence)]
    of_backbone = [] if backbone is None else of_class(backbone) or of_module(backbone)[:1]
    return list(dict.fromkeys([*(named or stated), *of_backbone])) or [line for line in headers if YEAR.search(line)]


def of_class(one: type) -> list[str]:
    return list(references(inspect.cleandoc(one.__doc__ or "")))


def of_module(one: type) -> list[str]:
    return list(references(inspect.cleandoc(getattr(sys.modules.get(one.__module__), "__doc__", None) or "")))


def references(text: str) -> Iterator[str]:
    """The sentences of a docstring that name a paper, on one line each."""
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        if ASIDE.match(flat):
            continue
        for sentence in SENTENCE_END.split(flat):
            if not ASIDE.match(sentence) and YEAR.search(sentence) and (ARXIV.search(sentence) or names_in(sentence)):
                yield cut_description(sentence.rstrip(".:"))


def cut_description(sentence: str) -> str:
    """Without what follows a colon after the year: what the model takes from the paper."""
    year = YEAR.search(sentence)
    colon = sentence.find(": ", year.end() if year else 0)
    return sentence if colon < 0 else sentence[:colon]


def names_in(text: str) -> set[tuple[str, str]]:
    """(first author's family name, year) of each paper, from "K. He, X. Zhang, 2015" and from "He et al. 2015"."""
    names = {(match[1], match[2]) for match in NAMED.finditer(text)}
    for match in re.finditer(r"\b(?:[A-Z]\.[ -]?)+ ?([A-Z][\w'-]+)", text):
        if year := YEAR.search(text, match.end()):
            names.add((match[1], year[0]))
    return names
