"""Layers with sums in a fixed order, on a GPU that is not there, against torch's and torchvision's own."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, RoIPool

from dltrain.models.deterministic_pool import average_to
from dltrain.models.faster_rcnn import RegionAlign
from dltrain.models.fixed_order import enlarge, values_at
from dltrain.models.regions import OneMapRoIPool
from dltrain.tasks.segmentation import loss_sum
from tests.fake_gpu import FakeGpu, host_copy
from tests.test_gpu_path import deterministic

GRID = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(1)).double() * 2.4 - 1.2  # some are outside
IMAGES = [(64, 96), (60, 90)]
BOXES = [torch.tensor(boxes, dtype=torch.double) for boxes in (
    [[0, 0, 96, 64], [-20, 30, 10, 80], [50, 20, 50.2, 20.1], [3, 5, 40, 33]], [[30, 10, 80, 70], [88, 50, 140, 66]])]
LEVELS = {"0": (2, 3, 16, 24), "1": (2, 3, 8, 12), "2": (2, 3, 4, 6)}


def compare(ours, expected, *shapes: tuple[int, ...]) -> None:
    """Calls `expected` on maps of these shapes, and `ours` in a deterministic run on a GPU; outputs and gradients must
    be the same to 1e-6."""
    torch.manual_seed(0)
    maps = [torch.randn(shape, dtype=torch.double).requires_grad_() for shape in shapes]
    out = expected(*maps)
    factors = torch.randn_like(out)
    (out * factors).sum().backward()
    with FakeGpu() as gpu, deterministic(True):
        copies = [map_.detach().to("cuda").requires_grad_() for map_ in maps]
        result = ours(*copies)
        (result * factors.to("cuda")).sum().backward()
    assert not gpu.refused
    torch.testing.assert_close(host_copy(result), out.detach(), rtol=1e-6, atol=1e-6)
    for copy, map_ in zip(copies, maps, strict=True):
        torch.testing.assert_close(host_copy(copy.grad), map_.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(20, 33), (5, 7), (3, 14), (11, 10)])
def test_bilinear_enlarging(size):
    compare(partial(enlarge, size=size), lambda x: F.interpolate(x, size, mode="bilinear"), (2, 3, 5, 7))


def test_values_at_points():
    def sample(map_: Tensor) -> Tensor:
        return F.grid_sample(map_, GRID[:, :, None], padding_mode="border", align_corners=False)[..., 0]

    compare(lambda map_: values_at(map_, GRID.to("cuda")), sample, (2, 3, 5, 7))


@pytest.mark.parametrize("levels", [["0"], ["1"], ["0", "1", "2"]])
def test_region_align(levels):
    def call(pool, boxes, *maps):
        return pool(dict(zip(levels, maps, strict=True)), boxes, IMAGES)

    keys = (levels, 7, 2)
    expected = MultiScaleRoIAlign(*keys, canonical_scale=32, canonical_level=3)
    ours = RegionAlign(*keys, canonical_scale=32, canonical_level=3)
    compare(lambda *maps: call(ours, [boxes.to("cuda") for boxes in BOXES], *maps), partial(call, expected, BOXES),
            *(LEVELS[level] for level in levels))


def test_region_max_pool():
    theirs, ours = RoIPool(7, 1 / 4), OneMapRoIPool(7, 4)
    compare(lambda map_: ours({"0": map_}, [boxes.to("cuda") for boxes in BOXES], IMAGES),
            lambda map_: theirs(map_, BOXES), LEVELS["0"])


@pytest.mark.parametrize("side", [1, 3, 8])
def test_adaptive_average(side):
    compare(partial(average_to, side=side), lambda x: F.adaptive_avg_pool2d(x, side), (2, 3, 5, 7))


def test_loss_of_pixels():
    masks = torch.randint(0, 4, (2, 5, 7), generator=torch.Generator().manual_seed(0))
    masks[0, :3] = 255
    compare(lambda logits: loss_sum(logits, masks.to("cuda")), lambda logits: loss_sum(logits, masks), (2, 4, 5, 7))
