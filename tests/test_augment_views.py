"""Test-time augmentation against torchvision and a loop over the views."""

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from dltrain.augment.pipeline import Augment
from dltrain.augment.test_time_augmentation import Views
from dltrain.batches import generator


def make_images(count: int, px: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, px, px, generator=generator("floats"))


@pytest.fixture
def model() -> torch.nn.Module:
    """A small net, fully convolutional up to the average pool; flips and crops change its output."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                               torch.nn.Flatten(), torch.nn.Linear(5, 4)).eval()


def probabilities(model, *views: torch.Tensor) -> torch.Tensor:
    return torch.stack([model(view).softmax(1) for view in views])


def test_a_single_view_gives_the_models_logits(model):
    images = make_images(6)
    assert torch.equal(Views()(model, images), model(images))


def test_flip_is_the_mean_of_two_views(model):
    images = make_images(6)
    expected = probabilities(model, images, reference.horizontal_flip(images)).mean(0)
    torch.testing.assert_close(Views("flip")(model, images).exp(), expected)
    assert not torch.allclose(expected, model(images).softmax(1))


def test_ten_crop_equals_torchvisions(model):
    images = make_images(6)
    padded = reference.ten_crop(reference.pad(images, [2] * 4), [12, 12])
    result = Views("ten_crop", padding_px=2)(model, images).exp()
    torch.testing.assert_close(result, probabilities(model, *padded).mean(0))
    crops = reference.ten_crop(images, [8, 8])
    result = Views("ten_crop", crop_px=8)(model, images).exp()
    torch.testing.assert_close(result, probabilities(model, *crops).mean(0))


@pytest.mark.parametrize(("views", "px"), [(Views("ten_crop", padding_px=2), 12), (Views("ten_crop", crop_px=7), 7),
                                           (Views("ten_crop", padding_px=1, crop_px=9), 9)])
def test_ten_crop_takes_five_crops_and_the_mirror_image_of_each(views, px):
    """The crops by hand, with even and odd margins: corners, centre (rounded half to even), and each mirrored."""
    image = make_images(1)
    padded = torch.zeros(1, 3, 12 + 2 * views.padding_px, 12 + 2 * views.padding_px)
    padded[:, :, views.padding_px : views.padding_px + 12, views.padding_px : views.padding_px + 12] = image
    last = padded.shape[3] - px
    middle = round(last / 2)
    expected = []
    for y, x in ((0, 0), (0, last), (last, 0), (last, last), (middle, middle)):
        crop = padded[:, :, y : y + px, x : x + px]
        expected += [crop, torch.flip(crop, dims=[3])]
    result = list(views.views(image))
    assert len(result) == 10
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize(("kind", "combine"), [("scales_mean", lambda p: p.mean(0)),
                                               ("scales_max", lambda p: p.amax(0) / p.amax(0).sum(1, keepdim=True))])
def test_scales_are_combined_by_their_mean_or_maximum(kind, combine, model):
    images = make_images(6)
    sizes = [images, *(reference.resize(images, [side, side], antialias=True) for side in (15, 18))]
    result = Views(kind, scales=(1.0, 1.25, 1.5))(model, images).exp()
    torch.testing.assert_close(result, combine(probabilities(model, *sizes)), atol=1e-5, rtol=1e-4)


def test_images_are_resized_first_and_cropped_then(model):
    images = make_images(6, px=20)
    smaller = reference.resize(images, [16, 16], antialias=True)
    centre = reference.center_crop(smaller, [12, 12])
    torch.testing.assert_close(Views(crop_px=12, short_px=16)(model, images), model(centre), atol=1e-5, rtol=1e-4)
    result = Views("flip", crop_px=12, short_px=16)(model, images).exp()
    torch.testing.assert_close(result, probabilities(model, centre, centre.flip(3)).mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("keys", "message"), [
    ({"test": "five_crop"}, "test must be one of"), ({"test": "ten_crop"}, "the same crop five times"),
    ({"test": "ten_crop", "test_crop_px": 20}, "at most the padded image's 8"),
    ({"test_crop_px": 9}, "at most the image's 8"), ({"test_scales": []}, "test_scales"),
    ({"test_scales": [0.0]}, "numbers > 0"), ({"test_padding_px": -1}, "test_padding_px")])
def test_bad_regimes_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Augment("box", 3, 8, **keys)
