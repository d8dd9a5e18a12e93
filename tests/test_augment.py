"""Each transform against a loop over samples with the same draws; the draws' distributions; the statistics."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from dltrain.augment.geometry import HorizontalFlip, PadCrop, crop
from dltrain.augment.pipeline import Augment, Normalize
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
    """on_pixels sees uint8, on_normalized floats: a zero pad is the mean there."""
    seen = []

    def look(batch, draws):
        seen.append(batch.images.dtype)
        return batch

    augment = Augment("mean_pixel", 3, 8, on_pixels=[look], on_normalized=[look])
    augment(batch_of(2), generator("x"))
    assert seen == [torch.uint8, torch.float32]


def test_unknown_normalisation():
    with pytest.raises(ValueError, match="mean_pixel, per_pixel or standard"):
        Normalize("median", 3, 8)
