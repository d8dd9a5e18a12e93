"""Crops, flips and affine maps against torchvision, sample by sample; masks and boxes move with the pixels."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as reference

from dltrain.augment import colour, erasing, geometry, resampling
from dltrain.augment.geometry import HorizontalFlip, PadCrop, pad_and_crop
from dltrain.augment.pipeline import map_images
from dltrain.batches import IGNORED_PIXEL, BatchError, ClassificationBatch, DetectionBatch, SegmentationBatch, generator
from dltrain.build import build
from dltrain.config import groups
from tests.fake_gpu import FakeGpu, host_copy

GEOMETRIC = [PadCrop(3), PadCrop(3, "reflect"), HorizontalFlip(0.5), resampling.ResizedCrop(10, (0.3, 1.0)),
             resampling.ScaleJitter(12, (16, 30)), resampling.Affine(25, 0.1, (0.8, 1.2), 10)]


def make_images(count: int, channels: int = 3, height: int = 12, width: int | None = None) -> torch.Tensor:
    return torch.rand(count, channels, height, width or height, generator=generator("floats"))


def make_squares(count: int, px: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Float images (B, 1, px, px) with one bright rectangle each, and the box of each (B, 4)."""
    rng = generator("squares")
    images, boxes = torch.zeros(count, 1, px, px), torch.zeros(count, 4)
    for i in range(count):
        x, y = (int(torch.randint(4, 14, (), generator=rng)) for _ in range(2))
        w, h = (int(torch.randint(8, 14, (), generator=rng)) for _ in range(2))
        images[i, :, y : y + h, x : x + w] = 1
        boxes[i] = torch.tensor([x, y, x + w, y + h])
    return images, boxes


# pixels, against torchvision


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("channels", "px", "padding"), [(3, 8, 4), (1, 8, 1), (3, 32, 4), (3, 64, 9)])
def test_crop_equals_torchvision_sample_by_sample(dtype, channels, px, padding, mode):
    images = (255 * make_images(50, channels, px)).to(dtype)
    offsets = torch.randint(0, 2 * padding + 1, (50, 2), generator=generator("offsets"))
    cropped = pad_and_crop(images, padding, offsets, mode)
    padding_mode = "reflect" if mode == "reflect" else "constant"
    for image, (y, x), result in zip(images, offsets.tolist(), cropped, strict=True):
        padded = reference.pad(image, [padding] * 4, padding_mode=padding_mode)
        assert torch.equal(result, reference.crop(padded, y, x, px, px))


def test_crop_takes_every_position_equally_often():
    padding, count = 1, 9000
    image = torch.zeros(count, 1, 3, 3)
    image[:, :, 1, 1] = 1  # the new position of the centre shows the offset
    cropped = PadCrop(padding)(ClassificationBatch(image, torch.zeros(count).long()), generator("positions")).images
    counts = cropped.sum(0).flatten()
    assert counts.sum() == count
    expected = count / 9
    assert float(((counts - expected) ** 2 / expected).sum()) < 26.1  # chi-squared, 8 degrees, p = 0.001


def test_a_padding_that_is_larger_than_the_image_leaves_zeros():
    images, places = make_images(5, 1, 101) + 1, torch.tensor([[0, 0], [0, 150], [150, 150], [260, 40], [300, 300]])
    cropped = pad_and_crop(images, 150, places)
    for image, (y, x), result in zip(images, places.tolist(), cropped, strict=True):
        assert torch.equal(result, reference.crop(reference.pad(image, [150] * 4), y, x, 101, 101))


def test_large_images_are_flipped_like_small_ones():
    images, chosen = make_images(6, 3, 64), torch.tensor([True, False, False, True, True, False])
    results = HorizontalFlip(0.5).transform_images(images, chosen)
    for image, is_flipped, result in zip(images, chosen, results, strict=True):
        assert torch.equal(result, reference.horizontal_flip(image) if is_flipped else image)


def test_flip_equals_torchvision_and_has_its_probability():
    batch = ClassificationBatch(make_images(4000, 1, 4), torch.zeros(4000).long())
    results = HorizontalFlip(0.3)(batch, generator("flip")).images
    flipped = [torch.equal(a, reference.horizontal_flip(b)) for a, b in zip(results, batch.images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(results, batch.images, strict=True)]
    assert all(a or b for a, b in zip(flipped, same, strict=True))
    assert abs(sum(flipped) / 4000 - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_resized_windows_equal_torchvision():
    images = make_images(30, height=14, width=18)
    sizes = torch.tensor([[14.0, 18.0]]).repeat(30, 1)
    windows = resampling.ResizedCrop(9).sample_parameters(sizes, generator("w"))
    results = resampling.resize_windows(images, windows, 9)
    for image, (top, left, height, width), result in zip(images, windows.int().tolist(), results, strict=True):
        expected = reference.resized_crop(image, top, left, height, width, [9, 9], antialias=False)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_windows_have_their_area_and_ratio_and_lie_inside():
    transform = resampling.ResizedCrop(9, (0.3, 0.5), (1.0, 2.0))
    windows = transform.sample_parameters(torch.full((5000, 2), 200.0), generator("w"))
    top, left, height, width = windows.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 200).all()
    assert (left + width <= 200).all()
    fraction = height * width / 200**2
    assert 0.29 < float(fraction.min()) < 0.31
    assert 0.49 < float(fraction.max()) < 0.51
    assert float(fraction.mean()) == pytest.approx(0.4, abs=0.005)
    assert float((width / height).log().mean()) == pytest.approx(np.log(2) / 2, abs=0.02)


def test_a_window_between_pixels_equals_numpys_interpolation():
    images = make_images(6, 1, 20)
    windows = torch.tensor([[1.3, 2.7, 9.5, 9.5]] * 6)
    results = resampling.resize_windows(images, windows, 8)
    steps = (np.arange(8) + 0.5) / 8 * 9.5 - 0.5
    rows, columns = 1.3 + np.clip(steps, 0, 8.5), 2.7 + np.clip(steps, 0, 8.5)
    for image, result in zip(images[:, 0].numpy(), results[:, 0].numpy(), strict=True):
        along_y = np.stack([np.interp(rows, np.arange(20), column) for column in image.T], axis=1)
        expected = np.stack([np.interp(columns, np.arange(20), row) for row in along_y])
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_scale_jitter_scales_the_short_side_uniformly():
    """The short side of (16, 20) images becomes 16 * 8 / (side of the window)."""
    sizes = torch.tensor([[16.0, 20.0]]).repeat(4000, 1)
    top, left, height, width = resampling.ScaleJitter(8, (8, 16)).sample_parameters(sizes, generator("s")).unbind(1)
    assert torch.equal(height, width)
    short_px = 16 * 8 / height
    assert 8 <= float(short_px.min()) < 8.1
    assert 15.9 < float(short_px.max()) <= 16
    assert float(short_px.mean()) == pytest.approx(12, abs=0.15)
    for start, length, side in ((top, height, 16), (left, width, 20)):
        assert (start >= 0).all()
        assert (start + length <= side + 1e-4).all()
        assert float((start / (side - length).clamp_min(0.01)).mean()) == pytest.approx(0.5, abs=0.02)


def test_affine_equals_torchvision():
    images, rng = make_images(25, 3, 15, 21), generator("affine")
    angle, scale = geometry.sample_uniform(-40, 40, 25, rng), geometry.sample_uniform(0.7, 1.3, 25, rng)
    shift, shear = (3 * torch.randn(25, 2, generator=rng)).round(), geometry.sample_uniform(-20, 20, 25, rng)
    results = resampling.warp(images, resampling.centred_matrices(angle, shift, scale, shear))
    for i in range(25):
        expected = reference.affine(images[i], float(angle[i]), shift[i].int().tolist(), float(scale[i]),
                                    [float(shear[i]), 0.0], interpolation=reference.InterpolationMode.BILINEAR)
        torch.testing.assert_close(results[i], expected, atol=2e-4, rtol=1e-3)


def test_affine_parameters_stay_in_their_ranges_and_fill_them():
    transform = resampling.Affine(degrees=30, translate=0.1, scale=(0.5, 2.0))
    matrices = transform.sample_parameters(torch.tensor([[20.0, 40.0]]).repeat(4000, 1), generator("a"))
    angle = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    scale = matrices[:, :, 0].norm(dim=1)
    x, y = matrices[:, :, 2].unbind(1)
    for values, low, high in ((angle, -30, 30), (scale, 0.5, 2), (x, -4, 4), (y, -2, 2)):
        margin = 0.01 * (high - low)
        assert low - 1e-3 <= float(values.min()) < low + margin
        assert high - margin < float(values.max()) <= high + 1e-3
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=2 * margin)


# masks and boxes


@pytest.mark.parametrize("transform", GEOMETRIC, ids=lambda t: type(t).__name__)
def test_masks_move_with_the_pixels(transform):
    """A mask that equals the image still equals it afterwards, except for pixels that interpolation blends."""
    images, _ = make_squares(40)
    batch = SegmentationBatch(images, images[:, 0].long())
    moved = transform(batch, generator("m"))
    scored = moved.masks != IGNORED_PIXEL
    sharp = (moved.images[:, 0] < 0.02) | (moved.images[:, 0] > 0.98)
    agree = (moved.images[:, 0].round().long() == moved.masks)[scored & sharp]
    assert agree.float().mean() > 0.999
    assert (scored & sharp).float().mean() > 0.6
    assert set(moved.masks.unique().tolist()) <= {0, 1, IGNORED_PIXEL}
    assert moved.masks.shape == (40, *moved.images.shape[2:])


def test_padding_is_ignored_in_masks_and_a_flip_ignores_nothing():
    images, _ = make_squares(30)
    batch = SegmentationBatch(images, images[:, 0].long())
    padded = PadCrop(3)(batch, generator("m"))
    offsets = PadCrop(3).sample_parameters(torch.full((30, 2), 32.0), generator("m"))
    num_outside = sum(32 * 32 - (32 - abs(y - 3)) * (32 - abs(x - 3)) for y, x in offsets.tolist())
    assert int((padded.masks == IGNORED_PIXEL).sum()) == num_outside
    assert IGNORED_PIXEL not in HorizontalFlip(1.0)(batch, generator("m")).masks


@pytest.mark.parametrize("layout", ["tensor", "list", "list of sizes"])
@pytest.mark.parametrize("transform", GEOMETRIC, ids=lambda t: type(t).__name__)
def test_boxes_move_with_the_pixels(transform, layout):
    """The bounding box of the bright pixels is the moved box, up to the half pixel that interpolation blurs; it stays
    if at least a quarter of it is inside."""
    squares, boxes = make_squares(60)
    targets = [{"boxes": box[None], "labels": torch.tensor([7]), "difficult": torch.tensor([True])} for box in boxes]
    images: Any = squares if layout == "tensor" else list(squares)  # a tensor where all images have one size
    if layout == "list of sizes":
        images = [torch.nn.functional.pad(image, (0, i % 3 * 8, 0, i % 5 * 4)) for i, image in enumerate(squares)]
    moved = transform(DetectionBatch(images, targets), generator("m"))
    num_kept = 0
    for image, target in zip(moved.images, moved.targets, strict=True):
        assert len(target["boxes"]) == len(target["labels"]) == len(target["difficult"])
        if not len(target["boxes"]):
            continue
        num_kept += 1
        box = target["boxes"][0]
        rows, columns = (image[0] > 0.5).nonzero().unbind(1)
        visible = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        if isinstance(transform, resampling.Affine):  # the box around the rotated corners is larger than the pixels'
            assert (box[:2] <= visible[:2] + 1.01).all()
            assert (box[2:] >= visible[2:] - 1.01).all()
        else:
            tolerance = 0.0 if isinstance(transform, PadCrop | HorizontalFlip) else 1.01
            torch.testing.assert_close(box, visible, atol=tolerance, rtol=0)
    assert num_kept > (10 if isinstance(transform, resampling.WindowTransform) else 40)


def test_boxes_equal_torchvisions_under_flip_and_affine():
    boxes = torch.tensor([[3.0, 4.0, 14.0, 20.0], [10.0, 8.0, 30.0, 30.0]])
    size = torch.tensor([[40.0, 48.0]])
    theirs = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(40, 48))

    def move(matrices: torch.Tensor) -> torch.Tensor:
        return geometry.transform_target({"boxes": boxes}, matrices[0], size[0])["boxes"]

    result = move(HorizontalFlip(1.0).make_matrices(size, torch.tensor([True])))
    torch.testing.assert_close(result, reference.horizontal_flip(theirs).as_subclass(torch.Tensor))
    parameters = resampling.centred_matrices(torch.tensor([20.0]), torch.tensor([[3.0, -2.0]]), torch.tensor([1.1]),
                                             torch.tensor([8.0]))
    result = move(resampling.Affine().make_matrices(size, parameters))
    expected = reference.affine(theirs, 20.0, [3, -2], 1.1, [8.0, 0.0]).as_subclass(torch.Tensor)
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-4)


def test_a_box_outside_is_dropped_with_its_label():
    target = {"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [6.0, 6.0, 9.0, 9.0]]), "labels": torch.tensor([1, 2])}
    shift = torch.tensor([[1.0, 0.0, -3.5], [0.0, 1.0, 0.0]])
    moved = geometry.transform_target(target, shift, torch.tensor([10.0, 10.0]))
    assert moved["labels"].tolist() == [2]
    assert moved["boxes"].tolist() == [[2.5, 6.0, 5.5, 9.0]]
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert len(geometry.transform_target(empty, shift, torch.tensor([10.0, 10.0]))["boxes"]) == 0


# images of different sizes, and whole pipelines


LIGHTING = colour.Lighting(0.5)
LIGHTING.axes += torch.rand(3, 3, generator=generator("axes"))


@pytest.mark.parametrize("transform", [
    *GEOMETRIC, erasing.Cutout(3), erasing.RandomErasing(0.9), colour.ColorJitter(0.5, 0.5, 0.5, 0.2), LIGHTING,
    colour.GaussianBlur(3)], ids=lambda t: type(t).__name__)
def test_image_i_of_a_list_is_transformed_as_sample_i_of_a_batch(transform):
    sizes = ((12, 20), (16, 10), (12, 20), (30, 31), (16, 10))
    images = list(make_images(5, 3, 30, 31))
    images = [image[:, :h, :w].contiguous() for image, (h, w) in zip(images, sizes, strict=True)]
    batch = DetectionBatch(images, [{"boxes": torch.zeros(0, 4)}] * 5)
    results = transform(batch, generator("list")).images
    assert len(results) == 5
    for i, image in enumerate(images):
        copies = ClassificationBatch(image.repeat(5, 1, 1, 1), torch.zeros(5).long())
        expected = transform(copies, generator("list")).images[i]
        torch.testing.assert_close(results[i], expected, atol=1e-5, rtol=1e-5)
    if transform is LIGHTING:  # its buffer is on the CPU
        return
    with FakeGpu() as gpu:
        batch = batch._replace(images=[image.to("cuda") for image in images])
        gpu.waits.clear()
        on_gpu = transform(batch, generator("list")).images
        assert not gpu.waits
    for result, expected in zip(on_gpu, results, strict=True):
        torch.testing.assert_close(host_copy(result), expected, atol=1e-6, rtol=1e-6)


def test_images_of_one_size_in_a_list_are_transformed_together_on_a_gpu():
    images = [torch.rand(3, *size) for size in ((4, 5), (6, 7), (4, 5), (4, 5))]
    calls: list[tuple[int, ...]] = []

    def add(pixels, number):
        calls.append(tuple(pixels.shape))
        return pixels + number[:, None, None, None]

    expected = map_images(add, images, torch.arange(4))
    assert calls == [(1, *image.shape) for image in images]
    with FakeGpu() as gpu:
        on_gpu, numbers = [image.to("cuda") for image in images], torch.arange(4, device="cuda")
        gpu.waits.clear()
        calls.clear()
        results = map_images(add, on_gpu, numbers)
        assert calls == [(3, 3, 4, 5), (1, 3, 6, 7)]
        map_images(add, on_gpu, numbers, together=False)
        assert calls[2:] == [(1, *image.shape) for image in images]
        assert not gpu.waits
    for number, (result, image, other) in enumerate(zip(results, images, expected, strict=True)):
        assert torch.equal(host_copy(result), image + number)
        assert torch.equal(other, image + number)


def test_noise_differs_by_image_of_a_list():
    images = [torch.full((3, *size), 0.5) for size in ((40, 50), (50, 40), (60, 70))]
    noise = [image - 0.5 for image in colour.GaussianNoise(0.05)(DetectionBatch(images, []), generator("list")).images]
    assert [tuple(image.shape) for image in noise] == [(3, 40, 50), (3, 50, 40), (3, 60, 70)]
    assert all(float(image.std()) == pytest.approx(0.05, rel=0.05) for image in noise)
    correlation = torch.corrcoef(torch.stack([image.flatten()[:6000] for image in noise]))
    assert float((correlation - torch.eye(3)).abs().max()) < 0.06  # 4.6 standard deviations of 6,000 values


PHOTOS = ["data=image_folder", "data.image_px=256", "data.num_classes=10"]


@pytest.mark.parametrize("name", groups.names("augment"))
def test_every_pipeline_runs_on_the_batches_it_is_for(name, config):
    """The images do not depend on the kind of batch; the same position gives the same images, another one others;
    evaluation only normalises."""
    images = torch.randint(0, 256, (4, 3, 256, 256), dtype=torch.uint8, generator=generator("pipelines"))
    augment = build(config(f"augment={name}", *PHOTOS).augment, "augment", channels=3, image_px=256)
    augment.fit(images)
    labels, box = torch.arange(4), torch.tensor([[20.0, 30.0, 200.0, 220.0]])
    batch = ClassificationBatch(images, labels)
    assert torch.equal(augment.normalize.invert(augment(batch).images), images)
    trained = augment(batch, generator("augment", 0))
    assert trained.images.shape == (4, 3, *([224, 224] if name in ("imagenet", "inception") else [256, 256]))
    assert trained.images.isfinite().all()
    assert torch.equal(trained.images, augment(batch, generator("augment", 0)).images)
    is_random = name not in ("none", "scenes")
    assert torch.equal(trained.images, augment(batch).images) != is_random
    assert torch.equal(trained.images, augment(batch, generator("augment", 1)).images) != is_random
    if name == "strong":  # mixes labels, so it is for classification only
        torch.testing.assert_close(trained.labels.sum(1), torch.ones(4))
        return
    assert torch.equal(trained.labels, labels)
    masked = augment(SegmentationBatch(images, images[:, 0].long() % 2), generator("augment", 0))
    assert torch.equal(masked.images, trained.images)
    assert masked.masks.shape == (4, *trained.images.shape[2:])
    boxed = augment(DetectionBatch(list(images), [{"boxes": box, "labels": labels[:1]}] * 4), generator("augment", 0))
    torch.testing.assert_close(torch.stack(boxed.images), trained.images, atol=1e-4, rtol=1e-4)
    assert [len(target["boxes"]) for target in boxed.targets] == [1] * 4


def test_data_bring_their_natural_pipeline(config):
    assert config("data=image_folder").choices.augment == "imagenet"


# what a batch promises


@pytest.mark.parametrize(("batch", "message"), [
    (DetectionBatch([torch.zeros(3, 8, 8)], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}]), "uint8"),
    (DetectionBatch([torch.zeros(3, 8, 8, dtype=torch.uint8)],
                    [{"boxes": torch.tensor([[0.0, 0.0, 9.0, 8.0]]), "labels": torch.tensor([0])}]), "x2 <= 8"),
    (DetectionBatch([torch.zeros(3, 8, 8, dtype=torch.uint8)],
                    [{"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0]]), "labels": torch.tensor([2])}]), r"in \[0, 2\)"),
    (SegmentationBatch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 7).long()), "as the images"),
    (SegmentationBatch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 8, 8), 2)), "the first batch has 2"),
])
def test_a_batch_that_breaks_its_promise_is_refused(batch, message):
    with pytest.raises(BatchError, match=message):
        batch.check(2)
