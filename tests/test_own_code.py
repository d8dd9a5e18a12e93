"""A fault in a user's own code: its file, line and source on the terminal, a traceback in the folder, an exit code of
its own; advice in one line where the model does not keep its contract."""

import re
import sys
from pathlib import Path

import pytest

from dltrain import own_code

CODE = '''\
import torch

class Base(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))

class Unnamed(Base):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.more = nn.Linear(3, 3)

class TwoInputs(Base):
    def forward(self, x, y):
        return self.net(x)

class Pair(Base):
    def forward(self, x):
        return self.net(x), x

class Hidden(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = [torch.nn.Linear(64, num_classes)]

    def forward(self, x):
        return self.layers[0](x.flatten(1))

class Late(Base):
    def forward(self, x):
        if self.training:
            raise KeyError("lost")
        return self.net(x)

class Cut(Base):
    def forward(self, x):
        return self.net(x[:, :, :4])

class Odd(Base):
    def __init__(self, num_classes):
        raise ValueError("num_classes must be odd")
'''
YAML = "# @package _global_\n# {name}\ndefaults:\n  - /task: classification\nmodel:\n  _target_: mine.{name}\n" \
       "  num_classes: ${{data.num_classes}}\n"


@pytest.fixture
def train(dltrain, tmp_path, monkeypatch):
    """train("Pair") -> exit code and standard error of a run of that class, which has two steps."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "conf/model").mkdir(parents=True)

    def command(name: str, *words: str) -> tuple[int, str]:
        (tmp_path / f"conf/model/{name}.yaml").write_text(YAML.format(name=name))
        code, _, err = dltrain("--config-dir", "conf", f"model={name}", "trainer=smoke", "name=a", *words)
        return code, err

    return command


def line_of(text: str) -> int:
    return CODE[: CODE.index(text)].count("\n") + 1


@pytest.mark.parametrize(("name", "message", "function", "source"), [
    ("Unnamed", "NameError: name 'nn' is not defined, while building model (Unnamed)", "__init__",
     "self.more = nn.Linear(3, 3)"),
    ("Late", "KeyError: 'lost'", "forward", 'raise KeyError("lost")')])
def test_an_exception_shows_the_users_line(name, message, function, source, train, tmp_path):
    code, err = train(name)
    assert code == 8
    assert err == (f"dltrain: error: {message}\n  mine.py:{line_of(source)}, in {function}\n    {source}\n"
                   f"  the traceback is in outputs/a/error.txt\n")
    text = (tmp_path / "outputs/a/error.txt").read_text()
    assert text.startswith(f"{message}\n\nTraceback")
    assert f'mine.py", line {line_of(source)}, in {function}' in text


@pytest.mark.parametrize(("name", "message", "source"), [
    ("Cut", "{'images': (2, 1, 8, 8), 'labels': (2,)}: addmm: mat1 and mat2 shapes cannot be multiplied",
     "return self.net(x[:, :, :4])"),
    ("Odd", "model (Odd): num_classes must be odd", 'raise ValueError("num_classes must be odd")')])
def test_a_refusal_that_comes_from_the_users_code_shows_its_line(name, message, source, train, tmp_path):
    code, err = train(name)
    assert code == 2
    assert message in err
    assert f"  mine.py:{line_of(source)}, in " in err
    assert f"    {source}\n" in err
    assert (tmp_path / "outputs/a/error.txt").is_file()


@pytest.mark.parametrize(("name", "advice"), [
    ("TwoInputs", "model=TwoInputs does not take the batches of data=digits: TwoInputs.forward() missing 1 required "
                  "positional argument: 'y'"),
    ("Pair", "model=Pair does not take the batches of data=digits: Pair returns a tuple, but Classification needs a "
             "tensor"),
    ("Hidden", "the model has no parameters to train: its layers must be attributes of the module (a list of layers an "
               "nn.ModuleList), and task.freezing must leave some of them"),
    ("Bases", "model._target_=mine.Bases: mine has no 'Bases'; did you mean 'Base'?")])
def test_a_model_that_breaks_its_contract_is_one_line_of_advice(name, advice, train, tmp_path):
    code, err = train(name)
    assert (code, err) == (2, f"dltrain: error: {advice}\n")
    assert not (tmp_path / "outputs/a").exists()


def test_a_syntax_error_of_a_module_is_shown(train, tmp_path):
    (tmp_path / "mine.py").write_text("import torch\nclass Broken(:\n")
    code, err = train("Broken")
    assert code == 2
    assert re.search(r"invalid syntax.*mine.py, line 2", err)


def test_a_bug_in_dltrain_has_another_code_and_a_traceback(train, tmp_path, monkeypatch):
    def broken(*_: object) -> str:
        raise KeyError("x")

    monkeypatch.setattr("dltrain.run.introduction", broken)
    monkeypatch.setattr(own_code, "is_own", lambda file: False)  # for `broken` stands in a file of the tests
    code, err = train("Late")
    assert code == 1
    assert err == "dltrain: error: KeyError: 'x'\n  the traceback is in outputs/a/error.txt\n"
    assert "in broken" in (tmp_path / "outputs/a/error.txt").read_text()


def test_show_names_the_line_of_a_transform(dltrain, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "conf/augment").mkdir(parents=True)
    (tmp_path / "conf/augment/mine.yaml").write_text(
        "# A transform of my own\ndefaults:\n  - digits\non_pixels: [{_target_: blurs.Blur}]\n")
    (tmp_path / "blurs.py").write_text(
        "class Blur:\n    def __call__(self, batch, rng):\n        return batch.imags\n")
    code, _, err = dltrain("show", "--config-dir", "conf", "augment=mine")
    assert code == 8
    assert err.splitlines()[1:] == ["  blurs.py:3, in __call__", "    return batch.imags"]


def test_frames_of_packages_are_not_the_users():
    assert own_code.is_own(__file__)
    assert not own_code.is_own(own_code.__file__)
    assert not own_code.is_own(pytest.__file__)
    assert not own_code.is_own(str(Path(re.__file__)))
    assert not own_code.is_own("<string>")
