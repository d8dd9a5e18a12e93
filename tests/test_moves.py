"""Masks and boxes go where the pixels go; batches of them keep their promises."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from dltrain.augment import colour, erasing, geometry, resampling
from dltrain.augment.geometry import HorizontalFlip, PadCrop
from dltrain.augment.pipeline import Augment
from dltrain.batches import IGNORED_PIXEL, BatchError, ClassificationBatch, DetectionBatch, SegmentationBatch, generator
from dltrain.build import build
from dltrain.config import groups

MOVES = [PadCrop(3), PadCrop(3, "reflect"), HorizontalFlip(0.5), resampling.ResizedCrop(10, (0.3, 1.0)),
         resampling.ScaleJitter(12, (16, 30)), resampling.Affine(25, 0.1, (0.8, 1.2), 10)]


def one_square(count: int, px: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Float images (B, 1, px, px) with one bright square each, and its box."""
    draws = generator("squares")
    images, boxes = torch.zeros(count, 1, px, px), torch.zeros(count, 4)
    for i in range(count):
        x, y = (int(torch.randint(4, 14, (), generator=draws)) for _ in range(2))
        w, h = (int(torch.randint(8, 14, (), generator=draws)) for _ in range(2))
        images[i, :, y : y + h, x : x + w] = 1
        boxes[i] = torch.tensor([x, y, x + w, y + h])
    return images, boxes


@pytest.mark.parametrize("transform", MOVES, ids=lambda t: type(t).__name__)
def test_masks_follow_the_pixels(transform):
    """A mask that is the image itself stays the image, but for pixels that bilinear sampling mixes."""
    images, _ = one_square(40)
    batch = SegmentationBatch(images, images[:, 0].long())
    moved = transform(batch, generator("m"))
    scored = moved.masks != IGNORED_PIXEL
    sharp = (moved.images[:, 0] < 0.02) | (moved.images[:, 0] > 0.98)
    agree = (moved.images[:, 0].round().long() == moved.masks)[scored & sharp]
    assert agree.float().mean() > 0.999
    assert (scored & sharp).float().mean() > 0.6
    assert set(moved.masks.unique().tolist()) <= {0, 1, IGNORED_PIXEL}
    assert moved.masks.shape == (40, *moved.images.shape[2:])


def test_a_pad_is_not_scored_and_a_mirror_leaves_nothing_out():
    images, _ = one_square(30)
    batch = SegmentationBatch(images, images[:, 0].long())
    padded = PadCrop(3)(batch, generator("m"))
    offsets = PadCrop(3).draw(torch.full((30, 2), 32.0), generator("m"))
    outside = sum(32 * 32 - (32 - abs(y - 3)) * (32 - abs(x - 3)) for y, x in offsets.tolist())
    assert int((padded.masks == IGNORED_PIXEL).sum()) == outside
    assert IGNORED_PIXEL not in HorizontalFlip(1.0)(batch, generator("m")).masks


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("transform", MOVES, ids=lambda t: type(t).__name__)
def test_boxes_follow_the_pixels(transform, as_list):
    """The box found by looking at the moved pixels is the moved box, to the half pixel that sampling blurs; where a
    quarter of it is left, it stays."""
    images, boxes = one_square(60)
    targets = [{"boxes": box[None], "labels": torch.tensor([7]), "difficult": torch.tensor([True])} for box in boxes]
    batch = DetectionBatch(list(images) if as_list else images, targets)
    moved = transform(batch, generator("m"))
    again = transform(DetectionBatch(images, targets), generator("m"))
    kept = 0
    for image, target, other in zip(moved.images, moved.targets, again.targets, strict=True):
        assert torch.equal(target["boxes"], other["boxes"]), "a list of images moves as a tensor does"
        assert len(target["boxes"]) == len(target["labels"]) == len(target["difficult"])
        if not len(target["boxes"]):
            continue
        kept += 1
        rows, columns = (image[0] > 0.5).nonzero().unbind(1)
        seen = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        reflected = getattr(transform, "mode", "") == "reflect"
        slack = 0.0 if isinstance(transform, PadCrop | HorizontalFlip) else 1.01
        if isinstance(transform, resampling.Affine):  # the hull of turned corners is larger than what is seen
            assert all(a <= s + 1.01 for a, s in zip(target["boxes"][0, :2], seen[:2], strict=True))
            assert all(b >= s - 1.01 for b, s in zip(target["boxes"][0, 2:], seen[2:], strict=True))
        elif not reflected:
            np.testing.assert_allclose(target["boxes"][0].numpy(), seen, atol=slack)
    assert kept > 40 or isinstance(transform, resampling.ResizedCrop | resampling.ScaleJitter)
    assert kept > 10


def test_boxes_equal_torchvisions_under_flip_and_affine():
    from torchvision import tv_tensors

    boxes = torch.tensor([[3.0, 4.0, 14.0, 20.0], [10.0, 8.0, 30.0, 30.0]])
    size = torch.tensor([[40.0, 48.0]])
    given = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(40, 48))
    flip = HorizontalFlip(1.0)
    mine = geometry.moved_target({"boxes": boxes}, flip.matrices(size, torch.tensor([True]))[0], size[0])["boxes"]
    torch.testing.assert_close(mine, reference.horizontal_flip(given).as_subclass(torch.Tensor))
    affine = resampling.Affine()
    drawn = resampling.about_centre(torch.tensor([20.0]), torch.tensor([[3.0, -2.0]]), torch.tensor([1.1]),
                                    torch.tensor([8.0]))
    mine = geometry.moved_target({"boxes": boxes}, affine.matrices(size, drawn)[0], size[0])["boxes"]
    theirs = reference.affine(given, 20.0, [3, -2], 1.1, [8.0, 0.0]).as_subclass(torch.Tensor)
    torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


def test_a_box_that_leaves_is_dropped_with_its_label():
    target = {"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [6.0, 6.0, 9.0, 9.0]]), "labels": torch.tensor([1, 2])}
    shift = torch.tensor([[1.0, 0.0, -3.5], [0.0, 1.0, 0.0]])
    moved = geometry.moved_target(target, shift, torch.tensor([10.0, 10.0]))
    assert moved["labels"].tolist() == [2]
    assert moved["boxes"].tolist() == [[2.5, 6.0, 5.5, 9.0]]
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert len(geometry.moved_target(empty, shift, torch.tensor([10.0, 10.0]))["boxes"]) == 0


def test_images_of_different_sizes_go_through_every_transform():
    sizes = [(12, 20), (16, 10), (30, 31)]
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in sizes]
    targets = [{"boxes": torch.tensor([[2.0, 2.0, 9.0, 9.0]]), "labels": torch.tensor([0])} for _ in sizes]
    colours = [colour.ColorJitter(0.5, 0.5, 0.5, 0.2), colour.GaussianBlur(3), colour.GaussianNoise(0.1),
               colour.Lighting()]
    holes = [erasing.Cutout(3), erasing.RandomErasing(0.9)]
    augment = Augment("standard", 3, 32, on_pixels=[*colours, *MOVES, *holes])
    out = augment(DetectionBatch(images, targets), generator("d"))
    assert len(out.images) == 3
    assert all(image.dtype == torch.float32 and torch.isfinite(image).all() for image in out.images)
    same = Augment("standard", 3, 32, on_normalized=[PadCrop(2), HorizontalFlip()])
    assert [tuple(i.shape[1:]) for i in same(DetectionBatch(images, targets), generator("d")).images] == sizes


@pytest.mark.parametrize(("batch", "said"), [
    (DetectionBatch([torch.zeros(3, 8, 8)], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}]), "uint8"),
    (DetectionBatch([torch.zeros(3, 8, 8, dtype=torch.uint8)],
                    [{"boxes": torch.tensor([[0.0, 0.0, 9.0, 8.0]]), "labels": torch.tensor([0])}]), "x2 <= 8"),
    (DetectionBatch([torch.zeros(3, 8, 8, dtype=torch.uint8)],
                    [{"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0]]), "labels": torch.tensor([2])}]), r"in \[0, 2\)"),
    (SegmentationBatch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 7).long()), "as the images"),
    (SegmentationBatch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 8, 8), 2)), "the first batch has 2"),
])
def test_batches_that_break_their_promise_are_named(batch, said):
    with pytest.raises(BatchError, match=said):
        batch.check(2)


@pytest.mark.parametrize("name", groups.names("augment"))
def test_every_pipeline_runs_on_the_batches_it_is_for(name, config):
    """Boxes and masks through the pipelines that can carry them; labels through all."""
    node = config(f"augment={name}", "data=cifar10").augment
    images = torch.randint(0, 256, (4, 3, 256, 256), dtype=torch.uint8, generator=generator("pipelines"))
    augment = build(node, "augment", channels=3, image_px=256)
    augment.fit(images)
    batches = [ClassificationBatch(images, torch.arange(4))]
    if name != "strong":  # mixes labels
        target = {"boxes": torch.tensor([[20.0, 30.0, 200.0, 220.0]]), "labels": torch.tensor([1])}
        masks = torch.ones(4, 256, 256).long()
        batches += [SegmentationBatch(images, masks), DetectionBatch(list(images), [target] * 4)]
    for batch in batches:
        seen = augment(batch, generator("augment", 0))
        assert all(torch.isfinite(image).all() and image.is_floating_point() for image in seen.images)
        once_more = augment(batch, generator("augment", 0))
        assert all(torch.equal(a, b) for a, b in zip(seen.images, once_more.images, strict=True))
    assert config("data=image_folder").choices.augment == "imagenet"
