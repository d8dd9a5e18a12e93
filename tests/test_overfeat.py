"""OverFeat as a detector: where its windows lie, what they learn, how their boxes are merged."""

import math

import pytest
import torch
import torch.nn.functional as F

from dltrain.batches import generator
from dltrain.models import overfeat
from dltrain.models.overfeat import OverFeatDetector


def build_detector() -> OverFeatDetector:
    torch.manual_seed(0)
    return OverFeatDetector(num_classes=10, in_channels=3, width=4, hidden=8, window_px=32, scales=[1.0, 1.5],
                            windows=16, score_threshold=0.05, nms=0.5)


def test_windows_lie_where_their_pixels_are():
    """The outputs of a window equal those of its pixels alone, cropped from the scaled image with its margin."""
    model = build_detector().eval()
    image = torch.randn(3, 48, 64, generator=generator("slide"))
    logits, codes, windows = model.slide([image])
    assert logits.shape == (1, len(windows), 11)
    start = 0
    for scale in (1.0, 1.5):
        scaled = F.interpolate(image[None], size=(round(48 * scale), round(64 * scale)), mode="bilinear")
        framed = F.pad(scaled, (8, 8, 8, 8))
        rows, columns = (framed.shape[2] - 32) // 4 + 1, (framed.shape[3] - 32) // 4 + 1
        for row, column in ((0, 0), (2, 5), (rows - 1, columns - 1)):
            index = start + row * columns + column
            alone = model.net(framed[:, :, 4 * row : 4 * row + 32, 4 * column : 4 * column + 32])[0]
            torch.testing.assert_close(torch.cat([logits[0, index], codes[0, index]]), alone)
            x, y = (4 * column - 8) / scale, (4 * row - 8) / scale
            torch.testing.assert_close(windows[index], torch.tensor([x, y, x + 32 / scale, y + 32 / scale]))
        start += rows * columns
    assert start == len(windows)


WINDOWS = torch.tensor([[0.0, 0, 32, 32], [40, 40, 72, 72], [10, 0, 42, 32], [14, 0, 46, 32], [200, 0, 232, 32]])
TARGET = {"boxes": torch.tensor([[8.0, 0, 24, 32], [41, 41, 70, 70]]), "labels": torch.tensor([7, 2])}
NO_OBJECTS = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}


def test_windows_learn_the_objects_they_overlap():
    model = build_detector()
    labels, objects = model.match(WINDOWS, TARGET)
    assert labels.tolist() == [7, 2, 7, -1, 10]
    assert objects[:3].tolist() == [0, 1, 0]
    assert overfeat.squares(TARGET["boxes"])[0].tolist() == [0, 0, 32, 32]
    assert model.match(WINDOWS, NO_OBJECTS)[0].tolist() == [10] * 5


def test_boxes_are_coded_in_units_of_the_windows_side():
    codes = overfeat.encode(TARGET["boxes"], WINDOWS[:2])
    assert codes[0].tolist() == pytest.approx([0, 0, math.log(0.5), 0], abs=1e-6)
    assert codes[1].tolist() == pytest.approx([-0.5 / 32, -0.5 / 32, math.log(29 / 32), math.log(29 / 32)], abs=1e-6)
    torch.testing.assert_close(overfeat.decode(codes, WINDOWS[:2]), TARGET["boxes"])


def test_losses_are_those_of_the_sampled_windows(monkeypatch):
    model, images = build_detector(), [torch.randn(3, 64, 64, generator=generator("i", i)) for i in range(2)]
    logits, codes, windows = model.slide(images)
    monkeypatch.setattr(model, "window_sampler", lambda kinds: (
        [(one == 1).nonzero()[:2, 0] for one in kinds], [(one == 0).nonzero()[:3, 0] for one in kinds]))
    target = {name: value[:1] for name, value in TARGET.items()}
    losses = model(images, [target, NO_OBJECTS])
    labels, _ = model.match(windows, target)
    with_object, background = (labels == 7).nonzero()[:2, 0], (labels == 10).nonzero()[:3, 0]
    log_p = logits.log_softmax(2)
    expected = [log_p[0, index, 7] for index in with_object] + [log_p[0, index, 10] for index in background]
    expected += [log_p[1, index, 10] for index in range(3)]
    torch.testing.assert_close(losses["loss_classifier"], -torch.stack(expected).mean())
    target_codes = overfeat.encode(TARGET["boxes"][[0, 0]], windows[with_object])
    distances = (codes[0, with_object] - target_codes).abs().flatten().tolist()
    smooth_l1 = sum(d**2 / 0.2 if d < 0.1 else d - 0.05 for d in distances) / 2
    assert losses["loss_box_reg"].item() == pytest.approx(smooth_l1, rel=1e-5)


def test_a_quarter_of_the_sampled_windows_has_objects():
    sampled, few = (torch.cat(chosen) for chosen in zip(*build_detector().window_sampler(
        [torch.tensor([1] * 20 + [0] * 30 + [-1] * 9), torch.tensor([1] * 2 + [0] * 30)]), strict=True))
    assert len(sampled) == len(set(sampled.tolist())) == 16
    assert (sampled < 20).sum() == 4
    assert (sampled < 50).all()
    assert len(few) == 16
    assert {0, 1} <= {*few.tolist()}


def test_boxes_of_a_class_are_merged_by_their_scores():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [0, 0, 10, 11], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.9, 0.3, 0.6, 0.5]), torch.tensor([1, 1, 2, 1])
    merged = overfeat.merge(boxes, scores, labels, torch.tensor([0, 2, 3]), 0.5)
    assert merged.tolist() == [[0, 0, 10, pytest.approx((0.9 * 10 + 0.3 * 12) / 1.2)], [0, 0, 10, 11], [50, 50, 60, 60]]
