"""Transforms that change over the epochs: the alternating flip and images that grow."""

import pytest
import torch
from torchvision.transforms.v2.functional import horizontal_flip, horizontal_flip_bounding_boxes, resize
from torchvision.tv_tensors import BoundingBoxFormat

from dltrain import run
from dltrain.augment.geometry import PadCrop
from dltrain.augment.pipeline import Augment, to_unit_range
from dltrain.augment.schedules import AlternatingFlip, GrowingSize
from dltrain.batches import ClassificationBatch, DetectionBatch, SegmentationBatch, generator
from dltrain.run_dir import RunDir
from tests.conftest import TINY
from tests.test_resume import assert_a_crash_changes_nothing

RNG = generator("unused")


def make_pixels(count: int, channels: int = 3, px: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, px, px), dtype=torch.uint8, generator=generator("pixels", px))


def flipped_by(transform: AlternatingFlip, pixels: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """(B,) bool: which images the transform swaps in an epoch; each must be itself or its mirror image."""
    transform.begin(seed, epoch, 10)
    images = to_unit_range(pixels)
    changed = transform(ClassificationBatch(images, torch.zeros(len(images)).long()), RNG).images
    is_flipped = (changed == horizontal_flip(images)).flatten(1).all(1)
    assert torch.equal(~is_flipped, (changed == images).flatten(1).all(1))
    return is_flipped


def test_every_second_epoch_shows_the_other_side():
    pixels, transform = make_pixels(2000), AlternatingFlip()
    first = flipped_by(transform, pixels, 0, 0)
    assert 900 < int(first.sum()) < 1100  # half of them, within 4.5 standard deviations
    for epoch in range(1, 5):
        assert torch.equal(flipped_by(transform, pixels, 0, epoch), first ^ (epoch % 2 == 1))


def test_the_half_depends_on_the_seed_and_not_on_the_batch():
    pixels, transform = make_pixels(2000), AlternatingFlip()
    first = flipped_by(transform, pixels, 0, 0)
    assert 900 < int((first == flipped_by(transform, pixels, 1, 0)).sum()) < 1100
    order = torch.randperm(2000, generator=generator("order"))
    assert torch.equal(flipped_by(transform, pixels[order], 0, 0), first[order])
    assert torch.equal(flipped_by(transform, pixels[:7], 0, 0), first[:7])


def test_masks_and_boxes_are_flipped_with_their_images():
    pixels, transform = make_pixels(20), AlternatingFlip()
    is_flipped = flipped_by(transform, pixels, 0, 1)
    assert is_flipped.any()
    assert not is_flipped.all()
    masks = torch.randint(0, 5, (20, 8, 8), generator=generator("masks"))
    batch = transform(SegmentationBatch(to_unit_range(pixels), masks), RNG)
    expected = torch.where(is_flipped[:, None, None], horizontal_flip(masks), masks)
    assert torch.equal(batch.masks, expected)
    boxes = torch.tensor([[1.0, 2.0, 4.0, 7.0], [0.0, 0.0, 8.0, 1.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([3, 4])} for _ in pixels]
    detection = transform(DetectionBatch([*to_unit_range(pixels)], targets), RNG)
    for flip, image, target, before in zip(is_flipped, detection.images, detection.targets, to_unit_range(pixels),
                                           strict=True):
        mirrored = horizontal_flip_bounding_boxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=(8, 8))
        assert torch.equal(image, horizontal_flip(before) if flip else before)
        assert torch.equal(target["boxes"], mirrored if flip else boxes)
        assert target["labels"].tolist() == [3, 4]


def test_the_alternating_flip_must_see_the_pixels_as_they_are():
    def pipeline(**transforms):
        return Augment("standard", 3, 8, **transforms)

    pipeline(on_pixels=[AlternatingFlip(), PadCrop(1)])
    for transforms in ({"on_pixels": [PadCrop(1), AlternatingFlip()]}, {"on_normalized": [AlternatingFlip()]}):
        with pytest.raises(ValueError, match=r"on_.* \(AlternatingFlip\): must be the first of on_pixels"):
            pipeline(**transforms)


def test_images_grow_to_their_own_size():
    transform = GrowingSize(first_px=16, until=0.75, multiple_px=4)
    transform.check(3, 32)
    # 16 + 16 * epoch / 6 = 16, 18.7, 21.3, 24, 26.7, 29.3, from epoch 6 on 32: to the next multiple of 4
    assert [transform.side(epoch, 8) for epoch in range(8)] == [16, 20, 20, 24, 28, 28, 32, 32]
    images = to_unit_range(make_pixels(3, px=32))
    for epoch, px in ((0, 16), (3, 24), (7, 32)):
        transform.begin(0, epoch, 8)
        grown = transform(ClassificationBatch(images, torch.zeros(3).long()), RNG).images
        torch.testing.assert_close(grown, resize(images, [px, px], antialias=True))


def test_masks_and_boxes_have_the_size_of_their_images():
    transform = GrowingSize(first_px=4, until=1.0)
    transform.check(3, 8)
    transform.begin(0, 0, 3)
    images, masks = to_unit_range(make_pixels(2)), torch.arange(8).repeat(2, 8, 1)
    batch = transform(SegmentationBatch(images, masks), RNG)
    assert batch.images.shape == (2, 3, 4, 4)
    assert batch.masks.shape == (2, 4, 4)
    assert {*batch.masks.flatten().tolist()} <= {*range(8)}
    targets = [{"boxes": torch.tensor([[2.0, 0.0, 8.0, 6.0]]), "labels": torch.tensor([1])}]
    detection = transform(DetectionBatch([images[0]], targets), RNG)
    assert detection.images[0].shape == (3, 4, 4)
    assert detection.targets[0]["boxes"].tolist() == [[1.0, 0.0, 4.0, 3.0]]


@pytest.mark.parametrize(("keys", "message"), [
    ({"first_px": 0}, "first_px and multiple_px must be >= 1 and until in (0, 1], but they are 0, 4 and 0.75"),
    ({"first_px": 40}, "first_px must be at most the image's 32, but is 40")])
def test_wrong_sizes_are_refused(keys, message):
    with pytest.raises(ValueError, match=r"must be") as caught:
        GrowingSize(**keys).check(3, 32)
    assert str(caught.value) == message


WORDS = [*TINY, "model.survival=1", "augment=cifar_fast", "augment.on_normalized.1.first_px=4"]


def test_a_killed_run_sees_the_same_images(config, run_folder, monkeypatch, without_figures):
    assert_a_crash_changes_nothing(WORDS, 5, config, run_folder, monkeypatch)


def test_a_run_tells_its_transforms_the_epoch(config, run_folder, monkeypatch, without_figures):
    seen = []
    monkeypatch.setattr(GrowingSize, "begin", lambda self, *position: seen.append(position))
    run.train(config(*WORDS, "seed=7"), RunDir(run_folder("run")))
    assert seen == [(7, epoch, 3) for epoch in range(3) for _ in range(3)]
