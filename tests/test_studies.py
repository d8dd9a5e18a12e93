"""Experiments: what gradients do through time, what OverFeat shares, and two of the comparisons, run small."""

import csv
import json
import re
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from dltrain.batches import generator
from dltrain.data import scenes
from dltrain.models.overfeat import OverFeat, convolve, windows_of
from dltrain.models.recurrent import lstm_cell
from dltrain.run_dir import RunDir
from dltrain.studies import comparison, gradient_flow
from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("without_figures")


def result_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "result.json").read_text())


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


# gradients through time


@pytest.mark.parametrize("value", [0.7, 1.3])
def test_gradient_norms_equal_the_product_of_jacobians(value):
    net, distance = gradient_flow.vanilla(6, value, seed=1), 12
    result = gradient_flow.gradient_norms(net, distance, seed=1)
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
    torch.testing.assert_close(result, torch.stack(norms) / norms[0])
    assert (result <= value ** torch.arange(distance + 1) + 1e-9).all()


def test_gradient_norms_of_an_lstm_are_those_of_the_whole_state():
    """Against products with the Jacobians of single steps with respect to h and c together."""
    net, distance = gradient_flow.lstm(5, 2.0, seed=1), 9
    result = gradient_flow.gradient_norms(net, distance, seed=1)
    x = 0.1 * torch.randn(32, distance + 1, 8, generator=generator("flow", 1), dtype=torch.float64)
    states = [torch.zeros(32, 10, dtype=torch.float64)]

    def step(state: torch.Tensor, t: int) -> torch.Tensor:
        return torch.cat(lstm_cell(x[:, t], (state[:, :5], state[:, 5:]), *net.weights(0)), dim=1)

    for t in range(distance + 1):
        states.append(step(states[-1], t).detach())
    gradient = torch.cat([torch.randn(32, 5, generator=generator("projection", 1), dtype=torch.float64),
                          torch.zeros(32, 5, dtype=torch.float64)], dim=1)
    norms = [gradient.norm(dim=1).mean()]
    for t in range(distance, 0, -1):
        _, gradient = torch.autograd.functional.vjp(partial(step, t=t), states[t], gradient)
        norms.append(gradient.norm(dim=1).mean())
    torch.testing.assert_close(result, torch.stack(norms) / norms[0])


def test_each_claim_about_gradients_holds_one_way_only():
    small, large, low, high = [1e-9, 2e-9, 1e-9], [50.0, 60.0, 70.0], [1e-8, 3e-8, 1e-8], [0.4, 0.5, 0.4]
    vanish, grow, keep, rise = (verdict.outcome for verdict in gradient_flow.judge(
        {0.7: small, 1.0: high, 1.3: large}, {1.0: low, 3.0: high}, clipped=[4.0, 5.0, 4.5], free=[40.0, 90.0, 50.0]))
    assert [vanish, grow, keep, rise] == ["SUPPORTED"] * 4
    verdicts = gradient_flow.judge({0.7: high, 1.3: small}, {1.0: high, 3.0: low}, clipped=[40.0, 90.0, 50.0],
                                   free=[4.0, 5.0, 4.5])
    assert [verdict.outcome for verdict in verdicts] == ["NOT SUPPORTED"] * 4
    assert len(gradient_flow.judge({1.0: high}, {1.0: low}, [4.0], [5.0])) == 1, "of what there is"
    (_, overflow) = gradient_flow.judge({}, {1.0: low, 3.0: [0.0, 0.1, 0.1]}, [4.0, 5.0, 4.0], [float("inf")] * 3)
    assert overflow.outcome == "UNDECIDED"


def test_an_lstm_begins_with_its_forget_bias():
    """Gates are in torch's order: input, forget, cell, output. The forget bias counts once, in b_x."""
    small, large = (gradient_flow.lstm(5, bias, seed=1).weights(0) for bias in (1.0, 3.0))
    assert small[2][5:10].tolist() == [1] * 5
    assert large[2][5:10].tolist() == [3] * 5
    assert torch.equal(small[1], large[1])


def test_a_study_is_one_command_with_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        return run_command(monkeypatch, capsys, "experiment=gradient_flow", "name=g", "study.steps=30",
                           "study.distance=8", "study.window=6", "study.seeds=[0]", *words)

    code, out, err = command()
    assert (code, err) == (10, "")  # one seed decides nothing
    path = tmp_path / "outputs/g"
    names = ["vanilla, s = 0.7", "vanilla, s = 1", "vanilla, s = 1.3", "LSTM, forget bias 1", "LSTM, forget bias 3"]
    result, norms, training = result_of(path), read_csv(path / "gradient_norms.csv"), read_csv(path / "training.csv")
    assert [*norms[0]] == ["distance", *names]
    assert [row["distance"] for row in norms] == [str(distance) for distance in range(9)]
    lines = [line.split() for line in out.splitlines()]
    for name in names:
        assert norms[0][name] == "1"
        assert result[f"norm_at_8, {name}"] == pytest.approx(float(norms[8][name]), rel=1e-5)
        assert [*name.split(), f"{float(norms[5][name]):.2g}"] in lines  # of DISTANCES only 5 is below 9
    assert result["norm_at_8, vanilla, s = 0.7"] <= 0.7**8 < result["norm_at_8, vanilla, s = 1.3"]
    losses = [float(row["loss, clipped at 0.5"]) for row in training]
    assert len(losses) == 30
    assert result["final_loss, clipped at 0.5"] == pytest.approx(sum(losses) / 30, rel=1e-5)
    assert (path / "results.png").stat().st_size > 5000
    code, out, _ = command()
    assert (code, out) == (10, "outputs/g is finished, nothing to do; another name= starts another run\n")
    for word, message in (("study.window=12499", "study.window=12499: must be at most 12,498, the length of a stream"),
                          ("study.singular_values=[]", "study.singular_values, study.forget_biases: must not both be "
                           "empty")):
        code, _, err = command(word, "study.forget_biases=[]", "name=h")
        assert (code, err) == (2, f"dltrain: error: {message}\n")
    assert command("study.lr=-1")[::2] == (2, "dltrain: error: study.lr=-1: must be a number > 0\n")


# OverFeat


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
    windows = net(windows_of(images, window_px, 4)).view(2, *dense.shape[2:], 5)
    torch.testing.assert_close(dense, windows.permute(0, 3, 1, 2), rtol=0, atol=1e-5)


def test_a_layer_over_a_map_is_a_convolution():
    torch.manual_seed(0)
    net, map_ = OverFeat(5, window_px=32), torch.randn(1, 32, 6, 6)
    expected = net.hidden(map_.flatten(1))
    torch.testing.assert_close(convolve(map_, net.hidden, 6)[:, :, 0, 0], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"^window_px must be a multiple of 4, at least 16, but is 18"):
        OverFeat(5, window_px=18)


def test_overfeat_reuse_measures_the_windows_and_their_times(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command(monkeypatch, capsys, "experiment=overfeat_reuse", "name=o", "study.image_px=[32,48]",
                                 "study.repeats=1")
    assert (code, err) == (0, "")
    rows = read_csv(tmp_path / "outputs/o/reuse.csv")
    assert [(row["image_px"], row["windows"]) for row in rows] == [("32", "1"), ("48", "25")]
    assert [line.split()[:4] for line in out.splitlines() if " x " in line] == [
        ["32", "x", "32", "1"], ["48", "x", "48", "25"]]
    result = result_of(tmp_path / "outputs/o")
    assert result["largest_difference"] == max(float(row["largest_difference"]) for row in rows) < 1e-5
    assert result["ratio_at_48_px"] == pytest.approx(float(rows[1]["seconds_windowed"])
                                                     / float(rows[1]["seconds_dense"]))
    assert (tmp_path / "outputs/o/results.png").stat().st_size > 5000


# comparisons


def test_the_rcnn_family_is_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "NUM_EVAL_IMAGES", 2)
    monkeypatch.setattr(comparison, "TIMED_IMAGES", 1)
    code, out, err = run_command(monkeypatch, capsys, "experiment=rcnn_family", "name=f", "study.seeds=[0]",
                                 'study.more=["trainer.max_epochs=1","data.num_train=4","model.backbone.depth=8",'
                                 '"data.image_px=32","data.sizes_px=[10,20]"]')
    assert (code, err) == (10, "")
    path = tmp_path / "outputs/f"
    runs = {"R-CNN": "R-CNN-seed0", "Fast R-CNN": "Fast_R-CNN-seed0", "Faster R-CNN": "Faster_R-CNN-seed0"}
    rows = {row["run"]: row for row in read_csv(path / "comparison.csv")}
    assert [*rows] == [*runs]
    result = result_of(path)
    for name, folder in runs.items():
        rates = [float(row["images_per_second"]) for row in RunDir(path / folder).read_metrics()
                 if row["images_per_second"]]
        assert float(rows[name]["train_ms_per_image"]) == pytest.approx(1000 / median(rates))
        assert float(rows[name]["test/map"]) == result_of(path / folder)["test/map"] == result[f"test/map, {name}"]
        assert result[f"test_ms_per_image, {name}"] == float(rows[name]["test_ms_per_image"]) > 0
    less = result["test_ms_per_image, Fast R-CNN"] < result["test_ms_per_image, R-CNN"]
    assert result["claim, test_ms_per_image: Fast R-CNN < R-CNN"] == "UNDECIDED"  # one seed
    assert f"of R-CNN; by {'+' if less else '-'}" in out
    counts = {result_of(path / runs[name])["parameters"] for name in ("R-CNN", "Fast R-CNN")}
    assert len(counts) == 1, "backbone and head are the same"
    (header,) = (line for line in out.splitlines() if "AP50" in line)
    assert re.split(" {2,}", header.strip()) == ["train, ms per image", "test, ms per image", "AP", "AP50"]


def test_a_captioner_starts_from_a_trained_classifier(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "NUM_EVAL_IMAGES", 4)
    code, out, err = run_command(monkeypatch, capsys, "experiment=caption_transfer", "name=t", "study.seeds=[0]",
                                 'study.more=["trainer.max_epochs=1","data.num_train=8","data.batch_size=8",'
                                 '"data.image_px=32"]')
    assert (code, err) == (10, "")
    path = tmp_path / "outputs/t"
    folders = ["classifier-seed0", "from_scratch-seed0", "from_a_classifier_fine-tuned-seed0",
               "from_a_classifier_frozen-seed0", "random_frozen-seed0"]
    assert sorted(folder.parent.name for folder in path.glob("*/result.json")) == sorted(folders)
    assert [result_of(path / folder)["steps"] for folder in folders[1:]] == [1] * 4
    assert [row["test/bleu_4"] == "" for row in read_csv(path / "comparison.csv")] == [True, *[False] * 4]
    first, *stems = (torch.load(path / folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"][key]
                     for folder, name, key in [(folders[0], "best", "model.stem.0.weight"),
                                               *((folder, "last", "model.backbone.stem.0.weight")
                                                 for folder in folders[1:])])
    assert [torch.equal(stem, first) for stem in stems] == [False, False, True, False]
    assert len([line for line in out.splitlines() if line.startswith("  UNDECIDED  test/bleu_4: ")]) == 3
