"""The GPU path on a GPU: `CUDA_VISIBLE_DEVICES=0 pytest -m gpu -n0`. tests/test_gpu_path.py, test_fixed_order.py and
test_devices.py check the same without one."""

import os
import warnings

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product; Lightning sets it in a run

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import MultiScaleRoIAlign, RoIPool

from dltrain import checkpoints, devices
from dltrain.build import build_data, build_task
from dltrain.models.faster_rcnn import RegionAlign
from dltrain.models.fixed_order import enlarge, values_at
from dltrain.models.regions import OneMapRoIPool
from tests.conftest import TINY
from tests.test_fixed_order import BOXES, GRID, IMAGES, LEVELS
from tests.test_gpu_path import FAMILIES, OF_TORCHVISION, build, deterministic, small_data

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)
__all__ = ["small_data"]


def gradients_of_a_step(task, batch) -> list[torch.Tensor]:
    task.position = (0, 0, 1, 0)
    task.zero_grad()
    torch.manual_seed(0)
    task.training_step(task.copy_to(GPU, batch), 1).backward()
    return [parameter.grad.clone() for parameter in task.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_deterministic_step_runs_repeats_and_waits_only_where_torchvision_does(family, config, small_data):
    task, batch = build(config(*FAMILIES[family]))
    buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}
    task.to(GPU)
    with deterministic(True):
        first = gradients_of_a_step(task, batch)
        for name, buffer in task.named_buffers():
            buffer.copy_(buffers[name])
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                second = gradients_of_a_step(task, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    waits = [warning for warning in noted if "synchronizing CUDA operation" in str(warning.message)]
    if family not in OF_TORCHVISION:
        assert not waits, [f"{warning.filename}:{warning.lineno}" for warning in waits]
    assert not [warning.filename for warning in waits if "/dltrain/" in warning.filename]


def compare(ours, expected, *shapes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(shape, dtype=torch.double).requires_grad_() for shape in shapes]
    out = expected(*maps)
    factors = torch.randn_like(out)
    (out * factors).sum().backward()
    with deterministic(True):
        copies = [map_.detach().to(GPU).requires_grad_() for map_ in maps]
        result = ours(*copies)
        (result * factors.to(GPU)).sum().backward()
    torch.testing.assert_close(result.cpu(), out, rtol=1e-6, atol=1e-6)
    for copy, map_ in zip(copies, maps, strict=True):
        assert copy.grad is not None
        torch.testing.assert_close(copy.grad.cpu(), map_.grad, rtol=1e-6, atol=1e-6)


def test_layers_with_a_fixed_order_equal_those_of_the_cpu():
    boxes = [box.to(GPU) for box in BOXES]
    keys, levels = {"canonical_scale": 32, "canonical_level": 3}, [*LEVELS]
    theirs, ours = MultiScaleRoIAlign(levels, 7, 2, **keys), RegionAlign(levels, 7, 2, **keys)
    compare(lambda *maps: ours(dict(zip(levels, maps, strict=True)), boxes, IMAGES),
            lambda *maps: theirs(dict(zip(levels, maps, strict=True)), BOXES, IMAGES), *LEVELS.values())
    compare(lambda map_: OneMapRoIPool(7, 4)({"0": map_}, boxes, IMAGES),
            lambda map_: RoIPool(7, 1 / 4)(map_, BOXES), LEVELS["0"])
    compare(lambda x: enlarge(x, (20, 33)), lambda x: F.interpolate(x, (20, 33), mode="bilinear"), (2, 3, 5, 7))
    compare(lambda map_: values_at(map_, GRID.to(GPU)), lambda map_: values_at(map_, GRID), (2, 3, 5, 7))


@pytest.mark.parametrize("resident", [True, False])
def test_batches_on_the_gpu_are_those_of_the_host(resident, config):
    composed = config(*TINY, f"trainer.resident_data={resident}")
    data = build_data(composed)
    expected = [*data.train_dataloader()]
    data.train_dataloader().batches_done = 0
    devices.place_on_gpu(composed.trainer, data, build_task(composed), GPU)
    for batch, other in zip(data.train_dataloader(), expected, strict=True):
        assert batch.images.device == batch.labels.device == GPU
        assert torch.equal(batch.images.cpu(), other.images)
        assert torch.equal(batch.labels.cpu(), other.labels)


def test_a_run_repeats_to_the_bit(dltrain, tmp_path):
    words = [word for word in TINY if word != "trainer=cpu"]
    weights = []
    for name in ("a", "b"):
        code, _, err = dltrain(*words, "trainer=gpu", f"name={name}")
        assert code == 0, err
        weights.append(checkpoints.load(tmp_path / "outputs" / name / "checkpoints/last.ckpt")["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
