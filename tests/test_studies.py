"""Experiments that measure without training to an end."""

import csv
import json

import pytest
import torch

from dltrain.batches import generator
from dltrain.models.overfeat import OverFeat, convolve, windows_of
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


@pytest.mark.parametrize("window_px", [16, 32])
def test_every_window_of_overfeat_equals_the_crops_own_forward(window_px):
    torch.manual_seed(0)
    net = OverFeat(5, window_px=window_px)
    images = torch.randn(2, 3, 64, 56)
    dense = net.dense(images)
    assert dense.shape == (2, 5, (64 - window_px) // 4 + 1, (56 - window_px) // 4 + 1)
    for i, j in ((0, 0), (3, 2), (dense.shape[2] - 1, dense.shape[3] - 1)):
        crop = images[:, :, 4 * i : 4 * i + window_px, 4 * j : 4 * j + window_px]
        torch.testing.assert_close(dense[:, :, i, j], net(crop), rtol=0, atol=1e-5)
    every = net(windows_of(images, window_px, 4)).view(2, *dense.shape[2:], 5)
    torch.testing.assert_close(dense, every.permute(0, 3, 1, 2), rtol=0, atol=1e-5)


def test_a_layer_over_a_map_is_a_convolution():
    torch.manual_seed(0)
    net, map_ = OverFeat(5, window_px=32), torch.randn(1, 32, 6, 6)
    wanted = net.hidden(map_.flatten(1))
    torch.testing.assert_close(convolve(map_, net.hidden, 6)[:, :, 0, 0], wanted, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="window_px must be a multiple of 4, at least 16, but is 18"):
        OverFeat(5, window_px=18)


def test_what_sharing_gains_is_told(tmp_path, monkeypatch, capsys):
    from dltrain import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dltrain", "experiment=overfeat_reuse", "name=o", "study.image_px=[32,48]",
                                     "study.repeats=1"])
    assert cli.main() == 0
    assert "32 x 32" in capsys.readouterr().out
    found = json.loads((tmp_path / "outputs/o/result.json").read_text())
    assert found["largest_difference"] < 1e-5
    rows = (tmp_path / "outputs/o/reuse.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["1", "25"]
    assert (tmp_path / "outputs/o/results.png").stat().st_size > 5000


def test_the_rcnn_family_is_compared(tmp_path, monkeypatch, capsys):
    from dltrain import cli
    from dltrain.data import scenes

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "NUM_EVALUATION", 3)
    monkeypatch.setattr("sys.argv", ["dltrain", "experiment=rcnn_family", "name=f", "study.epochs=1",
                                     "study.num_train=8", "study.timed_images=2"])
    assert cli.main() == 0
    path = tmp_path / "outputs/f"
    assert {"results.png", "family.csv", "rcnn", "fast_rcnn", "faster_rcnn"} <= {f.name for f in path.iterdir()}
    found = json.loads((path / "result.json").read_text())
    rows = (path / "family.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["model", "rcnn", "fast_rcnn", "faster_rcnn"]
    assert found["rcnn_over_fast_test"] == pytest.approx(float(rows[1].split(",")[2]) / float(rows[2].split(",")[2]))
    with open(path / "rcnn/metrics.csv", newline="") as file:
        rates = [float(row["images_per_second"]) for row in csv.DictReader(file) if row["images_per_second"]]
    assert float(rows[1].split(",")[1]) == pytest.approx(1000 / sorted(rates)[len(rates) // 2], rel=1e-3)
    counts = {json.loads((path / name / "result.json").read_text())["parameters"] for name in ("rcnn", "fast_rcnn")}
    assert len(counts) == 1, "backbone and head are the same"
    assert "AP50" in capsys.readouterr().out


def test_a_trained_encoder_is_compared(tmp_path, monkeypatch, capsys):
    from dltrain import cli
    from dltrain.data import scenes

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "NUM_EVALUATION", 4)
    monkeypatch.setattr("sys.argv", ["dltrain", "experiment=caption_transfer", "name=t", "study.classifier_epochs=1",
                                     "study.epochs=1", "study.num_train=32"])
    assert cli.main() == 0
    path = tmp_path / "outputs/t"
    rows = (path / "transfer.csv").read_text().splitlines()
    assert len(rows) == 5
    assert (path / "results.png").is_file()
    steps = {json.loads((path / name / "result.json").read_text())["steps"] for name in (
        "from_scratch", "from_a_classifier_frozen", "from_a_classifier_fine-tuned", "random_frozen")}
    assert steps == {1}
    rested = torch.load(path / "from_a_classifier_frozen/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    begun = torch.load(path / "classifier/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(rested["model.backbone.stem.0.weight"], begun["model.stem.0.weight"])
    assert "true" in capsys.readouterr().out
