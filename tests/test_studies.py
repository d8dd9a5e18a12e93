"""Experiments that measure without training to an end."""

import json

import pytest
import torch

from dltrain.batches import generator
from dltrain.studies import gradient_flow


@pytest.mark.parametrize("value", [0.7, 1.3])
def test_gradient_norms_equal_the_product_of_jacobians(value):
    net, distance = gradient_flow.vanilla(6, value, seed=1), 12
    found = gradient_flow.flow(net, distance, seed=1)
    x = 0.1 * torch.randn(32, distance + 1, 8, generator=generator("flow", 1), dtype=torch.float64)
    w_x, w_h, _, _ = (w.detach() for w in net.weights(0))
    h, slopes = torch.zeros(32, 6, dtype=torch.float64), []
    for t in range(distance + 1):
        h = torch.tanh(x[:, t] @ w_x.T + h @ w_h.T)
        slopes.append(1 - h.square())
    gradient = torch.randn(32, 6, generator=generator("projection", 1), dtype=torch.float64)
    norms = [gradient.norm(dim=1).mean()]
    for t in range(distance, 0, -1):
        gradient = (gradient * slopes[t]) @ w_h
        norms.append(gradient.norm(dim=1).mean())
    torch.testing.assert_close(found, torch.stack(norms) / norms[0])
    assert (found <= value ** torch.arange(distance + 1) + 1e-9).all()


def test_a_study_is_one_command_with_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    from dltrain import cli

    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dltrain", "experiment=gradient_flow", "name=g", "study.steps=30",
                                         "study.distance=8", "study.window=6", *words])
        code = cli.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, err = typed()
    assert (code, err) == (0, "")
    assert "norm at distance" in out
    path = tmp_path / "outputs/g"
    assert {"results.png", "gradient_norms.csv", "training.csv", "config.yaml"} <= {f.name for f in path.iterdir()}
    found = json.loads((path / "result.json").read_text())
    assert found["norm_at_8, vanilla, s = 0.7"] <= 0.7**8 < found["norm_at_8, vanilla, s = 1.3"]
    code, out, _ = typed()
    assert "is finished, nothing to do" in out
    code, _, err = typed("study.lr=-1")
    assert (code, err) == (2, "dltrain: error: study.lr=-1: must be a number > 0\n")
