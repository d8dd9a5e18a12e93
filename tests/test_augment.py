"""Normalisation, colour, erasing and mixing, each against torchvision, NumPy or a loop over samples; the order and the
refusals of the pipeline."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from dltrain.augment import colour, erasing, geometry, mixing, resampling
from dltrain.augment.geometry import HorizontalFlip, PadCrop
from dltrain.augment.pipeline import WHITEN_EPSILON, Augment, Normalize, Transform
from dltrain.augment.statistics import products_of
from dltrain.batches import ClassificationBatch, generator
from dltrain.build import build_task
from dltrain.errors import UserError
from dltrain.tasks.classification import num_correct


def make_batch(count: int, channels: int = 3, px: int = 8) -> ClassificationBatch:
    images = torch.randint(0, 256, (count, channels, px, px), dtype=torch.uint8, generator=generator("test"))
    return ClassificationBatch(images, torch.arange(count))


def make_images(count: int, channels: int = 3, px: int = 12) -> torch.Tensor:
    return torch.rand(count, channels, px, px, generator=generator("floats"))


def constant_batch(count: int, value: float, channels: int = 1, px: int = 12) -> ClassificationBatch:
    return ClassificationBatch(torch.full((count, channels, px, px), value), torch.zeros(count).long())


# normalisation and the pipeline


@pytest.mark.parametrize("kind", ["mean_pixel", "per_pixel", "standard"])
def test_statistics_equal_numpys_and_invert(kind):
    pixels = make_batch(2500, 3, 6).images
    normalize = Normalize(kind, 3, 6)
    normalize.fit(pixels)
    values = pixels.numpy().astype(np.float64) / 255
    axes = (0,) if kind == "per_pixel" else (0, 2, 3)
    np.testing.assert_allclose(normalize.mean.numpy(), values.mean(axes, keepdims=True), rtol=1e-6)
    if kind == "standard":
        np.testing.assert_allclose(normalize.std.numpy(), values.std(axes, keepdims=True), rtol=1e-6)
    out = normalize(pixels)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.mean((0, 2, 3)).numpy(), 0, atol=1e-5)
    if kind == "standard":
        np.testing.assert_allclose(out.std((0, 2, 3)).numpy(), 1, atol=1e-3)
    assert torch.equal(normalize.invert(out), pixels)


class Remembers(Transform):
    """A transform whose statistic needs all images at once."""

    def fit(self, pixels):
        self.median = int(pixels.median())

    def __call__(self, batch, rng):
        return batch


@pytest.mark.parametrize("kind", ["mean_pixel", "per_pixel", "standard", "whiten"])
def test_statistics_of_batches_are_those_of_all_images(kind):
    pixels = make_batch(150, 3, 6).images
    one, other = (Augment(kind, 3, 6, on_pixels=[colour.Lighting(), Remembers()]) for _ in range(2))
    one.fit(pixels)
    other.fit(iter(pixels.split(41)))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert other.on_pixels[1].median == int(pixels.median())  # type: ignore[attr-defined]
    assert not torch.equal(one.normalize.mean, torch.zeros_like(one.normalize.mean))


@pytest.mark.parametrize("count", [256, 1000, 65_536])
def test_products_of_colours_are_exact_also_of_the_brightest(count):
    colours = torch.randint(0, 256, (3, count), generator=generator("products")).to(torch.uint8)
    colours[:2] = 255
    assert torch.equal(products_of(colours), (colours.long() @ colours.long().T).double())


def test_images_are_not_read_for_nothing():
    def refuse() -> Iterator[Tensor]:
        raise AssertionError("read")
        yield

    Augment("imagenet", 3, 6, on_pixels=[colour.ColorJitter(0.1)]).fit(refuse())
    with pytest.raises(AssertionError, match="read"):
        Augment("standard", 3, 6).fit(refuse())


def test_whitened_data_has_an_identity_covariance_and_inverts():
    base = torch.randint(0, 256, (3000, 1, 4, 4), generator=generator("white"))
    pixels = ((base + base.roll(1, 3) + base.roll(1, 2)) // 3).to(torch.uint8)  # neighbours are correlated
    normalize = Normalize("whiten", 1, 4)
    normalize.fit(pixels)
    flat = normalize(pixels).flatten(1).double().numpy()
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-5)
    covariance = np.cov(flat.T, ddof=0)
    before = np.cov(pixels.flatten(1).double().numpy().T / 255, ddof=0)
    values, vectors = np.linalg.eigh(before)
    np.testing.assert_allclose(covariance, vectors * (values / (values + WHITEN_EPSILON)) @ vectors.T, atol=1e-4)
    assert np.abs(covariance - np.eye(16)).max() < WHITEN_EPSILON / values.min() + 1e-4
    assert torch.equal(normalize.invert(normalize(pixels)), pixels)


def test_box_maps_to_minus_one_and_one():
    normalize = Normalize("box", 1, 2)
    normalize.fit(make_batch(3, 1, 2).images)
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)
    assert normalize(ends).flatten().tolist() == [-1, 1]
    assert torch.equal(normalize.invert(normalize(ends)), ends)


def test_evaluation_only_normalises():
    augment = Augment("mean_pixel", 3, 8, on_pixels=[HorizontalFlip(1.0)], on_normalized=[PadCrop(4)])
    batch = make_batch(4)
    assert torch.equal(augment(batch).images, batch.images.float() / 255)


def test_transforms_run_in_order_around_the_normalisation():
    """on_pixels gets values in [0, 1], on_normalized values around 0. Any callable is a transform."""
    calls = []

    def record(name):
        def call(batch, rng):
            calls.append((name, float(batch.images.min()) < 0, float(batch.images.max()) <= 1))
            return batch._replace(images=batch.images / 2)
        return call

    augment = Augment("box", 3, 8, on_pixels=[record("a"), record("b")], on_normalized=[record("c"), record("d")])
    batch = make_batch(2)
    out = augment(batch, generator("x")).images
    assert calls == [("a", False, True), ("b", False, True), ("c", True, True), ("d", True, True)]
    torch.testing.assert_close(out, (batch.images.float() / 255 / 4 * 2 - 1) / 4)


class Counting(torch.nn.Module, Transform):
    """A transform from outside, with statistics."""

    num_images: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("num_images", torch.zeros(()))

    def check(self, channels: int, image_px: int) -> None:
        if image_px > 8:
            raise ValueError("too large for Counting")

    def fit(self, pixels: torch.Tensor) -> None:
        self.num_images.fill_(len(pixels))

    def forward(self, batch, rng):
        return batch._replace(images=batch.images + self.num_images)


def test_a_transform_from_outside_is_checked_fitted_and_saved():
    augment = Augment("box", 3, 8, on_normalized=[PadCrop(0), Counting()])
    augment.fit(make_batch(5).images)
    resumed = Augment("box", 3, 8, on_normalized=[PadCrop(0), Counting()])
    resumed.load_state_dict(augment.state_dict())
    batch = make_batch(2)
    torch.testing.assert_close(resumed(batch, generator("x")).images, batch.images / 127.5 - 1 + 5)
    with pytest.raises(ValueError, match=r"on_normalized.1 \(Counting\): too large for Counting"):
        Augment("box", 3, 9, on_normalized=[PadCrop(0), Counting()])


# colour


@pytest.mark.parametrize(("adjust", "expected"), [
    (colour.adjust_brightness, reference.adjust_brightness), (colour.adjust_contrast, reference.adjust_contrast),
    (colour.adjust_saturation, reference.adjust_saturation)])
def test_colour_factors_equal_torchvision(adjust, expected):
    images, factors = make_images(20), geometry.sample_uniform(0.2, 1.8, 20, generator("f"))
    for image, factor, result in zip(images, factors, adjust(images, factors[:, None, None, None]), strict=True):
        torch.testing.assert_close(result, expected(image, float(factor)), atol=1e-5, rtol=1e-4)


def test_hue_equals_torchvision():
    images, shifts = make_images(20), geometry.sample_uniform(-0.5, 0.5, 20, generator("h"))
    images[0] = 0.5  # a grey image has no hue
    for image, shift, result in zip(images, shifts, colour.adjust_hue(images, shifts[:, None, None]), strict=True):
        torch.testing.assert_close(result, reference.adjust_hue(image, float(shift)), atol=1e-4, rtol=1e-3)


def test_color_jitter_equals_torchvision_with_the_same_factors():
    batch, rng = ClassificationBatch(make_images(20), torch.zeros(20).long()), generator("jitter")
    ranges = ((0.5, 1.5), (0.6, 1.4), (0, 2.2), (-0.3, 0.3))
    factors = [geometry.sample_uniform(low, high, 20, rng) for low, high in ranges]
    results = colour.ColorJitter(0.5, 0.4, 1.2, 0.3)(batch, generator("jitter")).images
    for image, result, (brightness, contrast, saturation, hue) in zip(
            batch.images, results, torch.stack(factors, dim=1).tolist(), strict=True):
        expected = reference.adjust_contrast(reference.adjust_brightness(image, brightness), contrast)
        expected = reference.adjust_hue(reference.adjust_saturation(expected, saturation), hue)
        torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-3)


def test_blur_equals_torchvision():
    images, sigmas = make_images(12), geometry.sample_uniform(0.3, 2.0, 12, generator("b"))
    for image, sigma, result in zip(images, sigmas, colour.blur(images, sigmas, 5), strict=True):
        expected = reference.gaussian_blur(image, [5, 5], [float(sigma)] * 2)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


def test_lighting_adds_the_principal_components_of_the_colours():
    colours = torch.randn(4000, 3, generator=generator("l")) @ torch.diag(torch.tensor([40.0, 20.0, 5.0])) + 128
    pixels = colours.clamp(0, 255).to(torch.uint8).reshape(4000, 3, 1, 1)
    lighting = colour.Lighting(0.1)
    Augment("box", 3, 1, on_pixels=[lighting]).fit(pixels)
    values, vectors = np.linalg.eigh(np.cov(pixels.flatten(1).numpy().T / 255, ddof=0))
    np.testing.assert_allclose((lighting.axes @ lighting.axes.T).numpy(), vectors * values**2 @ vectors.T, atol=1e-8)
    noise = lighting(constant_batch(6000, 0.5, 3, 2), generator("m")).images - 0.5
    assert torch.equal(noise[:, :, 0, 0], noise[:, :, 1, 1]), "all pixels of an image get the same colour"
    expected = 0.01 * (vectors * values**2 @ vectors.T)
    np.testing.assert_allclose(np.cov(noise[:, :, 0, 0].numpy().T), expected, atol=0.05 * expected.max())


def test_the_statistics_of_lighting_are_saved():
    augment, resumed = (Augment("box", 3, 8, on_pixels=[colour.Lighting(0.5)]) for _ in range(2))
    augment.fit(make_batch(50).images)
    resumed.load_state_dict(augment.state_dict())
    batch = make_batch(3)
    expected = augment(batch, generator("x")).images
    assert not torch.equal(expected, augment(batch).images)
    assert torch.equal(resumed(batch, generator("x")).images, expected)


def test_noise_has_its_standard_deviation():
    noise = colour.GaussianNoise(0.05)(constant_batch(50, 0.5, 3), generator("n")).images - 0.5
    assert float(noise.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(noise.mean())) < 0.001


# erasing


@pytest.mark.parametrize("px", [12, 64])
def test_cutout_equals_a_loop(px):
    images, centres = make_images(30, 3, px), torch.randint(0, px, (30, 2), generator=generator("c"))
    windows = torch.cat([centres - 2, torch.full((30, 2), 5)], dim=1)
    for image, (y, x), result in zip(images, centres.tolist(), erasing.erase_windows(images, windows), strict=True):
        expected = image.clone()
        expected[:, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 0
        assert torch.equal(result, expected)


def test_random_erasing_has_its_probability_and_area():
    transform = erasing.RandomErasing(0.4, (0.1, 0.3), (0.5, 2.0))
    erased = transform(constant_batch(4000, 1.0, px=20), generator("e")).images == 0
    fractions = erased.float().mean((1, 2, 3))
    fractions = fractions[fractions > 0]
    assert abs(len(fractions) / 4000 - 0.4) < 4 * (0.4 * 0.6 / 4000) ** 0.5
    assert float(fractions.min()) > 0.08
    assert float(fractions.max()) < 0.33
    assert float(fractions.mean()) == pytest.approx(0.2, abs=0.01)


# mixing


def test_mixup_equals_a_loop_and_labels_sum_to_one():
    images, labels = make_images(16), torch.arange(16) % 5
    mixed = mixing.Mixup(0.4, 5)(ClassificationBatch(images, labels), generator("mix"))
    rng = generator("mix")
    partner, weight = torch.randperm(16, generator=rng), mixing.sample_beta(0.4, 16, rng)
    for i in range(16):
        expected = weight[i] * images[i] + (1 - weight[i]) * images[partner[i]]
        torch.testing.assert_close(mixed.images[i], expected)
        target = torch.zeros(5)
        target[labels[i]] += weight[i]
        target[labels[partner[i]]] += 1 - weight[i]
        torch.testing.assert_close(mixed.labels[i], target)
    torch.testing.assert_close(mixed.labels.sum(1), torch.ones(16))


def test_cutmix_labels_are_the_fractions_of_pixels():
    labels = torch.arange(32) % 4
    images = labels[:, None, None, None].expand(32, 1, 12, 12).float()
    mixed = mixing.CutMix(1.0, 4)(ClassificationBatch(images, labels), generator("cut"))
    for image, target in zip(mixed.images, mixed.labels, strict=True):
        torch.testing.assert_close(torch.bincount(image.flatten().long(), minlength=4) / 144, target)
    assert (mixed.labels.max(1).values < 1).float().mean() > 0.5  # three of four have a partner of another label


def test_beta_has_its_moments():
    values = mixing.sample_beta(0.4, 20000, generator("beta"))
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.var()) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.03)


def test_accuracy_of_mixed_labels_is_the_weight_of_the_predicted_class():
    mixed = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    assert float(num_correct(torch.tensor([0, 0]), mixed)) == pytest.approx(0.9)
    assert int(num_correct(torch.tensor([0, 1]), torch.tensor([0, 0]))) == 1


# what holds for every transform


@pytest.mark.parametrize(("make", "message"), [
    (lambda: PadCrop(-1), "padding_px must be >= 0"), (lambda: HorizontalFlip(1.5), r"p must be in \[0, 1\]"),
    (lambda: Normalize("median", 3, 8), "mean_pixel, per_pixel, standard, box, imagenet, whiten"),
    (lambda: Normalize("whiten", 3, 64), "use normalize=standard for large images"),
    (lambda: Normalize("imagenet", 1, 8), "3 channels, but they have 1"),
    (lambda: Augment("box", 1, 8, [colour.ColorJitter(hue=0.1)]), "must be 0 for grey images"),
    (lambda: Augment("box", 1, 8, [colour.Lighting()]), "3 channels"),
    (lambda: Augment("box", 3, 8, [erasing.Cutout(9)]), "at most the image's 8"),
    (lambda: Augment("box", 3, 8, [PadCrop(8, "reflect")]), "less than the image's 8 px"),
    (lambda: Augment("box", 3, 8, [resampling.ScaleJitter(9, (9, 20))]), "at most the image's 8"),
    (lambda: Augment("box", 3, 8, [colour.GaussianBlur(17)]), "twice the image's 8 px"),
    (lambda: PadCrop(4, "mirror"), "mode must be"), (lambda: colour.ColorJitter(hue=0.6), "hue must be"),
    (lambda: colour.GaussianBlur(4), "kernel_px must be odd"), (lambda: colour.GaussianNoise(-1), "std must be"),
    (lambda: mixing.Mixup(0, 3), "alpha must be"), (lambda: resampling.Affine(degrees=200), "degrees must be"),
    (lambda: resampling.Affine(scale=(1.2, 0.8)), "low <= high"),
    (lambda: resampling.ResizedCrop(8, (0.0, 1.0)), r"scale \[low, high\] in \(0, 1\]"),
    (lambda: erasing.RandomErasing(1.5), "p must be"),
    (lambda: erasing.RandomErasing(scale=(0.5, 0.1)), "low <= high"), (lambda: erasing.Cutout(0), "px must be"),
])
def test_bad_arguments_are_refused_before_the_first_step(make, message):
    with pytest.raises(ValueError, match=message):
        make()


MIXUP = "augment.on_normalized=[{_target_: dltrain.augment.mixing.Mixup, alpha: 0.2, num_classes: %s}]"


@pytest.mark.parametrize(("model", "num_classes", "message"), [
    ("resnet20", 9, r"^task \(Classification\): augment.on_normalized.0 \(Mixup\): num_classes must be 10, .* is 9;"),
    ("resnet20", 11, r"num_classes must be 10, that of the data, but is 11; write \$\{data.num_classes\}$"),
    ("faster_rcnn", 3, r"\(Mixup\) mixes the labels of images, which DetectionBatch does not have")])
def test_labels_are_mixed_of_images_and_as_many_classes_as_the_data_have(model, num_classes, message, config):
    with pytest.raises(UserError, match=message):
        build_task(config(f"model={model}", MIXUP % num_classes))


ALL = [PadCrop(2, "reflect"), HorizontalFlip(0.5), resampling.ResizedCrop(8), resampling.ScaleJitter(8, (8, 12)),
       resampling.Affine(20, 0.1, (0.8, 1.2), 10), erasing.Cutout(3), erasing.RandomErasing(0.9),
       colour.ColorJitter(0.5, 0.5, 0.5, 0.2), colour.GaussianBlur(3), colour.GaussianNoise(0.1),
       mixing.Mixup(0.5, 3), mixing.CutMix(1.0, 3)]


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_a_transform_is_a_function_of_its_generator_and_differs_by_sample(transform):
    images = make_images(1).repeat(32, 1, 1, 1)
    if isinstance(transform, mixing.MixingTransform):
        images = make_images(32)
    batch = ClassificationBatch(images, torch.arange(32) % 3)
    first, again = (transform(batch, generator("augment", 1, 2, 3)) for _ in range(2))
    later = transform(batch, generator("augment", 1, 2, 4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, later.images)
    num_distinct = len(torch.unique(first.images.flatten(1), dim=0))
    assert num_distinct == 2 if isinstance(transform, HorizontalFlip) else num_distinct > 8
