"""scripts/reproduce --embedded: what it calls equal."""

import importlib.util
import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from dltrain.errors import BUG, CHECK_FAILED, COMMAND, JOBS_FAILED, SUCCESS, UNDECIDED_CLAIM

SCRIPT = Path(__file__).parents[1] / "scripts/reproduce"


@pytest.fixture
def script(tmp_path, monkeypatch) -> ModuleType:
    """The script, with one stated result and a finished run of it."""
    loader = SourceFileLoader("reproduce", str(SCRIPT))
    spec = importlib.util.spec_from_loader("reproduce", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    stated = tmp_path / "stated.yaml"
    stated.write_text('one:\n  run: name=one\n  metrics: {test/accuracy: "0.75", test/loss: "1.2e-03"}\n')
    run_folder = tmp_path / "runs/one"
    run_folder.mkdir(parents=True)
    (run_folder / "result.json").write_text(json.dumps({"test/accuracy": 0.7512, "test/loss": 0.00118}))
    monkeypatch.setattr(module, "STATED", stated)
    monkeypatch.setattr(module, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(sys, "argv", ["reproduce", "--embedded"])
    return module


@pytest.mark.parametrize("code", [SUCCESS, CHECK_FAILED, UNDECIDED_CLAIM])
def test_values_with_the_stated_digits_are_equal(script, monkeypatch, capsys, code):
    monkeypatch.setattr(script, "run", lambda words: (code, 61.0))
    assert script.main() == 0
    assert "2 of 2 metrics are equal" in capsys.readouterr().out


def test_another_digit_is_different(script, monkeypatch, capsys):
    (script.FOLDER / "one/result.json").write_text(json.dumps({"test/accuracy": 0.7612, "test/loss": 0.00118}))
    monkeypatch.setattr(script, "run", lambda words: (0, 61.0))
    assert script.main() == 1
    out = capsys.readouterr().out
    assert "0.76" in out
    assert "DIFFERENT" in out
    assert "1 of 2 metrics are equal" in out


@pytest.mark.parametrize("code", [BUG, COMMAND, JOBS_FAILED, 130])
def test_a_command_that_failed_is_not_equal_although_an_older_run_is_there(script, monkeypatch, capsys, code):
    monkeypatch.setattr(script, "run", lambda words: (code, 61.0))
    assert script.main() == 1
    out = capsys.readouterr().out
    assert out.count("missing") == 2
    assert "0 of 2 metrics are equal" in out


def test_a_name_that_is_not_stated_ends_with_the_names_there_are(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", "--embedded", "two"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert "no result two; there are: one" in capsys.readouterr().err
