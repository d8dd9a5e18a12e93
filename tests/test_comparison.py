"""Several runs that are trained and compared by a yaml alone."""

import csv
import io
import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import pytest
import torch

from dltrain import cli, results
from dltrain.callbacks.stopping import StopAtStep
from dltrain.drawing import curves as curves_module
from dltrain.errors import UNDECIDED_CLAIM, UserError
from dltrain.run_dir import RunDir
from dltrain.studies import comparison, named_runs
from dltrain.studies.claims import parse_claim
from dltrain.studies.named_runs import parse_run
from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("without_figures")

Command = Callable[..., tuple[int, str, str]]

# Two nets of 8 layers on 96 digits, 3 batches an epoch, and a comparison of them in a user's own folder.
YAML = """\
# @package _global_
# Does a shortcut help?
defaults:
  - override /recipe: none
study:
  _target_: dltrain.studies.comparison.study
  common: [model=mine, data._target_=tests.tiny.FewDigits, data.batch_size=32, trainer=cpu, trainer.max_epochs=2]
  more: []
  runs: {plain net: [model.shortcut=none], residual: [model.shortcut=A]}
  seeds: [0]  # list of int >= 0
  columns: {test/accuracy: test accuracy, seconds_per_epoch: seconds per epoch, parameters: parameters}
  curves: [train/loss, val/accuracy]
  claims: ["train/loss: residual < plain net", "train/loss: residual >= plain net"]
"""
MODEL = "# @package _global_\n# Eight layers\ndefaults:\n  - /model/base/cifar_resnet\nmodel: {depth: 8}\n"


def write_configs(folder: Path, **changes: str) -> None:
    """Writes the experiment `shortcut` and its model. `changes`: other values of keys of the study; one epoch then."""
    lines = YAML.splitlines()
    if changes:
        lines = [line.replace("max_epochs=2", "max_epochs=1") for line in lines]
    for key, value in changes.items():
        lines = [f"  {key}: {value}" if line.startswith(f"  {key}:") else line for line in lines]
    for name, text in (("experiment/shortcut", "\n".join(lines)), ("model/mine", MODEL)):
        file = folder / f"conf/{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Command:
    """command("name=a", key="value") -> exit code, standard output and error of the experiment with changes."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, **changes: str) -> tuple[int, str, str]:
        write_configs(tmp_path, **changes)
        return run_command(monkeypatch, capsys, "--config-dir", "conf", "experiment=shortcut", *words)

    return call


class Compared(NamedTuple):
    """The experiment with the seeds 3 and 4: its folder, what it printed, and the curves and bars of its picture."""

    path: Path
    output: str
    panels: tuple[Any, Any]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Compared:
    folder = tmp_path_factory.mktemp("compared")
    write_configs(folder)
    panels: list[tuple[Any, Any]] = []

    def draw(curves, bars, file) -> None:
        panels.append((curves, bars))
        curves_module.draw_comparison(curves, bars, file)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as output:
        patch.chdir(folder)
        patch.setattr(comparison, "draw_comparison", draw)
        patch.setattr("sys.argv", ["dltrain", "--config-dir", "conf", "experiment=shortcut", "name=a", "seed=3",
                                   "study.seeds=[0,1]"])
        assert cli.main() == UNDECIDED_CLAIM
    return Compared(folder / "outputs/a", output.getvalue(), *panels)


def result_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "result.json").read_text())


def weights_of(path: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(path / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def last_reading(path: Path, metric: str) -> float:
    return [float(row[metric]) for row in RunDir(path).read_metrics() if row[metric]][-1]


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_runs_of_several_seeds_are_compared_by_their_means(compared):
    path, out, (curves, bars) = compared
    runs = {name: [path / f"{folder}-seed{seed}" for seed in (3, 4)]
            for name, folder in (("plain net", "plain_net"), ("residual", "residual"))}
    losses = {name: mean(last_reading(run, "train/loss") for run in folders) for name, folders in runs.items()}
    result, accuracies = result_of(path), {}
    for name, folders in runs.items():
        assert [result_of(run)["seed"] for run in folders] == [3, 4]
        accuracies[name] = [result_of(run)["test/accuracy"] for run in folders]
        seconds = mean(result_of(run)["seconds"] / 2 for run in folders)
        assert result[f"test/accuracy, {name}"] == pytest.approx(mean(accuracies[name]))
        assert result[f"train/loss, {name}"] == pytest.approx(losses[name])
        assert result[f"seconds_per_epoch, {name}"] == pytest.approx(seconds)
        assert f"{mean(accuracies[name]):.4g} ± {stdev(accuracies[name]):.2g}" in out
    less = losses["residual"] < losses["plain net"]
    for sign, is_so in (("<", less), (">=", not less)):
        assert result[f"claim, train/loss: residual {sign} plain net"] == "UNDECIDED"
        assert (f"  UNDECIDED  train/loss: residual {sign} plain net: {losses['residual']:.4g} of residual {sign} "
                f"{losses['plain net']:.4g} of plain net; by {'+' if is_so else '-'}") in out
    assert out.count(" with 2 seeds; a verdict needs 3\n") == 2
    rows = read_csv(path / "comparison.csv")
    assert [(row["run"], row["seed"]) for row in rows] == [
        ("plain net", "3"), ("plain net", "4"), ("residual", "3"), ("residual", "4")]
    assert float(rows[3]["train/loss"]) == last_reading(runs["residual"][1], "train/loss")
    assert [*curves] == ["train/loss", "val/accuracy"]
    assert curves["val/accuracy"]["residual"][0] == [3, 6]
    assert bars == {"test accuracy": accuracies}
    assert (path / "results.png").stat().st_size > 5000
    (line,) = (runs["residual"][1] / "command.txt").read_text().splitlines()
    assert line.endswith(" trainer.max_epochs=2 model.shortcut=A seed=4")


def test_a_run_may_start_from_the_weights_of_another(tmp_path, command):
    runs = "{source: [], tuned: {overrides: [task.freezing.until=all], pretrained_from: source}}"
    code, _, err = command("name=p", "study.seeds=[0,1]", runs=runs, claims="[]")
    assert (code, err) == (0, "")
    sources, tuned = ([tmp_path / f"outputs/p/{name}-seed{seed}" for seed in (0, 1)] for name in ("source", "tuned"))
    for source, run in zip(sources, tuned, strict=True):
        before, after = weights_of(source, "best"), weights_of(run)
        changed = {key for key, value in after.items() if key.startswith("model.") and not value.equal(before[key])}
        assert changed == {"model.head.weight", "model.head.bias"}


def test_a_run_without_a_metric_that_others_have_has_a_dash(tmp_path, command, real_pictures):
    """Neither the first run has it nor the last one; a curve of it is drawn for the one that has."""
    runs, metric = "{free: [], clipped: [trainer.gradient_clip_norm=0.1], wide: []}", "train/clipped_fraction"
    code, out, err = command("name=d", runs=runs, columns=f"{{{metric}: clipped}}", claims="[]", curves=f"[{metric}]")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line for line in lines if line[:1] in (["free"], ["clipped"], ["wide"]) and len(line) == 2] == [
        ["free", "-"], ["clipped", "1"], ["wide", "-"]]
    assert [row[metric] for row in read_csv(tmp_path / "outputs/d/comparison.csv")] == ["", "1.0", ""]
    assert {key for key in result_of(tmp_path / "outputs/d") if key.startswith(metric)} == {f"{metric}, clipped"}


def test_a_killed_comparison_resumes(tmp_path, command, compared, monkeypatch):
    step_ended = StopAtStep.on_train_batch_end

    def kill(self, trainer, *args):
        step_ended(self, trainer, *args)
        if trainer.global_step == 4 and "residual" in trainer.default_root_dir:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StopAtStep, "on_train_batch_end", kill)
        assert command("name=b", "seed=3")[0] == 143
    path = tmp_path / "outputs/b"
    assert not (path / "result.json").exists()
    first = (path / "plain_net-seed3/checkpoints/last.ckpt").stat().st_mtime_ns
    code, out, err = command("name=b", "seed=3")
    assert (code, err) == (10, "")
    assert "outputs/b/plain_net-seed3 is finished after 6 steps, nothing to do" in out
    assert re.search(r"resuming outputs/b/residual-seed3 from step [45] of 6\n", out)  # the signal may come in step 5
    assert (path / "plain_net-seed3/checkpoints/last.ckpt").stat().st_mtime_ns == first
    for name in ("plain_net-seed3", "residual-seed3"):
        expected, weights = weights_of(compared.path / name), weights_of(path / name)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in weights.items())


def test_more_seeds_are_added_to_an_experiment_that_has_ended(tmp_path, command):
    """Its finished runs are not repeated, and three seeds decide what two did not."""
    assert command("name=g", "study.seeds=[0,1]")[0] == UNDECIDED_CLAIM
    path = tmp_path / "outputs/g"
    weights = {file: file.stat().st_mtime_ns for file in path.glob("*/checkpoints/last.ckpt")}
    code, out, err = command("name=g", "study.seeds=[0,1,2]")
    assert (code in (0, 9, 10), err) == (True, "")
    assert out.count(" is finished after 6 steps, nothing to do") == 4
    assert {file: file.stat().st_mtime_ns for file in weights} == weights
    assert len([*path.glob("*-seed2/result.json")]) == 2
    assert "; 3 seeds)" in out
    assert command("name=g", "study.seeds=[0,1,2]")[1].count("is finished, nothing to do") == 1
    code, out, err = command("name=g", "study.seeds=[0,1]")
    assert code == 2
    assert "began with another config: study.seeds ([0, 1, 2], now [0, 1])" in err


def test_more_seeds_that_are_stopped_are_not_called_finished(tmp_path, command, monkeypatch):
    assert command("name=g", "study.seeds=[0,1]")[0] == UNDECIDED_CLAIM
    path, train = tmp_path / "outputs/g", named_runs.run.train

    def stop_at_seed_2(config, *arguments, **keys):
        if config.seed == 2:
            raise KeyboardInterrupt
        return train(config, *arguments, **keys)

    monkeypatch.setattr(named_runs.run, "train", stop_at_seed_2)
    code, _, _ = command("name=g", "study.seeds=[0,1,2]")
    assert code == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = command("name=g", "study.seeds=[0,1,2]")
    assert (code in (0, 9, 10), err, "; 3 seeds)" in out) == (True, "", True)
    before = {name: (path / name).read_bytes() for name in ("config.yaml", "result.json")}
    assert command("name=g", "study.seeds=[0,1,2,3,3]")[0] == 2
    assert {name: (path / name).read_bytes() for name in before} == before, "what is refused changes nothing"


@pytest.mark.parametrize(("word", "message"), [
    ("study.claims=['train/loss: residul > plain net']",
     "study.claims: 'train/loss: residul > plain net': no run 'residul'; did you mean 'residual'?"),
    ("study.claims=['train/loss residual']",
     "study.claims: 'train/loss residual': must be 'metric: run > run', with >, <, >= or <=, as 'metric: run >= run - "
     "0.01', 'metric: run < 0.9 * run' or 'metric: run > 0.5'"),
    ("study.claims=['train/los: residual > plain net']",
     "study.claims: no run has 'train/los'; did you mean 'train/loss'?"),
    ("+study.columns.second=seconds", "study.columns: no run has 'second'; did you mean 'seconds'?"),
    ("+study.bars=[second]", "study.bars: no run has 'second'; did you mean 'seconds'?"),
    ("study.curves=[train/acuracy]", "study.curves: no run has 'train/acuracy'; did you mean 'train/accuracy'?"),
    ("study.more=['model=plan56']", "study.runs.plain net: unknown model 'plan56'; did you mean 'plain56'?"),
    ("+study.runs.plain_net=[]", "study.runs: 'plain net' and 'plain_net' would share the folder plain_net"),
    ("+study.runs.tuned={pretrained_from: tuned}",
     "study.runs.tuned.pretrained_from=tuned: must be a run that stands before it"),
    ("+study.runs.tuned={pretraned_from: residual}",
     "study.runs.tuned: unknown key 'pretraned_from'; it takes overrides and pretrained_from"),
    ("study.seeds=[]", "study.seeds: must not be empty"),
    ("study.seeds=[1,0,1]", "study.seeds: 1 is there twice, and gives the same run twice; leave one out"),
    ("+study.runs.more=null", "study.runs.more: must be a list of overrides, as [model=resnet20], but is None"),
    ("study.runs={more: []}",
     "study.runs: its entries cannot be replaced all at once; +study.runs.NAME=VALUE adds one, study.runs.NAME=VALUE "
     "changes one, ~study.runs.NAME removes one"),
    ("study.seeds=[a]", "study.seeds=['a']: each must be an integer >= 0"),
])
def test_what_is_wrong_is_refused_before_the_first_run(tmp_path, command, word, message):
    code, _, err = command("name=c", word)
    assert (code, err) == (2, f"dltrain: error: {message}\n")
    assert not (tmp_path / "outputs/c").exists()


def test_the_metrics_that_there_are_stand_in_a_refusal(command):
    _, _, err = command("name=c", "study.curves=[nothing]")
    assert err == ("dltrain: error: study.curves: no run has 'nothing'; there are: train/loss, train/accuracy, "
                   "train/gradient_norm, train/clipped_fraction, lr, images_per_second\n")


def test_columns_and_runs_must_not_be_empty(command):
    for key in ("columns", "runs"):
        assert command("name=c", **{key: "{}"})[::2] == (2, f"dltrain: error: study.{key}: must not be empty\n")


def test_a_study_can_be_swept(tmp_path, command):
    code, out, err = command("-m", "name=s", "seed=0,1", runs="{alone: []}", claims="[]")
    assert (code, err) == (0, "")
    assert "2 of 2 jobs done" in out
    assert [result_of(file.parent)["seed"] for file in sorted((tmp_path / "outputs/s").glob("*/result.json"))] == [0, 1]


@pytest.mark.parametrize(("word", "message"), [
    ("study.claims=['test/acuracy: residual > plain net']",
     "study.claims: no run has 'test/acuracy'; did you mean 'test/accuracy'?"),
    ("study.curves=[val/los]", "study.curves: no run has 'val/los'; did you mean 'val/loss'?"),
])
def test_a_metric_of_evaluation_that_no_run_has_is_refused_after_the_first(tmp_path, command, word, message):
    code, _, err = command("name=d", word, seeds="[0]")
    assert (code, err) == (2, f"dltrain: error: {message}\n")
    assert [run.name for run in (tmp_path / "outputs/d").glob("*-seed*")] == ["plain_net-seed0"]


def test_the_numbers_of_a_run_are_its_result_and_its_readings(tmp_path):
    """Of a training metric the last reading, of throughput the median; what is no number is left out."""
    (tmp_path / "result.json").write_text(json.dumps({
        "test/loss": 2, "val/loss": 0.6, "seconds": 9.0, "headline": "val/loss", "headline_mode": "min",
        "best_epoch": 3, "steps": 3, "version": "0.2.0"}))
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/loss,images_per_second\n"
                                          "1,1,0.9,,100\n2,2,0.7,,500\n3,3,0.8,,200\n3,3,,0.6,\n")
    assert results.all_numbers(RunDir(tmp_path)) == {
        "test/loss": 2.0, "val/loss": 0.6, "best_epoch": 3.0, "steps": 3.0, "seconds": 9.0, "train/loss": 0.8,
        "seconds_per_epoch": 3.0, "train_ms_per_image": 5.0}


def test_the_overrides_of_a_run_stand_between_those_of_all_runs():
    compared_run = parse_run("a", ["seed=2"], ["seed=1"], ["seed=3"], ["a"])
    assert compared_run == (["seed=1", "seed=2", "seed=3"], None)


@pytest.mark.parametrize(("text", "excess"), [
    ("seconds: a > b c", 1), ("seconds: a < b c", -1), ("seconds: a >= b c - 0.5", 1.5), ("seconds: a <= b c + 2", 1),
    ("seconds: a > 0.25 * b c", 2.5), ("seconds: a < 2 * b c - 1", 0), ("seconds: a > 1.25", 1.75),
    ("seconds: a < 2 * 1.25", -0.5)])
def test_by_how_much_a_claim_is_true(text, excess):
    """Of a = 3 and b c = 2."""
    claim = parse_claim(text, ["a", "b c"])
    assert claim.excess(3.0, 2.0 if claim.right else 0.0) == excess


@pytest.mark.parametrize(("sign", "smaller", "larger"), [
    (">", "NOT SUPPORTED", "SUPPORTED"), (">=", "NOT SUPPORTED", "SUPPORTED"), ("<", "SUPPORTED", "NOT SUPPORTED"),
    ("<=", "SUPPORTED", "NOT SUPPORTED")])
def test_runs_of_the_same_seed_are_pairs(sign, smaller, larger):
    """Seeds that differ by much more than the runs decide nothing where the runs of each differ by the same. Runs that
    are equal with each seed do not differ: that neither supports nor refutes > or >=."""
    claim = parse_claim(f"seconds: a {sign} b c", ["a", "b c"])
    for shift, outcome in ((-0.25, smaller), (0.0, "UNDECIDED"), (0.25, larger)):
        verdict = comparison.judge(claim, {"a": [10 + shift, 2 + shift, shift], "b c": [10.0, 2.0, 0.0]})
        assert verdict.outcome == outcome, shift
    assert verdict.evidence.startswith(f"4.25 of a {sign} 4 of b c; by ")
    equal = comparison.judge(claim, {"a": [1.0, 2.0, 3.0], "b c": [1.0, 2.0, 3.0]})
    assert equal.evidence.endswith("; equal with each of 3 seeds")
    unpaired = comparison.judge(claim, {"a": [0.25, 10.25, 2.25], "b c": [10.0, 2.0, 0.0]})
    assert unpaired.outcome == "UNDECIDED"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_decide_nothing(value):
    claim = parse_claim("loss: a > b", ["a", "b"])
    for values in ([value] * 3, [1.0, value, 2.0]):
        verdict = comparison.judge(claim, {"a": values, "b": [0.0, 0.5, 0.2]})
        assert (verdict.outcome, verdict.evidence[-26:]) == ("UNDECIDED", "not finite with some seeds")


def test_a_metric_that_some_seeds_lack_is_refused_by_a_claim_and_blank_in_the_table(tmp_path):
    with pytest.raises(UserError, match="iou is missing for some seeds"):
        comparison.judge(parse_claim("iou: a > b", ["a", "b"]), {"a": [1.0, 2.0], "b": [1.0]})
    results.write_values(tmp_path / "x.csv", [0, 1], {"iou": {"a": [1.0, 2.0], "b": [1.0]}})
    assert (tmp_path / "x.csv").read_text().split() == ["run,seed,iou", "a,0,1.0", "a,1,2.0", "b,0,", "b,1,"]


@pytest.mark.parametrize("text", ["seconds: a ! b", "a > b", "seconds: a > c", "seconds: 1 > a"])
def test_a_claim_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match=r"^study\.claims: "):
        parse_claim(text, ["a", "b"])


def test_a_claim_about_a_run_without_the_metric_is_refused():
    with pytest.raises(UserError, match=r"^study\.claims: 'x: a > b': the run 'b' has no x$"):
        comparison.judge(parse_claim("x: a > b", ["a", "b"]), {"a": [1.0], "b": []})
