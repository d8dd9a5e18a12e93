"""The tutorial: a section for each slide, whose commands compose and run; the verb; the results; the site."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dltrain.config import compose
from dltrain.tutorial import pages, results, running
from dltrain.tutorial.pages import Section, parse_section, read_sections
from dltrain.verbs import VERBS

ROOT = Path(__file__).parents[1]
SECTIONS = list(read_sections().values())
NAMES = [str(section.number) for section in SECTIONS]
COMPOSED = ("train", "show", "bench")

BODY = """Says this.

$$
y = x
$$

Formula: a paper.

```sh
dltrain name=a
```

**Look at** it.

**Try next** `dltrain name=b`.

**Code** a.py.
"""


def check_command(words: list[str]) -> None:
    """Composes the command as it is typed. Of `summary` the choices are composed, of the other verbs the name."""
    verb = words[0] if words[0] in VERBS else "train"
    words = [word for word in words[words[0] == verb :] if not word.startswith(("depth=", "seconds="))]
    if verb in (*COMPOSED, "summary"):
        compose.compose([word for word in words if word != "-m"], multirun="-m" in words)


def test_every_slide_has_its_section_in_order():
    assert [section.number for section in SECTIONS] == list(range(6, 57))
    chapters = [section.chapter for section in SECTIONS]
    assert list(dict.fromkeys(chapters)) == list(pages.CHAPTERS)
    assert [chapters.index(chapter) + 6 for chapter in pages.CHAPTERS] == [6, 13, 20, 34]


@pytest.mark.parametrize("section", SECTIONS, ids=NAMES)
def test_the_commands_of_a_slide_compose(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_command([*section.words, *shlex.split(section.options.get("smoke", ""))])
    check_command(section.words)
    following = pages.commands_in(section.try_next)
    assert following, "a command to try next"
    for command in following:
        if "run=" not in command:
            check_command(shlex.split(command)[1:])


@pytest.mark.parametrize("section", SECTIONS, ids=NAMES)
def test_a_section_names_files_that_exist_and_what_they_define(section):
    text = f"{section.says} {section.look_at} {section.try_next} {section.code} {section.left_out}"
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    for link in links:
        assert (ROOT / "docs/tutorial" / link).resolve().is_file(), link
    anchors = {other.anchor for other in SECTIONS if other.chapter == section.chapter}
    assert {*re.findall(r"\]\(#([^)]+)\)", text)} <= anchors
    sources = "".join((ROOT / "docs/tutorial" / link).read_text() for link in links)
    for name in re.findall(r"`([A-Za-z_.]+)`", section.code):
        assert all(re.search(rf"\b{word}\b", sources) for word in name.split(".")), name


def test_a_section_without_a_block_is_refused():
    assert parse_section(1, "A", "c", BODY).command == "dltrain name=a"
    for block in BODY.strip().split("\n\n"):
        with pytest.raises(ValueError, match=rf"slide 1: has no ({'|'.join(pages.REQUIRED)})$"):
            parse_section(1, "A", "c", BODY.replace(block, ""))
    with pytest.raises(ValueError, match="unknown mark 'Look out'"):
        parse_section(1, "A", "c", BODY.replace("Look at", "Look out"))
    with pytest.raises(ValueError, match="cannot read the option 'smok: a'"):
        parse_section(1, "A", "c", BODY + "\n<!--\nsmok: a\n-->\n")
    with pytest.raises(ValueError, match="one line that begins with dltrain"):
        parse_section(1, "A", "c", BODY.replace("dltrain name=a", "python a.py"))


# the verb


def test_the_list_has_every_slide_with_its_command(dltrain, tmp_path):
    code, out, err = dltrain("tutorial")
    assert (code, err) == (0, "")
    for section in SECTIONS:
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [str(section.number)]]
        assert section.title in line
        assert section.command[:80] in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("section", SECTIONS, ids=NAMES)
def test_a_slide_is_printed_with_its_formula_and_a_command_to_copy(section, dltrain):
    code, out, err = dltrain("tutorial", str(section.number))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{section.number}. {section.title}"
    assert f"$ {section.command}" in lines
    for command in pages.commands_in(section.try_next):
        assert f"  $ {command}" in lines
    for formula in section.formulas:
        assert all(f"    {line}" in lines for line in formula.splitlines() if line != r"\qquad")
    assert "**" not in out
    assert "](" not in out


@pytest.mark.parametrize(("words", "message"), [
    (["57"], "no slide '57'; it must be a number from 6 to 56"),
    (["x"], "no slide 'x'; it must be a number from 6 to 56"),
    (["5"], "from 6 to 56"), (["19", "run=yes"], "run=yes: must be run=true or run=false"),
    (["19", "seed=1"], "dltrain tutorial 19 run=true seed=1")])
def test_a_wrong_word_is_one_line(words, message, dltrain):
    code, out, err = dltrain("tutorial", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_run_true_runs_the_command_as_if_typed(dltrain, tmp_path, monkeypatch):
    section = read_sections()[34]._replace(command="dltrain model=seq_classifier model.cell=rnn")
    monkeypatch.setattr("dltrain.commands.tutorial.section_of", lambda word: section)
    code, out, err = dltrain("tutorial", "34", "run=true", "trainer=smoke", "name=t")
    assert (code, err) == (0, "")
    assert out.startswith("$ dltrain model=seq_classifier model.cell=rnn trainer=smoke name=t\n")
    assert json.loads((tmp_path / "outputs/t/result.json").read_text())["model"] == "seq_classifier"
    assert "tutorial" not in (tmp_path / "outputs/t/command.txt").read_text()


# results


def test_results_are_those_of_the_commands_of_today():
    """Fails where a command was changed and `scripts/reproduce --tutorial NUMBER` has not been run again."""
    for number, outcome in results.read_outcomes().items():
        assert outcome.command == read_sections()[number].command, f"scripts/reproduce --tutorial {number}"
        assert outcome.exit_code in running.ENDED
        assert not outcome.picture or (ROOT / "docs/tutorial" / outcome.picture).is_file()


def test_the_page_of_all_slides_is_that_of_the_results():
    text = (ROOT / "docs/tutorial/index.md").read_text()
    assert text == results.index_page(results.read_outcomes()), "scripts/reproduce --tutorial writes it"
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / "docs/tutorial" / link).is_file(), link


def one(command: str, number: int = 6, **options: str) -> Section:
    return Section(number, "A", "training_tricks", "Says.", ("y",), "P.", command, "It.", "`dltrain`", "a.py", "",
                   options)


def test_a_command_is_run_once_and_what_it_states_is_collected(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    starts: list[list[str]] = []
    popen = subprocess.Popen

    def start(words, **keys):
        starts.append(words)
        return popen(words, **keys)

    monkeypatch.setattr(running.subprocess, "Popen", start)
    command = "dltrain model=seq_classifier trainer=smoke"
    sections = [one(command, 6, numbers="test/acc*; seconds", lines="^test/", picture="report.html"), one(command, 7)]
    folder = tmp_path / "out"
    for _ in range(2):
        outcomes = running.run_sections(sections, sections, folder, None)
    assert len(starts) == 1
    shutil.move(folder / "slide_06", tmp_path / "away")
    outcomes = running.run_sections(sections, sections, folder, None)
    assert len(starts) == 2, "a folder that is gone is made again"
    result = json.loads((folder / "slide_06/result.json").read_text())
    assert outcomes[6].numbers == {"test/accuracy": pytest.approx(result["test/accuracy"], rel=1e-5),
                                   "seconds": pytest.approx(result["seconds"], rel=1e-5)}
    assert [line.split()[0] for line in outcomes[6].lines] == ["test/accuracy"]
    assert (outcomes[7].numbers, outcomes[7].command) == ({}, command)
    assert outcomes[6].summary() == "-"
    assert running.run_sections([one("dltrain model=none")], [one("dltrain model=none")], folder, None) == {}
    assert "exit code 2" in capsys.readouterr().out


def test_what_another_command_of_the_slide_has_left_is_deleted(tmp_path, monkeypatch):
    """A sweep would take its jobs for its own. What the same command has left when it was killed is continued."""
    monkeypatch.setattr(running.sys, "executable", "true")
    job = tmp_path / "slide_06/job"
    for command, stays in (("dltrain -m lr=1,2", False), ("dltrain -m lr=1,2", True), ("dltrain -m lr=3,4", False)):
        job.mkdir(parents=True, exist_ok=True)
        stopped = tmp_path / "slide_06.json"
        if stopped.is_file():  # as a killed start leaves it
            stopped.write_text(json.dumps({**json.loads(stopped.read_text()), "exit_code": None}))
        assert running.run_command(one(command), "slide_06", tmp_path)["command"] == command
        assert job.exists() is stays


def test_results_are_stated_on_the_page_of_their_command_alone(tmp_path):
    section = read_sections()[45]
    outcome = results.Outcome(section.command, 12.3, 0, "2026-01-02", "dltrain 1", "a machine",
                              {"a > b": "SUPPORTED", "b > c": "UNDECIDED"}, {"some_number": 0.123456}, ["a line"])
    file = tmp_path / "results.json"
    results.write_outcomes({45: outcome}, file)
    outcomes = results.read_outcomes(file)
    assert outcomes == {45: outcome}
    text = results.with_results("recurrent_networks", outcomes)
    own = text.partition("## 45.")[2].partition("## 46.")[0]
    assert "| some_number | 0.1235 |" in own
    assert "| a > b | SUPPORTED |" in own
    assert own.index(section.command) < own.index("What came out") < own.index("Look at")
    assert text.count("some_number") == 1
    assert text.count("not yet run") == len([other for other in SECTIONS if other.chapter == section.chapter]) - 1
    assert "| 12 s | 1 SUPPORTED, 1 UNDECIDED |" in results.index_page(outcomes)
    changed = {45: outcome._replace(command="dltrain experiment=gradient_flow seed=1")}
    assert "some_number" not in results.with_results("recurrent_networks", changed)


# slow


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=NAMES)
def test_the_command_of_a_slide_runs_small(section, tmp_path):
    words = [*section.words, *shlex.split(section.options.get("smoke", ""))]
    placed, _ = running.placed(words, "slide", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "dltrain", *placed], cwd=tmp_path, env=environment, text=True,
                          capture_output=True, check=False)
    assert done.returncode in running.ENDED, done.stderr[-2000:]
    picture = section.options.get("picture")
    if picture:
        assert list(tmp_path.rglob(Path(picture).name)), picture
    if pattern := section.options.get("lines"):
        assert re.search(pattern, done.stdout, re.MULTILINE), done.stdout[-2000:]
    (file,) = [*tmp_path.glob("*/result.json"), None][:1]
    numbers = json.loads(file.read_text()) if file else {}
    for text in filter(None, section.options.get("numbers", "").split(";")):
        assert any(running.fnmatch.fnmatchcase(key, text.strip()) for key in numbers), text


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason='pip install -e ".[docs]"')
def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path):
    site = tmp_path / "site"
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-d", str(tmp_path / "doctrees"),
                           str(ROOT / "docs"), str(site)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for page in (*(f"tutorial/{chapter}" for chapter in pages.CHAPTERS), "tutorial/index", "images", "index"):
        assert (site / f"{page}.html").is_file(), page
    assert (site / "tutorial/recurrent_networks.html").read_text().count("<math") > 40
    for page in site.rglob("*.html"):
        requests = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"|<link[^>]*\shref=\"([^\"]+)\"",
                              page.read_text())
        assert not [url for pair in requests for url in pair if re.match(r"(https?:)?//", url)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import\s+|url\()[\"']?(https?:)?//", sheet.read_text()), sheet
