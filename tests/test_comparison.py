"""Runs that are trained and compared by a yaml alone, and what batch normalisation does."""

import csv
import json
import os
import signal
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from torch import nn

from dltrain.build import build_data
from dltrain.callbacks.stopping import StopAtStep
from dltrain.data.classification import Split
from dltrain.data.digits import Digits
from dltrain.models.mlp import MLP
from dltrain.studies import batchnorm_effect, comparison
from tests.conftest import TINY

# two nets of 8 layers on 96 digits, 3 batches an epoch, and a comparison of them in a folder of a person's own
YAML = """
# Does a shortcut help?
defaults:
  - override /recipe: none
study:
  _target_: dltrain.studies.comparison.study
  common: [model=mine, data._target_=tests.tiny.FewDigits, data.batch_size=32, trainer=cpu, trainer.max_epochs=2]
  more: []
  runs: {plain net: [model.shortcut=none], residual: [model.shortcut=A]}
  seeds: [0]  # list of int >= 0
  shown: {test/accuracy: test accuracy, seconds_per_epoch: seconds an epoch, parameters: parameters}
  curves: [train/loss, val/accuracy]
  claims: ["train/loss: residual < plain net", "train/loss: residual >= plain net"]
"""
MODEL = "# Eight layers\ndefaults:\n  - /model/base/cifar_resnet\nmodel: {depth: 8}\n"


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """typed("name=a", ...) -> exit code, standard output and error of the comparison above."""
    from dltrain import cli

    monkeypatch.chdir(tmp_path)
    for name, text in (("experiment/shortcut", YAML), ("model/mine", MODEL)):
        (tmp_path / f"conf/{name}.yaml").parent.mkdir(parents=True)
        (tmp_path / f"conf/{name}.yaml").write_text(f"# @package _global_\n{text.lstrip()}")

    def typing(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dltrain", "--config-dir", "conf", "experiment=shortcut", *words])
        code = cli.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return typing


def result_of(path):
    return json.loads((path / "result.json").read_text())


def weights_of(path):
    return torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def last_reading(path, metric):
    with open(path / "metrics.csv", newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row[metric]][-1]


def test_runs_of_several_seeds_are_compared_by_their_means(tmp_path, typed):
    code, out, err = typed("name=a", "seed=3", "study.seeds=[0,1]")
    assert (code, err) == (0, "")
    path = tmp_path / "outputs/a"
    runs = {name: [path / f"{folder}-seed{seed}" for seed in (3, 4)]
            for name, folder in (("plain net", "plain_net"), ("residual", "residual"))}
    losses = {name: mean(last_reading(run, "train/loss") for run in its) for name, its in runs.items()}
    found = result_of(path)
    for name, its in runs.items():
        tested = [result_of(run)["test/accuracy"] for run in its]
        assert [result_of(run)["seed"] for run in its] == [3, 4]
        assert found[f"test/accuracy, {name}"] == pytest.approx(mean(tested))
        assert found[f"train/loss, {name}"] == pytest.approx(losses[name])
        assert found[f"seconds_per_epoch, {name}"] == pytest.approx(mean(result_of(run)["seconds"] / 2 for run in its))
        assert f"{mean(tested):.4g} ± {stdev(tested):.2g}" in out
    less = losses["residual"] < losses["plain net"]
    assert found["claim, train/loss: residual < plain net"] is less
    assert found["claim, train/loss: residual >= plain net"] is not less
    said = f"train/loss {losses['residual']:.4g} of residual {{}} {losses['plain net']:.4g} of plain net"
    for sign, holds in (("<", less), (">=", not less)):
        assert f"  {'held' if holds else 'did not hold'}: {said.format(sign)}\n" in out
    with open(path / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seed"]) for row in rows] == [
        ("plain net", "3"), ("plain net", "4"), ("residual", "3"), ("residual", "4")]
    assert float(rows[3]["train/loss"]) == last_reading(runs["residual"][1], "train/loss")
    assert (path / "results.png").stat().st_size > 5000
    assert "model.shortcut=A seed=4" in (runs["residual"][1] / "command.txt").read_text()


def test_a_killed_comparison_goes_on_where_it_was(tmp_path, typed, monkeypatch):
    assert typed("name=whole")[0] == 0
    step_ended = StopAtStep.on_train_batch_end

    def kill(self, trainer, *rest):
        step_ended(self, trainer, *rest)
        if trainer.global_step == 4 and "residual" in trainer.default_root_dir:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StopAtStep, "on_train_batch_end", kill)
        assert typed("name=b")[0] == 143
    path = tmp_path / "outputs/b"
    assert not (path / "result.json").exists()
    first = (path / "plain_net-seed0/checkpoints/last.ckpt").stat().st_mtime_ns
    code, out, err = typed("name=b")
    assert (code, err) == (0, "")
    assert "outputs/b/plain_net-seed0 is finished" in out
    assert "resuming outputs/b/residual-seed0 from step 4 of 6" in out
    assert (path / "plain_net-seed0/checkpoints/last.ckpt").stat().st_mtime_ns == first
    for name in ("plain_net-seed0", "residual-seed0"):
        whole = weights_of(tmp_path / "outputs/whole" / name)
        assert all(torch.equal(value, whole[key]) for key, value in weights_of(path / name).items())


@pytest.mark.parametrize(("words", "said"), [
    ("study.claims=['train/loss: residul > plain net']",
     "study.claims: 'train/loss: residul > plain net': no run 'residul'; did you mean 'residual'?"),
    ("study.claims=['train/loss residual']",
     "study.claims: 'train/loss residual': must be 'metric: run > run', with >, <, >= or <="),
    ("study.claims=['train/los: residual > plain net']",
     "study.claims: no run has 'train/los'; did you mean 'train/loss'?"),
    ("+study.shown.second=seconds", "study.shown: no run has 'second'; did you mean 'seconds'?"),
    ("study.curves=[train/acuracy]", "study.curves: no run has 'train/acuracy'; did you mean 'train/accuracy'?"),
    ("study.more=['model=plan56']", "study.runs.plain net: unknown model 'plan56'; did you mean 'plain56'?"),
    ("+study.runs.plain_net=[]", "study.runs: 'plain net' and 'plain_net' would share the folder plain_net"),
    ("study.seeds=[]", "study.seeds: must not be empty"),
    ("study.seeds=[a]", "study.seeds=['a']: each must be an integer >= 0"),
])
def test_what_no_run_has_is_refused_before_the_first_is_trained(tmp_path, typed, words, said):
    code, _, err = typed("name=c", words)
    assert code == 2
    assert err.startswith(f"dltrain: error: {said}")
    assert err.count("\n") == 1
    assert not list((tmp_path / "outputs").glob("c/*-seed*"))


def test_a_study_that_was_refused_leaves_its_folder_to_the_mended_words(tmp_path, typed):
    code, _, err = typed("name=c", "study.claims=['test/accuracy: residual > plane net']", "study.runs={residual: []}")
    assert code == 2, err
    assert not (tmp_path / "outputs/c").exists()


def test_a_study_can_be_swept(tmp_path, typed):
    code, out, err = typed("-m", "name=s", "seed=0,1", "study.claims=[]", 'study.more=["trainer.max_epochs=1"]')
    assert (code, err) == (0, "")
    assert "2 of 2 jobs done" in out


def test_a_tested_metric_that_no_run_has_is_refused_after_the_first(tmp_path, typed):
    code, _, err = typed("name=d", "study.claims=['test/acuracy: residual > plain net']")
    assert (code, err) == (2, "dltrain: error: study.claims: no run has 'test/acuracy'; did you mean "
                               "'test/accuracy'?\n")
    assert [run.name for run in (tmp_path / "outputs").glob("d/*-seed*")] == ["plain_net-seed0"]


@pytest.mark.parametrize(("sign", "holds"), [(">", False), ("<", True), (">=", False), ("<=", True)])
def test_a_claim_compares_means(sign, holds, capsys):
    claim = comparison.read_claim(f"seconds: a {sign} b c", ["a", "b c"])
    assert comparison.judged(claim, {"a": [1.0, 2.0], "b c": [1.0, 3.0]}) is holds
    assert ("did not hold" in capsys.readouterr().out) is not holds
    assert comparison.judged(claim, {"a": [1.0, 3.0], "b c": [2.0]}) is ("=" in sign)


def test_the_mlps_normalisation_is_the_papers():
    """Algorithm 1 in training, by hand; in inference a linear map by the running averages."""
    torch.manual_seed(0)
    net, images = MLP(16, 10, hidden=7, layers=2).double(), torch.randn(9, 1, 4, 4, dtype=torch.float64)
    for layer in net.hidden:
        nn.init.uniform_(layer[1].weight, 0.5, 2.0)
        nn.init.uniform_(layer[1].bias)
    x, averages = images.flatten(1), []
    for layer in net.hidden:
        u = x @ layer[0].weight.T
        mu, var = u.sum(0) / 9, ((u - u.sum(0) / 9) ** 2).sum(0) / 9
        y = layer[1].weight * (u - mu) / (var + 1e-5).sqrt() + layer[1].bias
        averages.append((0.1 * mu, 0.9 + 0.1 * var * 9 / 8))
        x = 1 / (1 + (-y).exp())
    torch.testing.assert_close(net(images), x @ net.head.weight.T + net.head.bias)
    assert all(layer[0].bias is None for layer in net.hidden)
    x = images.flatten(1)
    for layer, (mu, var) in zip(net.hidden, averages, strict=True):
        y = layer[1].weight * (x @ layer[0].weight.T - mu) / (var + 1e-5).sqrt() + layer[1].bias
        x = 1 / (1 + (-y).exp())
    torch.testing.assert_close(net.eval().last_inputs(images), y)
    with pytest.raises(ValueError, match="norm must be batch or none, but is layer"):
        MLP(16, norm="layer")


def test_percentiles_and_the_typical_unit():
    torch.manual_seed(0)
    net, images = MLP(16, 10, hidden=5, norm="none"), torch.randn(31, 1, 4, 4)
    accuracy, found = batchnorm_effect.looked_at(net, images, torch.arange(31) % 10)
    x = images.flatten(1).numpy()
    for number, layer in enumerate(net.hidden):
        x = (1 / (1 + np.exp(-x)) if number else x) @ layer[0].weight.detach().numpy().T
    np.testing.assert_allclose(found, np.percentile(x, [15, 50, 85], axis=0), rtol=1e-4, atol=1e-5)
    logits = (1 / (1 + np.exp(-x))) @ net.head.weight.detach().numpy().T
    assert float(accuracy) == pytest.approx((logits.argmax(1) == np.arange(31) % 10).mean())
    assert net.training
    normalised = MLP(16, 10, hidden=5)
    before = {key: value.clone() for key, value in normalised.state_dict().items()}
    batchnorm_effect.looked_at(normalised, images, torch.arange(31) % 10)
    assert all(torch.equal(value, before[key]) for key, value in normalised.state_dict().items()), "only looked at"
    # medians move by 4, 1 and 3, the last spreads are 2, 1 and 2: drifts of 2, 1 and 1.5, whose median is unit 2
    looks = torch.tensor([[[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]], [[3, 0, 2], [4, 1, 3], [5, 1, 4]]])
    found = batchnorm_effect.Found(torch.tensor([0.1, 0.95]), looks)
    assert found.drift().tolist() == [2, 1, 1.5]
    assert found.typical() == 2
    assert batchnorm_effect.steps_to(0.9, found, [0, 40]) == 40
    assert batchnorm_effect.steps_to(0.96, found, [0, 40]) is None


def test_every_net_sees_the_same_batches(config):
    module = build_data(config(*TINY))
    first, second, again = (batchnorm_effect.endless(module) for _ in range(3))
    before = [next(first).labels for _ in range(4)]  # into the second epoch
    assert all(torch.equal(next(second).labels, labels) for labels in before)
    assert not torch.equal(next(again).labels, before[3])


def test_batch_normalisation_is_seen_at_work(tmp_path, monkeypatch, capsys):
    from dltrain import cli

    monkeypatch.chdir(tmp_path)

    def few(self):
        whole(self)
        self.splits = {name: Split(part.images[:120], part.labels[:120]) for name, part in self.splits.items()}

    whole = Digits.load
    monkeypatch.setattr(Digits, "load", few)
    found = []
    for name in ("a", "b"):
        monkeypatch.setattr("sys.argv", ["dltrain", "experiment=batchnorm_effect", f"name={name}", "study.steps=40",
                                         "study.lrs=[0.5]", "study.looks=4", "study.target=0.5"])
        assert cli.main() == 0
        found.append((tmp_path / f"outputs/{name}/percentiles.csv").read_text())
    assert found[0] == found[1], "a function of the seed"
    path = tmp_path / "outputs/a"
    with open(path / "accuracy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "10", "20", "30", "40"]
    numbers = result_of(path)
    accuracies = [float(row["with, lr 0.5"]) for row in rows]
    assert numbers["best accuracy, with, lr 0.5"] == max(accuracies) > 0.5
    assert numbers["last accuracy, with, lr 0.5"] == accuracies[-1]
    assert numbers["steps to 0.5, with, lr 0.5"] == next(
        int(row["step"]) for row in rows if float(row["with, lr 0.5"]) >= 0.5)
    assert numbers["steps to 0.5, without, lr 0.5"] is None
    assert numbers["claim, reaches the accuracy in fewer steps"] is True
    assert (path / "results.png").stat().st_size > 5000
    assert "held: allows higher learning rates" in capsys.readouterr().out
