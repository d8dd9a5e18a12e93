"""Hostile and damaged inputs of all kinds, as scripts/hostile gives them to dltrain, and what was wrong with some."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dltrain import checkpoints, weights
from dltrain.config.compose import compose
from dltrain.data import character_files
from dltrain.data.cache import read_json, write_json
from dltrain.drawing.style import new_figure, save_figure
from dltrain.drawing.tables import write_csv
from dltrain.errors import CheckpointError, MachineError, UserError
from dltrain.run_code import describe_changed_code
from dltrain.run_dir import RunDir
from dltrain.stored_files import read_rows, repair_metrics
from tests.faults import feeding, input_base, inputs
from tests.faults.feeding import Case, Outcome

# All kinds of inputs


@pytest.fixture(scope="module")
def feeder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLTRAIN_CACHE", str(folder / "cache"))
        input_base.make_base(folder / "base", folder / "canary", feeding.call)
        patch.syspath_prepend(folder / "base/payload")
        yield feeding.Feeder(folder / "base", folder / "canary", inputs.kinds(folder / "canary"))


def row_39_k(feeder: feeding.Feeder, work: Path, kinds: list[str], count: int) -> None:
    faults = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        case, _, wrong, _ = feeder.feed(kind, f"39 {number}", work)
        faults += [f"{kind}, {case.what}: {fault}" for fault in wrong]
    assert not faults


@pytest.mark.slow
def test_row_39_k_hostile_and_damaged_inputs(feeder, tmp_path):
    """Configs, run folders, links, checkpoints, weights, caches, sweeps, comparisons and data sets that are damaged or
    hostile are refused in one line, or give the result of the intact ones; no payload runs, none takes over 5 s more.
    `scripts/hostile` does it with 300."""
    row_39_k(feeder, tmp_path / "work", list(feeder.kinds), 60)


@pytest.mark.slow
def test_row_39_k_control(feeder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "find_fault", lambda path: None)
    monkeypatch.setattr(weights, "find_fault", lambda path: None)
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, weights_only, **keys: load(*args, weights_only=False, **keys))
    with pytest.raises(AssertionError, match="the payload ran"):
        row_39_k(feeder, tmp_path / "work", ["checkpoint", "weights"], 20)


INTACT = Outcome(0, "accuracy 0.5\n0.3 s", "", 1.0, 1.0, "a")
WRONG = {"the payload ran": INTACT, "exit code 1": INTACT._replace(code=1, err="KeyError: 'x'"),
         "exit code 8": INTACT._replace(code=8, err="dltrain: error: x"),
         "a traceback": INTACT._replace(code=2, err='Traceback\n  File "dltrain/run.py", line 3\ndltrain: error: x\n'),
         "2 lines of error": INTACT._replace(code=4, err="dltrain: error: x\ndltrain: error: y\n"),
         "0 lines of error": INTACT._replace(code=4),
         "more than an error": INTACT._replace(code=3, err="x\ndltrain: error: y"),
         "exit code 0 with an error": INTACT._replace(err="dltrain: error: x"),
         "a wrong success: another": INTACT._replace(result="b", out="accuracy 0.4\n0.2 s"),
         "a wrong success: 3 lost": INTACT._replace(fault="3 lost"),
         "memory": INTACT._replace(code=6, err="dltrain: error: out of memory"),
         "6.0 s longer": INTACT._replace(cpu_seconds=7.0), "9.0 s longer": INTACT._replace(seconds=10.0)}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_noticed(fault, tmp_path):
    case = Case("", [], feeding.nothing)
    if fault == "the payload ran":
        (tmp_path / "canary").touch()
    assert any(line.startswith(fault) or fault in line
               for line in feeding.faults_of(case, WRONG[fault], INTACT, tmp_path / "canary"))


@pytest.mark.parametrize("outcome", [
    INTACT, INTACT._replace(out="accuracy 0.5\n0.9 s", seconds=5.5),
    INTACT._replace(result="b", out="w.pth is damaged"),
    INTACT._replace(code=2, err="dltrain: error: trainer.memory_format\n"),
    INTACT._replace(code=3, err="x.py:3: UserWarning: y\n  warn()\ndltrain: error: z\n")])
def test_what_is_right_is_no_fault(outcome, tmp_path):
    assert feeding.faults_of(Case("", [], feeding.nothing), outcome, INTACT, tmp_path / "canary") == []


def test_the_time_of_a_folder_is_no_other_result():
    first, second = (feeding.printed(f"loss 1.0\noutputs/eval/2026-11-26_20-12-{at}/eval.json") for at in (22, 32))
    assert first == second
    assert feeding.printed("loss 1.0") != feeding.printed("loss 2.0")


# What was wrong


@pytest.mark.parametrize("content", ["rows", {"/a.png": [3, 4, "1a", False]}, {"files": [["a", 1, 2]], "train": "ab"}])
def test_a_cache_with_a_flipped_bit_is_not_used(content, tmp_path):
    write_json(tmp_path / "x.json", content)
    raw = (tmp_path / "x.json").read_bytes()
    assert read_json(tmp_path / "x.json") == content
    for place in range(len(raw)):
        (tmp_path / "x.json").write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1:])
        assert read_json(tmp_path / "x.json") in (None, content)
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "x.json") is None


def test_a_cached_text_with_a_flipped_bit_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(character_files, "CACHED_FROM", 10)
    file = tmp_path / "a.txt"
    file.write_text("a text of more than ten characters " * 9)
    os.utime(file, (time.time() - 99,) * 2)
    first = character_files.encode_files([file], "utf-8")
    assert type(first.indices) is np.memmap
    expected = first.indices.tolist()
    (cached,) = [path for path in (tmp_path / "cache/texts").iterdir() if not path.suffix]
    raw = bytearray(cached.read_bytes())
    raw[40] ^= 2
    cached.write_bytes(raw)
    again = character_files.encode_files([file], "utf-8")
    assert (again.indices.tolist(), again.train, again.others) == (expected, first.train, first.others)


def test_defaults_that_name_one_another_are_one_line(tmp_path, dltrain):
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/evil.yaml").write_text("# @package _global_\ndefaults: [evil]\n")
    for verb in (["why", "seed"], ["--cfg", "job"], ["-m", "seed=1,2"], ["bench"]):
        assert dltrain("--config-dir", "conf", *verb, "experiment=evil")[::2] == (
            2, "dltrain: error: conf/experiment/evil.yaml: the defaults lists lead in a circle: it includes itself\n")
    Path("conf/experiment/evil.yaml").write_text("# @package _global_\ndefaults: [/recipe/evil]\n")
    Path("conf/recipe").mkdir()
    Path("conf/recipe/evil.yaml").write_text("# @package _global_\ndefaults: [/experiment/evil]\n")
    code, _, err = dltrain("--config-dir", "conf", "why", "seed", "experiment=evil")
    assert (code, err.count("\n")) == (2, 1)
    assert "the defaults lists lead in a circle" in err


@pytest.mark.parametrize("text", [
    "defaults: 5", "defaults: null", "defaults: [[1]]", "defaults: [null]", "defaults: [{}]",
    "defaults: [{a: b, c: d}]", "defaults: [{a: [1]}]", "defaults: [{/model: {a: 1}}]", "defaults: [{true: x}]", "5",
    "- a", "defaults: [{/: x}]", "defaults: [{override /: x}]"])
def test_defaults_of_another_type_are_one_line_with_the_file(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/evil.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(UserError, match=r"conf/experiment/evil\.yaml: not a config: .* list of names and of"):
        compose(["experiment=evil"], "conf")


def test_a_study_that_no_experiment_has_chosen_has_a_name(dltrain):
    Path("conf/recipe").mkdir(parents=True)
    Path("conf/recipe/evil.yaml").write_text("# @package _global_\nstudy: {_target_: os.system}\n")
    code, _, err = dltrain("--config-dir", "conf", "recipe=evil")
    assert (code, err.count("\n")) == (2, 1)
    assert "os is a module of Python itself" in err


def test_a_name_with_a_line_break_stays_on_one_line():
    assert str(UserError("key 'a\nb\x1b[31m' é 日本")) == "key 'a\\nb\\x1b[31m' é 日本"


def test_tables_and_pictures_replace_files_and_no_folders(tmp_path):
    (tmp_path / "x").write_text("mine")
    for name, write in (("a.csv", lambda file: write_csv(file, ["a", "b"], [[1, "x,y"]])),
                        ("a.png", lambda file: save_figure(new_figure(1, 1), file))):
        (tmp_path / name).symlink_to(tmp_path / "x")
        write(tmp_path / name)
        assert not (tmp_path / name).is_symlink()
        (tmp_path / "folder" / name).mkdir(parents=True)
        with pytest.raises(MachineError, match=rf"cannot save .*{name}: Is a directory"):
            write(tmp_path / "folder" / name)
    assert (tmp_path / "a.csv").read_bytes() == b'a,b\r\n1,"x,y"\r\n'
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("value", [5, None, {"a": 1}])
def test_own_code_that_has_no_digest_is_named(value, tmp_path):
    (tmp_path / "own_code.json").write_text(json.dumps({"mine.py": value}))
    with pytest.raises(CheckpointError, match=r"own_code\.json: damaged \(no sha256 of 'mine\.py'\); delete it"):
        describe_changed_code(RunDir(tmp_path))


@pytest.mark.parametrize("in_checkpoint", [False, True])
def test_tensors_that_stand_for_more_than_the_file_has_are_refused(in_checkpoint, tmp_path):
    tensors = {"head.weight": torch.zeros(1).expand(3_000_000_000), "head.bias": torch.zeros(3)}
    content: dict[str, Any] = {"state_dict": tensors, "global_step": 1, "dltrain": {}} if in_checkpoint else tensors
    torch.save(content, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=r"w\.ckpt: damaged \(its tensors stand for 12\.0 GB, of which the"):
        checkpoints.read(tmp_path / "w.ckpt") if in_checkpoint else weights.read_file(tmp_path / "w.ckpt", "w.ckpt")
    torch.save({"a": torch.zeros(1).expand(1000)}, tmp_path / "w.pth")
    assert weights.read_file(tmp_path / "w.pth", "w")["a"].shape == (1000,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_exported_safetensors_with_a_flipped_bit_are_refused(dtype, tmp_path):
    tensors = {"a": torch.ones(3, 4, dtype=dtype), "b": torch.zeros((), dtype=dtype), "c": torch.zeros(0, dtype=dtype)}
    weights.write_file(tensors, file := tmp_path / "w.safetensors")
    assert all(torch.equal(value, tensors[name]) for name, value in weights.read_file(file, "w").items())
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"w: damaged \(checksum of the tensors\)"):
        weights.read_file(file, "w")


def test_readings_behind_those_of_the_checkpoint_are_not_read(tmp_path, monkeypatch):
    file = tmp_path / "metrics.csv"
    file.write_text("step,epoch,train/loss\n1,1,0.5\n2,1,0.4\nx\n")
    assert repair_metrics(file, 2) == ""
    assert read_rows(file, 2).fault == ""
    assert "line 4 is no reading" in read_rows(file).fault
    monkeypatch.setattr("dltrain.stored_files.MOST_BYTES", 20)
    assert read_rows(file).fault == "of 0 MB, more than such a file has"
    file.unlink()
    os.mkfifo(file)
    assert read_rows(file).fault == "not a file"


def test_the_same_seed_makes_the_same_input(tmp_path):
    from tests.faults.damaged_runs import damage

    damaged = []
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("a: 1\nb: [2, 3]\n")
        damaged.append((*damage(tmp_path / name, random.Random(4)), (tmp_path / name / "config.yaml").read_bytes()))
    assert damaged[0] == damaged[1]
