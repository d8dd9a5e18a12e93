"""The code of the docs runs as it stands: the examples of docs/*.md and the cells of the notebook, in new folders."""

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md") if "```python" in page.read_text())


def run_pieces(pieces: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, object]:
    """Runs pieces of code one after the other in one namespace."""
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {}
    for piece in pieces:
        exec(compile(piece, "docs", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    pieces = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    run_pieces(pieces, monkeypatch, tmp_path)
    assert capsys.readouterr().out


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((DOCS / "first_steps.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace = run_pieces(code, monkeypatch, tmp_path)
    losses = namespace["losses"]
    assert isinstance(losses, list)
    assert losses[0][1] > losses[-1][1]
    assert (tmp_path / "outputs/notebook/result.json").is_file()
