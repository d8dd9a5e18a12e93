"""What batch normalisation does: the net against algorithm 1 by hand, percentiles against NumPy, and the experiment."""

import csv
import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from dltrain.build import build_data
from dltrain.data.classification import Split
from dltrain.data.digits import Digits
from dltrain.models.mlp import MLP
from dltrain.studies import batchnorm_effect
from tests.command_line import run_command
from tests.conftest import TINY


def test_the_mlps_normalisation_is_the_papers():
    """Algorithm 1 in training, by hand; in inference a linear map by the running averages."""
    torch.manual_seed(0)
    net, images = MLP(16, 10, hidden=7, layers=2).double(), torch.randn(9, 1, 4, 4, dtype=torch.float64)
    layers = cast(Any, net.hidden)
    for layer in layers:
        nn.init.uniform_(layer[1].weight, 0.5, 2.0)
        nn.init.uniform_(layer[1].bias)
    x, averages = images.flatten(1), []
    for layer in layers:
        u = x @ layer[0].weight.T
        mu, var = u.sum(0) / 9, ((u - u.sum(0) / 9) ** 2).sum(0) / 9
        y = layer[1].weight * (u - mu) / (var + 1e-5).sqrt() + layer[1].bias
        averages.append((0.1 * mu, 0.9 + 0.1 * var * 9 / 8))
        x = 1 / (1 + (-y).exp())
    torch.testing.assert_close(net(images), x @ net.head.weight.T + net.head.bias)
    assert all(layer[0].bias is None for layer in layers)
    x = images.flatten(1)
    for layer, (mu, var) in zip(layers, averages, strict=True):
        y = layer[1].weight * (x @ layer[0].weight.T - mu) / (var + 1e-5).sqrt() + layer[1].bias
        x = 1 / (1 + (-y).exp())
    torch.testing.assert_close(net.eval().last_inputs(images), y)
    with pytest.raises(ValueError, match="norm must be batch or none, but is layer"):
        MLP(16, norm="layer")


def test_percentiles_and_accuracy_equal_numpys():
    torch.manual_seed(0)
    net, images, labels = MLP(16, 10, hidden=5, norm="none"), torch.randn(31, 1, 4, 4), torch.arange(31) % 10
    accuracy, percentiles = batchnorm_effect.measure(net, images, labels)
    x, layers = images.flatten(1).numpy(), cast(Any, net.hidden)
    for number, layer in enumerate(layers):
        x = (1 / (1 + np.exp(-x)) if number else x) @ layer[0].weight.detach().numpy().T
    np.testing.assert_allclose(percentiles, np.percentile(x, [15, 50, 85], axis=0), rtol=1e-4, atol=1e-5)
    logits = (1 / (1 + np.exp(-x))) @ net.head.weight.detach().numpy().T
    assert float(accuracy) == pytest.approx((logits.argmax(1) == labels.numpy()).mean())


def test_a_measurement_changes_no_statistics():
    net = MLP(16, 10, hidden=5)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    batchnorm_effect.measure(net, torch.randn(31, 1, 4, 4), torch.arange(31) % 10)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_typical_unit_has_the_median_drift():
    """The medians move by 4, 1 and 3, and the last spreads are 2, 1 and 2: drifts of 2, 1 and 1.5."""
    first, last = [[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]], [[3, 0, 2], [4, 1, 3], [5, 1, 4]]
    history = batchnorm_effect.History(torch.tensor([0.1, 0.95]), torch.tensor([first, last]))
    assert history.drift().tolist() == [2, 1, 1.5]
    assert history.typical_unit().tolist() == [[-1, 0, 1], [2, 3, 4]]
    assert batchnorm_effect.steps_to(0.9, history, [0, 40]) == 40
    assert batchnorm_effect.steps_to(0.1, history, [0, 40]) == 0
    assert batchnorm_effect.steps_to(0.96, history, [0, 40]) is None


def test_every_net_is_trained_on_the_same_batches(config):
    module = build_data(config(*TINY))
    first, second, later = (batchnorm_effect.endless_batches(module) for _ in range(3))
    before = [next(first).labels for _ in range(4)]  # into the second epoch
    assert [next(second).labels.tolist() for _ in range(4)] == [labels.tolist() for labels in before]
    assert not torch.equal(next(later).labels, before[3])


def test_the_experiment_measures_both_nets(tmp_path, monkeypatch, capsys):
    """40 steps on 120 digits: the net with batch normalisation reaches an accuracy of 0.5 and the one without does not.
    A second run measures the same."""
    monkeypatch.chdir(tmp_path)
    load = Digits.load

    def load_few(self):
        load(self)
        self.splits = {split: Split(images[:120], labels[:120]) for split, (images, labels) in self.splits.items()}

    monkeypatch.setattr(Digits, "load", load_few)
    outputs = [run_command(monkeypatch, capsys, "experiment=batchnorm_effect", f"name={name}", "study.steps=40",
                           "study.lrs=[0.5]", "study.evaluations=4", "study.target=0.5",
                           "study.seeds=[0]") for name in ("a", "b")]
    assert [(code, err) for code, _, err in outputs] == [(10, "")] * 2  # a verdict needs three seeds
    path = tmp_path / "outputs/a"
    assert (path / "percentiles.csv").read_text() == (tmp_path / "outputs/b/percentiles.csv").read_text()
    with open(path / "accuracy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "10", "20", "30", "40"]
    numbers = json.loads((path / "result.json").read_text())
    accuracies = [float(row["with, lr 0.5"]) for row in rows]
    assert numbers["best accuracy, with, lr 0.5"] == max(accuracies) > 0.5
    assert numbers["last accuracy, with, lr 0.5"] == accuracies[-1]
    assert numbers["steps to 0.5, with, lr 0.5"] == next(
        int(row["step"]) for row in rows if float(row["with, lr 0.5"]) >= 0.5)
    assert numbers["steps to 0.5, without, lr 0.5"] is None
    assert numbers["claim, reaches the accuracy in fewer steps"] == "UNDECIDED"
    assert ("  UNDECIDED  allows higher learning rates: the highest that ends at 0.5 or more is 0.5 with, 0 without; "
            "by +0.5 with 1 seed; a verdict needs 3\n") in outputs[0][1]
    assert (path / "results.png").stat().st_size > 5000
