"""The README and the docs: their commands compose, their links lead somewhere, their code runs as it stands."""

import json
import re
import shlex
from pathlib import Path

import pytest

from dltrain.cli import COMMANDS
from dltrain.commands.bench_words import take_options
from dltrain.commands.prove import take_options as take_proof_options
from dltrain.commands.stored import take_own
from dltrain.commands.train import LIMITS
from dltrain.commands.tune import KEYS as TUNE_KEYS
from dltrain.config import compose, groups

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)

ANSWER = re.compile(r"^\| `dltrain ([^`]+)` \| ([^|]+) \|$", re.MULTILINE)  # first words, and what is printed


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text()) if kind == language]


def commands_of(page: str) -> list[list[str]]:
    """The words after `dltrain` of each command on a page, but those that are elided or show a form."""
    text = ANSWER.sub("", (ROOT / page).read_text())
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
        if verb == "tune":
            words = take_own(words, TUNE_KEYS)[1]
        if verb == "bench":
            words = take_options(words)[1]
        if verb == "prove":
            words = take_proof_options(words[1:])[1]
        composed = ("train", "show", "why", "bench", "tune", "prove")
        if verb not in composed or {"--config-dir", "--help", "rsnet56"} & {*words}:
            continue
        if any("from_run=" in word or "rsnet56" in word or ".lrr=" in word for word in words):
            continue
        words = [word for word in words[verb == "why" :] if word != "--cfg" and word != "job"]
        compose.compose([word for word in words if word != "-m" and word.partition("=")[0] not in LIMITS],
                        multirun="-m" in words)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert link.startswith("http") or ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize(("words", "answer"), ANSWER.findall((ROOT / "docs/commands.md").read_text()))
def test_first_words_are_answered_as_the_page_says(words, answer, dltrain, tmp_path):
    code, out, err = dltrain(*words.split())
    assert answer in " ".join((out + err).split())
    assert code == 0 if out else code == 2 and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_readme_is_short_and_every_experiment_has_its_line():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
    text = (ROOT / "docs/experiments.md").read_text()
    for name in groups.names("experiment"):
        assert f"`dltrain experiment={name}" in text


def run_pieces(pieces: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, object]:
    """Runs pieces of code one after the other in one namespace."""
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {}
    for piece in pieces:
        exec(compile(piece, "docs", "exec"), namespace)
    return namespace


def test_the_python_page_runs(tmp_path, monkeypatch, capsys):
    run_pieces(blocks("docs/python.md", "python"), monkeypatch, tmp_path)
    assert capsys.readouterr().out.count("test/accuracy")


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "docs/first_steps.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    losses = run_pieces(code, monkeypatch, tmp_path)["losses"]
    assert isinstance(losses, list)
    assert losses[0][1] > losses[-1][1]
    assert (tmp_path / "outputs/notebook/result.json").is_file()


def test_the_examples_of_own_code_train(dltrain, tmp_path, monkeypatch):
    """The README's model and the data set of docs/extending.md are those that `dltrain new` writes."""
    monkeypatch.syspath_prepend(tmp_path)
    for kind, name, page in (("model", "two_layers", "README.md"), ("data", "stripes", "docs/extending.md")):
        assert dltrain("new", f"{kind}={name}")[0] == 0
        assert blocks(page, "python") == [(tmp_path / f"{name}.py").read_text()]
        assert blocks(page, "yaml")[0] == (tmp_path / f"conf/{kind}/{name}.yaml").read_text()
    code, _, err = dltrain("--config-dir", "conf", "model=two_layers", "data=stripes", "epochs=20", "lr=0.05", "name=a")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "outputs/a/result.json").read_text())["test/accuracy"] > 0.9


def test_the_comparison_of_the_docs_composes(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/shortcut.yaml").write_text(blocks("docs/experiments.md", "yaml")[0])
    assert compose.compose(["experiment=shortcut"], str(tmp_path)).config.study.seeds == [0, 1, 2]
