"""The README and the docs: their commands compose, and their links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from dltrain.cli import COMMANDS
from dltrain.config import compose

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text()) if kind == language]


def commands_of(page: str) -> list[list[str]]:
    """The words after `dltrain` of each command on a page, but those that are elided or show a form."""
    text = (ROOT / page).read_text()
    lines = [line.removeprefix("$ ") for block in blocks(page, "") + blocks(page, "sh") for line in block.splitlines()]
    lines += re.findall(r"`(dltrain [^`]*)`", BLOCK.sub("", text))
    lines = [line.partition("  #")[0] for line in lines if line.startswith("dltrain ")]
    return [shlex.split(line)[1:] for line in lines if not re.search(r"\.\.\.|…|\[\w+\||[A-Z]{3}|VERB", line)]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_compose(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands_of(page):
        verb = words[0] if words and words[0] in COMMANDS else "train"
        words = words[words[:1] == [verb] :]
        if verb not in ("train", "show", "why") or "--config-dir" in words or {"--help", "rsnet56"} & {*words}:
            continue
        if any("from_run=" in word or "rsnet56" in word or ".lrr=" in word for word in words):
            continue
        words = [word for word in words[verb == "why" :] if word != "--cfg" and word != "job"]
        compose.compose([word for word in words if word != "-m"], multirun="-m" in words)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert link.startswith("http") or ((ROOT / page).parent / link).exists(), link


def test_the_readme_is_one_screen_and_a_table():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
