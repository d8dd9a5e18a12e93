"""What is set up for a GPU: which data stay there, batches that are sent ahead, fused optimizers, precision, compiling.
The GPU is not there (fake_gpu.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from dltrain import devices, optim
from dltrain.batches import ClassificationBatch, DetectionBatch
from dltrain.build import build_data, build_task
from dltrain.data.ahead import SendAhead
from dltrain.data.classification import InMemoryImages
from dltrain.step_loop import defines
from tests.conftest import TINY
from tests.fake_gpu import CUDA, FakeGpu, host_copy

KEYS = {"name": "sgd", "lr": 0.1, "weight_decay": 0.0}


class Streams:
    """What SendAhead uses of torch.cuda, with a log of the calls in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.log: list[str] = []
        self.copies = 0
        for name in ("Stream", "stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def Stream(self, device):  # torch's name
        return self

    def current_stream(self, device):
        return self

    @contextmanager
    def stream(self, stream) -> Iterator[None]:
        self.log.append("on the copying stream")
        yield
        self.log.append("off it")

    def record_event(self) -> int:
        self.copies += 1
        return self.copies

    def wait_event(self, event: int) -> None:
        self.log.append(f"wait for copy {event}")


def test_each_batch_is_sent_before_the_one_before_it_is_trained_on(monkeypatch):
    streams = Streams(monkeypatch)

    def read() -> Iterator[int]:
        for number in range(1, 4):
            streams.log.append(f"read {number}")
            yield number

    def send(number: int) -> int:
        streams.log.append(f"send {number}")
        return number

    received = []
    for batch in SendAhead(send, CUDA)(read()):
        received.append(batch)
        streams.log.append(f"train on {batch}")
    assert received == [1, 2, 3]
    sent = [[f"read {n}", "on the copying stream", f"send {n}", "off it"] for n in (1, 2, 3)]
    trained = [[f"wait for copy {n}", f"train on {n}"] for n in (1, 2, 3)]
    assert streams.log == [*sent[0], *sent[1], *trained[0], *sent[2], *trained[1], *trained[2]]
    assert list(SendAhead(send, CUDA)([])) == []


def test_the_loaders_send_ahead_and_know_their_position(config, monkeypatch):
    """The task's copy; memory is kept for the stream that reads it; the position is that of the batch in training."""
    streams = Streams(monkeypatch)
    composed = config(*TINY)
    data = build_data(composed)
    expected = [batch.labels.tolist() for batch in data.train_dataloader()]
    data.train_dataloader().batches_done = 0
    task = build_task(composed)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    with FakeGpu() as gpu:
        devices.place_on_gpu(composed.trainer, data, task, CUDA)
        labels = []
        for number, batch in enumerate(data.train_dataloader(), start=1):
            assert batch.images.is_cuda
            assert batch.images.reader is batch.labels.reader is streams
            assert data.train_dataloader().batches_done == number
            labels.append(host_copy(batch.labels).tolist())
        assert next(iter(data.val_dataloader())).images.is_cuda
        assert not gpu.waits
    assert labels == expected


def test_boxes_stay_on_the_host_in_training_alone(config):
    task = build_task(config("model=faster_rcnn"))
    batch = DetectionBatch([torch.zeros(3, 8, 8)], [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1).long()}])
    with FakeGpu():
        for training in (True, False):
            moved = task.train(training).copy_to(CUDA, batch)
            assert moved.images[0].is_cuda
            assert {value.is_cuda for value in moved.targets[0].values()} == {not training}


@pytest.mark.parametrize(("words", "free", "resident"), [
    ([], 4 * 100_000, True), ([], 40_000, False), (["trainer.resident_data=false"], 4 * 100_000, False)])
def test_data_stay_on_a_gpu_where_they_fit(words, free, resident, config, monkeypatch):
    """176 digits of 64 bytes and 8 of the label take 12,672 bytes, more than a quarter of 40,000."""
    Streams(monkeypatch)
    composed = config(*TINY, *words)
    data = cast(InMemoryImages, build_data(composed))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    indices = [torch.tensor([5, 2, 90]), torch.tensor([0, -1])]
    expected = [*data.read("train", indices)]
    with FakeGpu() as gpu:
        devices.place_on_gpu(composed.trainer, data, build_task(composed), CUDA)
        assert bool(data.resident) is resident
        gpu.waits.clear()
        for batch, other in zip(data.read("train", indices), expected, strict=True):
            assert batch.images.is_cuda is batch.labels.is_cuda is resident
            if resident:
                batch = ClassificationBatch(host_copy(batch.images), host_copy(batch.labels))
            assert torch.equal(batch.images, other.images)
            assert torch.equal(batch.labels, other.labels)
        assert not gpu.waits


def test_nothing_is_placed_on_a_cpu(config):
    composed = config(*TINY)
    data = cast(InMemoryImages, build_data(composed))
    devices.place_on_gpu(composed.trainer, data, build_task(composed), torch.device("cpu"))
    assert data.send_ahead is None
    assert not data.resident
    assert not defines(build_task(composed), "transfer_batch_to_device", pl.LightningModule)  # costs time in each step


def test_samples_of_resident_data_are_written(config, tmp_path):
    data = build_data(config(*TINY))
    with FakeGpu():
        data.keep_on(CUDA, 10**9)
        data.write_samples(tmp_path)
    assert len([*tmp_path.iterdir()]) == 10


@pytest.mark.parametrize(("name", "fused"), [("sgd", True), ("adam", True), ("adamw", True), ("rmsprop", None)])
def test_optimizers_are_fused_on_a_gpu_alone(name, fused):
    layer = nn.Linear(2, 3)
    keys = {**KEYS, "name": name}
    assert optim.optimizer(layer, **keys).defaults.get("fused") is None
    with FakeGpu():
        layer.to("cuda")
        assert optim.optimizer(layer, **keys).defaults.get("fused") is fused
        assert optim.optimizer(layer, **keys, fused=False).defaults.get("fused") is None
        layer.bias = nn.Parameter(torch.zeros(3))  # not all on the GPU
        assert optim.optimizer(layer, **keys).defaults.get("fused") is None


def test_scaled_gradients_are_clipped_before_the_optimizer_scales_them(config):
    task = build_task(config(*TINY))
    with FakeGpu():
        task.to("cuda")
        for task.scales_loss, fused in ((False, True), (True, None)):
            assert task.configure_optimizers()["optimizer"].defaults["fused"] is fused


@pytest.mark.parametrize(("words", "matmul", "convolutions"), [
    ([], "highest", False), (["trainer.matmul_precision=high"], "high", True)])
def test_matmul_precision_is_that_of_convolutions_too(words, matmul, convolutions, config, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's own default
    before = torch.get_float32_matmul_precision()
    try:
        devices.set_up_device(config(*TINY, *words).trainer)
        assert torch.get_float32_matmul_precision() == matmul
        assert torch.backends.cudnn.allow_tf32 is convolutions
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_model_is_compiled_in_the_mode_of_its_key(config, monkeypatch):
    modes = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **keys: modes.append(keys))
    build_task(config("model=resnet20", "trainer.compile=true"))
    build_task(config("model=resnet20", "trainer.compile=true", "trainer.compile_mode=reduce-overhead"))
    assert modes == [{"mode": "default"}, {"mode": "reduce-overhead"}]
