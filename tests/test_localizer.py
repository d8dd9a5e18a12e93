"""The localizer: its box codes, its losses and the moments of its probability maps, against loops."""

import math

import pytest
import torch

from dltrain.batches import generator
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.localizer import Localizer, decode, encode, moments


def test_boxes_are_coded_in_units_of_the_images_sides():
    image, boxes = torch.zeros(3, 64, 128), torch.tensor([[8.0, 16, 40, 32]])
    assert encode(boxes, image).tolist() == [[24 / 128, 24 / 64, 32 / 128, 16 / 64]]
    torch.testing.assert_close(decode(encode(boxes, image), image), boxes)
    outside = decode(torch.tensor([[0.0, 0.75, 0.5, 1.0]]), image)
    assert outside.tolist() == [[0, 16, 32, 64]], "clipped to the image"


def test_losses_and_detections():
    torch.manual_seed(0)
    model = Localizer(CifarResNet(8), 10, points=4, box_weight=2.0)
    image, boxes = torch.randn(3, 64, 64), torch.tensor([[8.0, 16, 40, 32]])
    logits, codes = model.eval().logits_and_codes([image])
    losses = model([image], [{"boxes": boxes, "labels": torch.tensor([3])}])
    assert losses.keys() == {*Localizer.losses}
    torch.testing.assert_close(losses["loss_classifier"], -logits.log_softmax(1)[0, 3])
    distances = [abs(code - b) for code, b in zip(codes[0].tolist(), [0.375, 0.375, 0.5, 0.25], strict=True)]
    smooth_l1 = sum(d**2 / 0.1 if d < 0.05 else d - 0.025 for d in distances) / 4
    assert losses["loss_box_reg"].item() == pytest.approx(2 * smooth_l1, rel=1e-5)
    (detected,) = model.detect([image])
    assert detected["labels"].tolist() == [logits.argmax().item()]
    assert detected["scores"].tolist() == pytest.approx([logits.softmax(1).max().item()])
    torch.testing.assert_close(detected["boxes"], decode(codes, image))


def test_moments_equal_a_loop():
    maps = torch.randn(2, 3, 4, 5, generator=generator("moments"))
    values = moments(maps)
    assert values.shape == (2, 4 * 3)
    for image in range(2):
        for point in range(3):
            probabilities = maps[image, point].exp() / maps[image, point].exp().sum()
            for axis, size, first in ((1, 5, 0), (0, 4, 6)):
                places = [(i + 0.5) / size for i in range(size)]
                marginal = probabilities.sum(1 - axis).tolist()
                mean = sum(p * place for p, place in zip(marginal, places, strict=True))
                variance = sum(p * (place - mean) ** 2 for p, place in zip(marginal, places, strict=True))
                assert values[image, first + point].item() == pytest.approx(mean, abs=1e-5)
                assert values[image, first + 3 + point].item() == pytest.approx(math.sqrt(variance + 1e-6), abs=1e-5)


@pytest.mark.parametrize("count", [0, 2])
def test_images_without_exactly_one_object_are_refused(count):
    model = Localizer(CifarResNet(8), 10, points=4, box_weight=2.0)
    targets = [{"boxes": torch.tensor([[1.0, 1, 9, 9]] * n).reshape(-1, 4), "labels": torch.zeros(n, dtype=torch.long)}
               for n in (1, count)]
    message = f"one object an image, but they have {min(1, count)} to {max(1, count)}; scenes .* data.max_objects=1"
    with pytest.raises(ValueError, match=message):
        model([torch.zeros(3, 64, 64)] * 2, targets)


def test_boxes_are_boxes_whatever_the_codes_and_images_of_two_sizes_are_refused():
    image = torch.zeros(3, 48, 64)
    boxes = decode(torch.tensor([[0.5, 0.5, -0.2, 0.3], [0.9, 0.9, 0.4, -1.0], [2.0, 2.0, 0.1, 0.1]]), image)
    assert bool((boxes[:, 2:] >= boxes[:, :2]).all())
    assert bool((boxes >= 0).all())
    with pytest.raises(ValueError, match="needs images of one size, but they are 48 x 64 and 64 x 48"):
        Localizer(CifarResNet(8), 10, points=4, box_weight=2.0).detect([image, torch.zeros(3, 64, 48)])
