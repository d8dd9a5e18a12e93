"""Measurements of a net as it is: a linear probe of its features, and the receptive field of a pixel."""

import csv
import json
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from dltrain import run
from dltrain.build import build_data, build_task
from dltrain.data import scenes
from dltrain.data.classification import InMemoryImages
from dltrain.errors import UserError
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.studies import linear_probe, receptive_field
from dltrain.tasks.classification import Classification
from tests.command_line import run_command
from tests.conftest import TINY


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_linear_probe_is_logistic_regression_on_the_mean_of_the_map(config, tmp_path):
    words = [*TINY, "model=resnet20", "model.depth=8"]
    context = run.StudyContext(tmp_path, 0, None)
    result = linear_probe.study(context, words)
    data, task = build_data(config(*words)), build_task(config(*words))
    assert isinstance(data, InMemoryImages)
    assert isinstance(task, Classification)
    task.fit_statistics(data)
    net = task.eval().model
    assert isinstance(net, CifarResNet)
    features = {}
    for split in ("train", "test"):
        images = task.augment.normalize(data.splits[split].images)
        with torch.no_grad():
            features[split] = net.features(images).mean((2, 3))
        torch.testing.assert_close(linear_probe.extract_features(task, data, split)[0], features[split])
    mean, std = features["train"].mean(0), features["train"].std(0, unbiased=False)
    std[std == 0] = 1
    model = LogisticRegression(C=result["C"], max_iter=1000)
    model.fit((features["train"] - mean) / std, data.splits["train"].labels)
    score = model.score((features["test"] - mean) / std, data.splits["test"].labels)
    assert score == pytest.approx(result["test/accuracy"], abs=0.03)
    assert result["test/accuracy"] > 0.3, "ten classes, random features"
    assert result["features"] == 64
    rows = read_csv(tmp_path / "probe.csv")
    assert [float(row["C"]) for row in rows] == [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]
    best = max(rows, key=lambda row: float(row["val/accuracy"]))
    assert {key: float(value) for key, value in best.items()} == {key: result[key] for key in best}
    with pytest.raises(UserError, match="a linear probe needs a classifier of images, but char_rnn takes TokenBatch"):
        linear_probe.study(context, ["model=char_rnn"])


def test_a_receptive_field_is_what_the_kernels_reach():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=4, dilation=2), nn.Conv2d(4, 2, 1))
    row = receptive_field.measure(receptive_field.gradient_field(net, 33, 2, 3, seed=0))
    assert row["reach_px"] == 3 + 4 * 2
    assert 0 < row["half_px"] <= 5.5 * 2**0.5
    assert row["effective_px"] <= 11
    field = torch.zeros(9, 9)
    field[4, 4] = 1
    assert receptive_field.measure(field) == {"reach_px": 1, "effective_px": 1.0, "half_px": 0.0}
    field[3:6, 2:7] = 1  # 15 pixels: one in the middle, four 1 px from it, four 1.4 px, two 2 px, four 2.2 px
    assert receptive_field.measure(field) == pytest.approx(
        {"reach_px": 5, "effective_px": 15**0.5, "half_px": 2**0.5})


@pytest.mark.parametrize("nets", [["strided"], ["strided", "dilated", "hypercolumn"]], ids=["one", "three"])
def test_titles_of_receptive_fields_are_not_cut_off(tmp_path, nets):
    sizes = {net: {"reach_px": 182.0, "effective_px": 153.0, "half_px": 45.0} for net in nets}
    receptive_field.draw(dict.fromkeys(nets, torch.ones(320, 320)), sizes, tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert pixels.min() == 0
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255


def test_fields_and_probes_are_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "NUM_EVAL_IMAGES", 16)
    code, out, err = run_command(
        monkeypatch, capsys, "experiment=receptive_field", "name=r", "study.image_px=96", "study.images=1",
        'study.nets={strided:["model=fcn32s","model.backbone.width=2"],'
        'dilated:["model=dilated","model.backbone.width=2"]}')
    assert (code, err) == (0, "")
    assert "  SUPPORTED  dilation keeps the reach of the strided net: " in out
    rows = read_csv(tmp_path / "outputs/r/fields.csv")
    result = json.loads((tmp_path / "outputs/r/result.json").read_text())
    nets = ("strided", "dilated", "hypercolumn")
    assert [(row["net"], row["seed"]) for row in rows] == [(net, str(seed)) for seed in range(3) for net in nets]
    values = {f"{column}, {net}": mean(float(row[column]) for row in rows if row["net"] == net)
              for net in nets for column in ("reach_px", "effective_px", "half_px")}
    assert values == pytest.approx({key: value for key, value in result.items() if "_px, " in key})
    assert (tmp_path / "outputs/r/results.png").stat().st_size > 5000
    code, out, err = run_command(
        monkeypatch, capsys, "experiment=linear_probe", "name=p",
        'study.words=["model=resnet20","model.depth=8","data=scene_digits","data.num_train=64","data.image_px=28"]')
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "outputs/p/result.json").read_text())
    assert f"test/accuracy {result['test/accuracy']:.4f} with C = {result['C']:g}, chosen in validation; 64 fe" in out
