"""Each transform against a loop over samples with the same draws; the draws' distributions; the statistics."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from dltrain.augment import colour, erasing, geometry, mixing, resampling
from dltrain.augment.geometry import HorizontalFlip, PadCrop, crop
from dltrain.augment.pipeline import WHITEN_EPSILON, Augment, Normalize
from dltrain.augment.test_time_augmentation import Views
from dltrain.batches import ClassificationBatch, generator


def batch_of(count: int, channels: int = 3, px: int = 8) -> ClassificationBatch:
    images = torch.randint(0, 256, (count, channels, px, px), dtype=torch.uint8, generator=generator("test"))
    return ClassificationBatch(images, torch.arange(count))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("channels", "px", "padding"), [(3, 8, 4), (1, 8, 1), (3, 32, 4)])
def test_crop_equals_torchvision_sample_by_sample(dtype, channels, px, padding):
    images = batch_of(50, channels, px).images.to(dtype)
    offsets = torch.randint(0, 2 * padding + 1, (50, 2), generator=generator("offsets"))
    cropped = crop(images, padding, offsets)
    for image, (y, x), got in zip(images, offsets.tolist(), cropped, strict=True):
        expected = reference.crop(reference.pad(image, [padding] * 4), y, x, px, px)
        assert torch.equal(got, expected)


def test_crop_by_gather_equals_crop_by_slices():
    """What a GPU runs, held against what the CPU runs."""
    images = batch_of(20, 3, 8).images
    offsets = torch.randint(0, 9, (20, 2), generator=generator("offsets"))
    padded = torch.nn.functional.pad(images, (4,) * 4)
    assert torch.equal(geometry.gathered(padded, offsets, 8, 8), crop(images, 4, offsets))


def test_crop_draws_every_place_equally_often():
    padding, count = 1, 9000
    draws = generator("places")
    image = torch.zeros(count, 1, 3, 3)
    image[:, :, 1, 1] = 1  # where the centre goes tells the offset
    moved = PadCrop(padding)(ClassificationBatch(image, torch.zeros(count).long()), draws).images
    counts = moved.sum(0).flatten()
    assert counts.sum() == count
    expected = count / 9
    assert float(((counts - expected) ** 2 / expected).sum()) < 26.1  # chi-squared, 8 degrees, p = 0.001


def test_flip_equals_torchvision_and_has_its_share():
    batch = batch_of(4000, 1, 4)
    flipped = HorizontalFlip(0.3)(batch, generator("flip")).images
    mirrored = [torch.equal(a, reference.horizontal_flip(b)) for a, b in zip(flipped, batch.images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, batch.images, strict=True)]
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    assert abs(sum(mirrored) / 4000 - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


@pytest.mark.parametrize("transform", [PadCrop(4), HorizontalFlip(0.5)])
def test_same_position_same_batch_and_samples_differ(transform):
    batch = ClassificationBatch(batch_of(1).images.repeat(64, 1, 1, 1), torch.zeros(64).long())
    once = transform(batch, generator("augment", 0, 1, 2, 0)).images
    again = transform(batch, generator("augment", 0, 1, 2, 0)).images
    later = transform(batch, generator("augment", 0, 1, 3, 0)).images
    assert torch.equal(once, again)
    assert not torch.equal(once, later)
    assert len(torch.unique(once.flatten(1), dim=0)) > 1


@pytest.mark.parametrize(("make", "said"), [
    (lambda: PadCrop(-1), "padding_px"), (lambda: HorizontalFlip(1.5), "p must")])
def test_ranges_are_held(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("kind", ["mean_pixel", "per_pixel", "standard"])
def test_statistics_equal_numpys_and_invert(kind):
    pixels = batch_of(2500, 3, 6).images
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


def test_evaluation_only_normalises():
    augment = Augment("mean_pixel", 3, 8, on_pixels=[HorizontalFlip(1.0)], on_normalized=[PadCrop(4)])
    batch = batch_of(4)
    assert torch.equal(augment(batch).images, batch.images.float() / 255)


def test_stages_come_in_their_order():
    """on_pixels sees [0, 1], on_normalized values about 0: a zero pad is the mean there."""
    seen = []

    def look(batch, draws):
        seen.append((float(batch.images.min()) < 0, float(batch.images.max()) <= 1))
        return batch

    augment = Augment("box", 3, 8, on_pixels=[look], on_normalized=[look])
    augment(batch_of(2), generator("x"))
    assert seen == [(False, True), (True, True)]


def test_unknown_normalisation():
    with pytest.raises(ValueError, match="mean_pixel, per_pixel, standard, box, imagenet, whiten"):
        Normalize("median", 3, 8)


# the rest of the pipeline, each against torchvision or a loop over samples


def floats(count: int, channels: int = 3, px: int = 12, width: int | None = None) -> torch.Tensor:
    return torch.rand(count, channels, px, width or px, generator=generator("floats"))


def test_reflected_crop_equals_torchvision():
    images, offsets = floats(20), torch.randint(0, 9, (20, 2), generator=generator("o"))
    for image, (y, x), got in zip(images, offsets.tolist(), crop(images, 4, offsets, "reflect"), strict=True):
        padded = reference.pad(image, [4] * 4, padding_mode="reflect")
        assert torch.equal(got, reference.crop(padded, y, x, 12, 12))


def test_resized_windows_equal_torchvision():
    images = floats(30, px=14, width=18)
    windows = resampling.ResizedCrop(9).draw(torch.tensor([[14.0, 18.0]]).repeat(30, 1), generator("w"))
    got = resampling.resized(images, windows, 9)
    for image, (top, left, height, width), one in zip(images, windows.int().tolist(), got, strict=True):
        expected = reference.resized_crop(image, top, left, height, width, [9, 9], antialias=False)
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)


def test_windows_have_their_area_and_ratio_and_lie_inside():
    windows = resampling.ResizedCrop(9, (0.3, 0.5), (1.0, 2.0)).draw(torch.full((5000, 2), 200.0), generator("w"))
    top, left, height, width = windows.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 200).all()
    assert (left + width <= 200).all()
    share = height * width / 200**2
    assert 0.29 < float(share.min()) < 0.31
    assert 0.49 < float(share.max()) < 0.51
    assert float(share.mean()) == pytest.approx(0.4, abs=0.005)
    assert float((width / height).log().mean()) == pytest.approx(np.log(2) / 2, abs=0.02)


def test_scale_jitter_equals_resize_and_crop_by_interpolation():
    """A window of px / scale at any place between pixels, by numpy's own linear interpolation."""
    images = floats(6, 1, 20)
    windows = torch.tensor([[1.3, 2.7, 9.5, 9.5]] * 6)
    got = resampling.resized(images, windows, 8)
    steps = (np.arange(8) + 0.5) / 8 * 9.5 - 0.5
    rows, columns = 1.3 + np.clip(steps, 0, 8.5), 2.7 + np.clip(steps, 0, 8.5)
    for image, one in zip(images[:, 0].numpy(), got[:, 0].numpy(), strict=True):
        along = np.stack([np.interp(rows, np.arange(20), column) for column in image.T], axis=1)
        both = np.stack([np.interp(columns, np.arange(20), row) for row in along])
        np.testing.assert_allclose(one, both, atol=1e-5)


def test_scale_jitter_draws_the_short_side():
    transform = resampling.ScaleJitter(8, (8, 16))
    out = transform(ClassificationBatch(floats(40, 1, 16), torch.zeros(40).long()), generator("s")).images
    assert out.shape == (40, 1, 8, 8)


def test_affine_equals_torchvision():
    images = floats(25, 3, 15, 21)
    draws = generator("affine")
    angle, scale = geometry.uniform(-40, 40, 25, draws), geometry.uniform(0.7, 1.3, 25, draws)
    shift, shear = 3 * torch.randn(25, 2, generator=draws), geometry.uniform(-20, 20, 25, draws)
    shift = shift.round()
    got = resampling.warped(images, resampling.about_centre(angle, shift, scale, shear))
    for i in range(25):
        expected = reference.affine(images[i], float(angle[i]), shift[i].int().tolist(), float(scale[i]),
                                    [float(shear[i]), 0.0], interpolation=reference.InterpolationMode.BILINEAR)
        torch.testing.assert_close(got[i], expected, atol=2e-4, rtol=1e-3)


def test_cutout_equals_a_loop():
    images, centres = floats(30), torch.randint(0, 12, (30, 2), generator=generator("c"))
    windows = torch.cat([centres - 2, torch.full((30, 2), 5)], dim=1)
    for image, (y, x), got in zip(images, centres.tolist(), erasing.with_hole(images, windows), strict=True):
        expected = image.clone()
        expected[:, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 0
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("ours", "theirs"), [
    (colour.brightness, reference.adjust_brightness), (colour.contrast, reference.adjust_contrast),
    (colour.saturation, reference.adjust_saturation)])
def test_colour_factors_equal_torchvision(ours, theirs):
    images, factors = floats(20), geometry.uniform(0.2, 1.8, 20, generator("f"))
    for image, factor, got in zip(images, factors, ours(images, factors[:, None, None, None]), strict=True):
        torch.testing.assert_close(got, theirs(image, float(factor)), atol=1e-5, rtol=1e-4)


def test_hue_equals_torchvision():
    images, turns = floats(20), geometry.uniform(-0.5, 0.5, 20, generator("h"))
    images[0] = 0.5  # a grey image has no hue to turn
    for image, turn, got in zip(images, turns, colour.turned(images, turns[:, None, None]), strict=True):
        torch.testing.assert_close(got, reference.adjust_hue(image, float(turn)), atol=1e-4, rtol=1e-3)


def test_blur_equals_torchvision():
    images, sigma = floats(12), geometry.uniform(0.3, 2.0, 12, generator("b"))
    for image, one, got in zip(images, sigma, colour.blurred(images, sigma, 5), strict=True):
        torch.testing.assert_close(got, reference.gaussian_blur(image, [5, 5], [float(one)] * 2), atol=1e-5, rtol=1e-4)


def test_lighting_moves_along_the_colour_axes_by_their_deviation():
    colours = torch.randn(4000, 3, generator=generator("l")) @ torch.diag(torch.tensor([40.0, 20.0, 5.0])) + 128
    pixels = colours.clamp(0, 255).to(torch.uint8).reshape(4000, 3, 1, 1)
    lighting = colour.Lighting(0.1)
    lighting.fit(pixels)
    values, vectors = np.linalg.eigh(np.cov(pixels.flatten(1).numpy().T / 255, ddof=0))
    np.testing.assert_allclose((lighting.axes @ lighting.axes.T).numpy(), vectors * values @ vectors.T, atol=1e-6)
    grey = ClassificationBatch(torch.full((6000, 3, 2, 2), 0.5), torch.zeros(6000).long())
    moved = lighting(grey, generator("m")).images - 0.5
    assert torch.equal(moved[:, :, 0, 0], moved[:, :, 1, 1]), "the same for all places of an image"
    np.testing.assert_allclose(np.cov(moved[:, :, 0, 0].numpy().T), 0.01 * (vectors * values @ vectors.T), atol=3e-5)


def test_noise_has_its_deviation():
    batch = ClassificationBatch(torch.full((50, 3, 12, 12), 0.5), torch.zeros(50).long())
    noise = colour.GaussianNoise(0.05)(batch, generator("n")).images - 0.5
    assert float(noise.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(noise.mean())) < 0.001


def test_mixup_equals_a_loop_and_labels_sum_to_one():
    images, labels = floats(16), torch.arange(16) % 5
    mixed = mixing.Mixup(0.4, 5)(ClassificationBatch(images, labels), generator("mix"))
    draws = generator("mix")
    partner, share = torch.randperm(16, generator=draws), mixing.beta(0.4, 16, draws)
    for i in range(16):
        expected = share[i] * images[i] + (1 - share[i]) * images[partner[i]]
        torch.testing.assert_close(mixed.images[i], expected)
        target = torch.zeros(5)
        target[labels[i]] += share[i]
        target[labels[partner[i]]] += 1 - share[i]
        torch.testing.assert_close(mixed.labels[i], target)
    torch.testing.assert_close(mixed.labels.sum(1), torch.ones(16))


def test_cutmix_labels_are_the_shares_of_pixels():
    labels = torch.arange(32) % 4
    images = labels[:, None, None, None].expand(32, 1, 12, 12).float()
    mixed = mixing.CutMix(1.0, 4)(ClassificationBatch(images, labels), generator("cut"))
    for image, target in zip(mixed.images, mixed.labels, strict=True):
        torch.testing.assert_close(torch.bincount(image.flatten().long(), minlength=4) / 144, target)
    assert (mixed.labels.max(1).values < 1).any()


def test_beta_has_its_moments():
    drawn = mixing.beta(0.4, 20000, generator("beta"))
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn.var()) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.03)


def test_accuracy_of_mixtures_is_the_share_of_the_predicted_class():
    from dltrain.tasks.classification import scored

    mixtures = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    assert float(scored(torch.tensor([0, 0]), mixtures)) == pytest.approx(0.9)
    assert int(scored(torch.tensor([0, 1]), torch.tensor([0, 0]))) == 1


def test_whitened_data_has_an_identity_covariance_and_comes_back():
    base = torch.randint(0, 256, (3000, 1, 4, 4), generator=generator("white"))
    pixels = ((base + base.roll(1, 3) + base.roll(1, 2)) // 3).to(torch.uint8)  # neighbours are alike
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


def test_box_is_from_minus_one_to_one():
    normalize = Normalize("box", 1, 2)
    normalize.fit(batch_of(3, 1, 2).images)
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)
    assert normalize(ends).flatten().tolist() == [-1, 1]
    assert torch.equal(normalize.invert(normalize(ends)), ends)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: Normalize("whiten", 3, 64), "standard suits large images"),
    (lambda: Augment("box", 1, 8, [colour.ColorJitter(hue=0.1)]), "must be 0 for grey images"),
    (lambda: Augment("box", 1, 8, [colour.Lighting()]), "3 channels"),
    (lambda: Augment("box", 3, 8, [erasing.Cutout(9)]), "at most the image's 8"),
    (lambda: Augment("box", 3, 8, [PadCrop(8, "reflect")]), "below the image's 8 px"),
    (lambda: Augment("box", 3, 8, [resampling.ScaleJitter(9, (9, 20))]), "at most the image's 8"),
    (lambda: PadCrop(4, "mirror"), "mode must be"), (lambda: colour.ColorJitter(hue=0.6), "hue must be"),
    (lambda: colour.GaussianBlur(4), "kernel_px must be odd"), (lambda: colour.GaussianNoise(-1), "std must be"),
    (lambda: mixing.Mixup(0, 3), "alpha must be"), (lambda: resampling.Affine(degrees=200), "degrees must be"),
    (lambda: resampling.ResizedCrop(8, (0.0, 1.0)), "scale in"), (lambda: erasing.RandomErasing(1.5), "p must be"),
    (lambda: erasing.RandomErasing(scale=(0.5, 0.1)), "low before high"), (lambda: erasing.Cutout(0), "px must be"),
])
def test_bad_arguments_are_refused_before_the_first_step(make, said):
    with pytest.raises(ValueError, match=said):
        make()


ALL = [PadCrop(2, "reflect"), resampling.ResizedCrop(8), resampling.ScaleJitter(8, (8, 12)),
       resampling.Affine(20, 0.1, (0.8, 1.2), 10), erasing.Cutout(3), erasing.RandomErasing(0.9),
       colour.ColorJitter(0.5, 0.5, 0.5, 0.2), colour.GaussianBlur(3), colour.GaussianNoise(0.1),
       mixing.Mixup(0.5, 3), mixing.CutMix(1.0, 3)]


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_every_transform_is_a_function_of_its_generator_and_differs_by_sample(transform):
    image = floats(1, 3, 12)
    mixes = isinstance(transform, mixing.Mixup | mixing.CutMix)
    images = floats(32, 3, 12) if mixes else image.repeat(32, 1, 1, 1)
    batch = ClassificationBatch(images, torch.arange(32) % 3)
    once, again = (transform(batch, generator("augment", 1, 2, 3)) for _ in range(2))
    later = transform(batch, generator("augment", 1, 2, 4))
    assert torch.equal(once.images, again.images)
    assert torch.equal(once.labels, again.labels)
    assert not torch.equal(once.images, later.images)
    assert len(torch.unique(once.images.flatten(1), dim=0)) > 8


def test_erasing_has_its_chance_and_its_area():
    images = torch.ones(4000, 1, 20, 20)
    erased = erasing.RandomErasing(0.4, (0.1, 0.3), (0.5, 2.0))(ClassificationBatch(images, torch.zeros(4000).long()),
                                                               generator("e")).images
    share = (erased == 0).float().mean((1, 2, 3))
    touched = share[share > 0]
    assert abs(len(touched) / 4000 - 0.4) < 4 * (0.4 * 0.6 / 4000) ** 0.5
    assert float(touched.min()) > 0.08
    assert float(touched.max()) < 0.33
    assert float(touched.mean()) == pytest.approx(0.2, abs=0.01)


# test-time regimes


def net(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                               torch.nn.Flatten(), torch.nn.Linear(5, 4)).eval()


def chances(model, *views: torch.Tensor) -> torch.Tensor:
    return torch.stack([model(view).softmax(1) for view in views])


def test_flip_average_equals_a_loop():
    model, images = net(), floats(6)
    expected = chances(model, images, reference.horizontal_flip(images)).mean(0)
    torch.testing.assert_close(Views("flip")(model, images).exp(), expected)


def test_ten_crop_equals_torchvisions():
    model, images = net(), floats(6)
    ten = reference.ten_crop(reference.pad(images, [2] * 4), [12, 12])
    torch.testing.assert_close(Views("ten_crop", padding_px=2)(model, images).exp(), chances(model, *ten).mean(0))
    inner = reference.ten_crop(images, [8, 8])  # an even margin: torchvision crops the mirrored image anew
    torch.testing.assert_close(Views("ten_crop", crop_px=8)(model, images).exp(), chances(model, *inner).mean(0))


@pytest.mark.parametrize(("kind", "combine"), [("scales_mean", lambda c: c.mean(0)),
                                               ("scales_max", lambda c: c.amax(0) / c.amax(0).sum(1, keepdim=True))])
def test_scales_are_combined_by_their_mean_or_maximum(kind, combine):
    model, images = net(), floats(6)
    sizes = [images, *(reference.resize(images, [side, side], antialias=True) for side in (15, 18))]
    got = Views(kind, scales=(1.0, 1.25, 1.5))(model, images).exp()
    torch.testing.assert_close(got, combine(chances(model, *sizes)), atol=1e-5, rtol=1e-4)


def test_a_single_view_is_the_net_itself():
    model, images = net(), floats(6)
    assert torch.equal(Views()(model, images), model(images))


@pytest.mark.parametrize(("keys", "said"), [
    ({"test": "five_crop"}, "test must be one of"), ({"test": "ten_crop"}, "the same crop five times"),
    ({"test": "ten_crop", "test_crop_px": 20}, "at most the padded image's 8"), ({"test_scales": []}, "test_scales"),
    ({"test_padding_px": -1}, "test_padding_px")])
def test_bad_regimes_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        Augment("box", 3, 8, **keys)


def test_scaled_first_then_the_centre():
    model, images = net(), floats(6, px=20)
    smaller = reference.resize(images, [16, 16], antialias=True)
    centre = reference.center_crop(smaller, [12, 12])
    torch.testing.assert_close(Views(crop_px=12, short_px=16)(model, images), model(centre), atol=1e-5, rtol=1e-4)
    flipped = Views("flip", crop_px=12, short_px=16)(model, images).exp()
    torch.testing.assert_close(flipped, chances(model, centre, centre.flip(3)).mean(0), atol=1e-5, rtol=1e-4)
