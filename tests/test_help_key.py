"""`dltrain help` of keys, groups, choices and codes, without Hydra and torch; the index of keys against Hydra's own."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import dltrain as package
from dltrain.commands import help as overview_text
from dltrain.commands.help_key import COLUMNS, PURPOSES
from dltrain.config import compose, groups, schema
from dltrain.config.examples import example
from dltrain.config.key_index import KeyIndex
from dltrain.errors import EXIT_CODES, SIGNALS, InterruptedRun, UserError
from dltrain.verbs import VERBS

ROOT = Path(package.__file__).parents[1]
INDEX, SOURCES = KeyIndex(), compose.Sources()
CONTEXT = {"model/backbone": ["model=fcn8s"]}  # a model that takes a choice of this group


def composed_of(group: str, name: str) -> compose.Composed | None:
    """What Hydra makes of a choice; None where its name does not say which other choices it is for."""
    if group in ("", "task"):
        return compose.compose_unchecked([], compose.Sources()) if (group, name) in INDEX.default_choices else None
    words = [*CONTEXT.get(group, []), f"{group}={name}"]
    return compose.compose_unchecked(words, compose.Sources())


@pytest.mark.parametrize("group", ["", "task", *groups.GROUPS])
def test_the_files_of_each_choice_are_those_that_hydra_merges_in_its_order(group):
    compared = 0
    for (other, name), places in INDEX.places.items():
        if other != group or (composed := composed_of(group, name)) is None:
            continue
        merged = [composed.places.index(place) for place in places]  # fails for another file or package
        assert merged == sorted(merged), name
        compared += 1
    assert compared >= 1


def test_a_default_is_what_a_run_without_a_recipe_has():
    composed = compose.compose_unchecked(["recipe=none"], compose.Sources())
    for key in INDEX.settings:
        stated = INDEX.default(key)
        last = [schema.assignments(*place)[key].value for place in composed.places
                if key in schema.assignments(*place)]
        if any(type(value) is dict for value in last):
            continue
        assert (stated and stated[1].value) == (last[-1] if last else None), key


@pytest.mark.parametrize("group", [*groups.GROUPS, "task", ""])
def test_every_example_composes_and_sets_another_value(group):
    """Of each key that has a rule, once for each file that states it."""
    compared = 0
    for key in INDEX.settings:
        for setting in INDEX.definitions(key):
            of_group, _ = INDEX.choice_with(key, setting)
            if of_group != group or not setting.rule or key.endswith("from_run"):  # which must be there
                continue
            command = example(INDEX, key, setting)
            words = shlex.split(command)
            assert words[0] == "dltrain"
            value = compose.compose(words[1:], sources=SOURCES).overrides[-1].value()
            assert value != setting.value or setting.rule.startswith(("mapping", "list")), command
            compared += 1
    assert compared >= (group not in ("recipe", "experiment"))


def test_a_key_is_explained(dltrain):
    code, out, err = dltrain("help", "lr")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "task.optimizer.lr    short: lr"
    assert lines[1] == "  float > 0: the peak of the schedule"
    place = re.search(r"default 0\.1 of task=classification, set in (\S+):(\d+)", out)
    assert place
    assert "lr: 0.1" in (ROOT / place[1]).read_text().splitlines()[int(place[2]) - 1]
    assert re.search(r"^    0\.0025 +model=faster_rcnn_resnet50$", out, re.MULTILINE)
    assert "  dltrain task.optimizer.lr=0.2" in lines
    assert max(map(len, lines)) <= COLUMNS


def test_a_key_that_several_choices_define_says_what_each_means_by_it(dltrain):
    out = dltrain("help", "model.depth")[1]
    assert "int >= 8: layers with weights" in out
    assert "imagenet_resnet: one of 18 | 34 | 50 | 101 | 152" in out
    assert "only of some choices" in dltrain("help", "data.sizes_px")[1]


@pytest.mark.parametrize("word", [*PURPOSES, "task.optimizer", "data=cifar10", "resnet56", "augment=strong",
                                  *(key for key in INDEX.settings if key.startswith(("trainer.", "model.", "data.")))])
def test_every_answer_fits_eighty_columns(word, dltrain):
    code, out, err = dltrain("help", word)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= COLUMNS


def test_a_choice_is_explained_with_all_that_it_sets(dltrain):
    code, out, _ = dltrain("help", "cifar10")
    assert (code, out) == (0, dltrain("help", "data=cifar10")[1])
    assert "chooses augment=cifar" in out
    config = compose.compose(["data=cifar10", "recipe=none"]).config.data
    for key, value in config.items():
        assert f"  data.{key}={schema.format_value(value)}" in out


def test_own_configs_are_explained_too(dltrain, tmp_path):
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text(
        "# @package _global_\n# Mine\ndefaults:\n  - /task: classification\nmodel:\n  _target_: mine.Mine\n"
        "  sides: 3  # int >= 3: of the polygon\n")
    code, out, _ = dltrain("help", "model.sides", "--config-dir", "conf")
    assert code == 0
    assert "int >= 3: of the polygon" in out
    assert "3 of model=mine" in out
    assert "  dltrain model=mine model.sides=6" in out


@pytest.mark.parametrize(("word", "message"), [
    ("lrr", "did you mean 'lr'?"), ("task.optimizer.lrr", "did you mean 'task.optimizer.lr'?"),
    ("predct", "did you mean 'predict'?"), ("cifar11", "did you mean 'data=cifar10'?"),
    ("modell", "did you mean 'model'?"),
    ("model.freezing", "did you mean"), ("xyzzy", "dltrain help lists the verbs"),
    ("data.bucketed", "use data.bucket_by_length")])
def test_a_wrong_word_is_answered_with_the_nearest(word, message, dltrain):
    code, out, err = dltrain("help", word)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_help_imports_neither_hydra_nor_torch():
    program = ("import sys\nfrom dltrain.cli import main\nsys.argv = ['dltrain', 'help', 'task.optimizer.lr']\n"
               "code = main()\nassert not {'torch', 'hydra', 'omegaconf'} & {*sys.modules}\nsys.exit(code)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_overview_fits_a_screen_and_names_every_verb():
    lines = overview_text.overview().splitlines()
    assert len(lines) <= 46
    assert max(map(len, lines)) <= 80
    for name, verb in VERBS.items():
        assert any(name in line.split() and verb.purpose in line for line in lines), name
        assert (ROOT / f"dltrain/commands/{verb.file}.py").is_file()
    order = [verb.group for verb in VERBS.values()]
    assert order == sorted(order, key=order.index), "the verbs of a group stand together"


def test_the_glossary_has_every_verb():
    row = next(line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| verb |"))
    assert {*VERBS} == {*re.search(r"a command: ([^|]+) \|", row)[1].split(", ")}  # type: ignore[index]


def test_the_docs_have_the_table_of_exit_codes(dltrain):
    rows = re.findall(r"^\| (\d+|128 \+ n) \| (.+) \|$", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
    assert {int(code.split()[0]): meaning for code, meaning in rows} == EXIT_CODES
    printed = " ".join(dltrain("help", "codes")[1].split())
    for code, meaning in EXIT_CODES.items():
        assert f"{'128 + n' if code == SIGNALS else code} {meaning}" in printed


def test_the_codes_in_the_code_are_those_of_the_table():
    kinds: list[type[UserError]] = [UserError, *UserError.__subclasses__()]
    assert {kind.exit_code for kind in kinds} <= EXIT_CODES.keys()
    assert InterruptedRun(2, "").exit_code == SIGNALS + 2
    for file in (ROOT / "dltrain").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if file.name != "errors.py" and isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = {target.id for target in node.targets if isinstance(target, ast.Name)}
                assert not any(re.search(r"exit_?code", name, re.IGNORECASE) for name in names), f"{file}:{node.lineno}"
            if isinstance(node, ast.FunctionDef) and node.name == "run" and file.parent.name == "commands":
                codes = {one.value.value for one in ast.walk(node)
                         if isinstance(one, ast.Return) and isinstance(one.value, ast.Constant)}
                assert codes <= {0}, f"{file}: a verb returns a number that has no name in errors.py"


