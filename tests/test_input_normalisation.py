"""What the normalisation of the input does: its two statistics against loops, and the experiment."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dltrain.augment.pipeline import Normalize
from dltrain.build import build_data
from dltrain.models.mlp import MLP
from dltrain.studies import batchnorm_effect, input_normalisation
from dltrain.studies.input_normalisation import Raw, measure_patches, normalizer
from tests.command_line import run_command


@pytest.fixture
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    brightness = torch.randint(40, 200, (12, 1, 1, 1), generator=generator)
    return (brightness + torch.randint(0, 56, (12, 2, 6, 6), generator=generator)).to(torch.uint8)


def test_equal_channels_are_as_badly_conditioned_as_numbers_can_be(pixels):
    grey = pixels[:, :1].expand(-1, 3, -1, -1)
    for kind in ("raw", "mean_pixel"):
        conditioning, _ = measure_patches(normalizer(kind, grey), grey)
        assert conditioning == pytest.approx(1 / torch.finfo(torch.double).eps)


def test_an_accuracy_at_the_target_has_reached_it(config, monkeypatch):
    module = build_data(config("data=digits", "recipe=none", "model=resnet20"))
    labels = torch.cat([batch.labels for batch in module.read("val", [torch.arange(module.num_samples("val"))])])
    right = torch.arange(len(labels)) < round(0.9 * len(labels))
    logits = F.one_hot(torch.where(right, labels, (labels + 1) % 10), 10).float()
    monkeypatch.setattr(Raw, "forward", lambda _, images: logits[: len(images)])
    accuracy = input_normalisation.accuracy_of(nn.Identity(), Raw(), module, "val")
    assert 10 * int(right.sum()) == 9 * len(labels), "nine tenths of them"
    assert input_normalisation.steps_to(0.9, input_normalisation.History([0.1, accuracy, 1.0], 1.0), [0, 5, 10]) == 5
    net = MLP(4, 10)
    monkeypatch.setattr(net, "last_inputs", lambda _: logits)
    monkeypatch.setattr(net, "head", nn.Identity())
    measured, _ = batchnorm_effect.measure(net, torch.zeros(1), labels)
    assert float(measured) >= 0.9


@pytest.mark.parametrize("kind", ["raw", "box", "per_pixel", "standard"])
def test_conditioning_and_border_are_those_of_a_loop_over_the_patches(kind, pixels):
    images = normalizer(kind, pixels)(pixels).double().numpy()
    inside, border = list[np.ndarray](), list[np.ndarray]()
    for image in np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))):
        for y in range(6):
            for x in range(6):
                patch = image[:, y : y + 3, x : x + 3].flatten()
                (border if y in (0, 5) or x in (0, 5) else inside).append(patch)
    centre = np.mean(inside, 0)
    eigenvalues = np.linalg.eigvalsh(np.mean([np.outer(patch, patch) for patch in inside], 0))
    expected = eigenvalues[-1] / eigenvalues[0], (np.linalg.norm(np.mean(border, 0) - centre)
                                                  / np.var(inside, 0).sum() ** 0.5)
    assert measure_patches(normalizer(kind, pixels), pixels) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_border_of_zeros_is_the_mean_of_centred_images_alone(pixels):
    assert measure_patches(Raw(), pixels)[1] > 1
    assert measure_patches(normalizer("per_pixel", pixels), pixels)[1] < 1e-6


def test_whitened_patches_are_conditioned_best():
    """Of independent pixels, whose covariance is far enough above the term that is added to it."""
    images = torch.randint(0, 256, (4000, 1, 5, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    conditioning, _ = measure_patches(normalizer("whiten", images), images)
    assert 1 <= conditioning < 1.3 < measure_patches(normalizer("mean_pixel", images), images)[0] * 1.3
    assert measure_patches(Raw(), images)[0] > 10


def test_an_unknown_normalisation_is_named(pixels):
    with pytest.raises(Exception, match=r"^study\.normalizations: normalize must be one of mean_pixel, .*but is mean$"):
        normalizer("mean", pixels)
    assert isinstance(normalizer("box", pixels), Normalize)


def test_steps_to_a_target_are_all_where_it_is_not_reached():
    history = input_normalisation.History([0.1, 0.8, 0.7, 0.9], 0.5)
    steps = [input_normalisation.steps_to(target, history, [0, 5, 10, 15]) for target in (0.8, 0.85, 0.95)]
    assert steps == [5, 15, 15]


def test_the_experiment_compares_the_normalisations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=input_normalisation", "name=n", "study.image_px=12", "study.steps=4", "study.evaluations=2",
             "study.lrs=[0.01]", "study.seeds=[0]", "study.normalizations=[raw,standard]"]
    code, out, err = run_command(monkeypatch, capsys, *words, 'study.claims=["border: standard < raw"]')
    assert (code, err) == (0, "")  # one seed decides it, since none changes it
    assert "SUPPORTED  border: standard < raw" in out
    result = json.loads((tmp_path / "outputs/n/result.json").read_text())
    with open(tmp_path / "outputs/n/comparison.csv", newline="") as lines:
        rows = {row["run"]: row for row in csv.DictReader(lines)}
    assert list(rows) == ["raw", "standard"]
    assert float(rows["raw"]["border"]) == pytest.approx(result["border, raw"])
    assert result["border, raw"] > result["border, standard"]
    assert result["steps_to_target, raw"] == 4
    code, _, err = run_command(monkeypatch, capsys, *words, "name=o", "study.claims=[]", "study.data=scenes")
    assert code == 2
    assert "but data=scenes yields DetectionBatch. Data that fits: " in err
    code, _, err = run_command(monkeypatch, capsys, *words, "name=m", 'study.claims=["borders: standard < raw"]')
    assert (code, err) == (2, "dltrain: error: study.claims: 'borders: standard < raw': there is no 'borders'; did you "
                              "mean 'border'?\n")
