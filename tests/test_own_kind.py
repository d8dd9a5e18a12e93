"""A kind of problem that dltrain does not know: its own batch, data, task with predict and a figure, and model, from
outside the package, through every verb."""

import json
import sys
from pathlib import Path

import pytest

CODE = '''
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.batches import BatchError, generator
from dltrain.data.datamodule import DataModule
from dltrain.drawing.images import make_grid
from dltrain.tasks.images import ImageTask
from dltrain.tasks.task import Prediction


class InkBatch(NamedTuple):
    """images (B, 1, 8, 8) uint8; ink (B,) float, the mean grey value in [0, 1]."""

    images: Tensor
    ink: Tensor

    @property
    def size(self):
        return len(self.ink)


class Ink(DataModule):
    batch_type = InkBatch
    input_kind = "image"

    def __init__(self, *, channels, image_px, **keys):
        super().__init__(**keys)
        self.images = {}

    def load(self):
        for split in ("train", "val", "test"):
            grey = torch.randint(0, 256, (64, 1, 1, 1), generator=generator("ink", split), dtype=torch.uint8)
            self.images[split] = grey.expand(-1, -1, 8, 8)

    def num_samples(self, split):
        return len(self.images[split])

    def read(self, split, batches):
        for indices in batches:
            images = self.images[split][indices]
            yield InkBatch(images, images.float().mean((1, 2, 3)) / 255)

    def training_pixels(self, at_most):
        return self.images["train"]

    def read_input(self, path):
        return torch.full((1, 8, 8), 51, dtype=torch.uint8)

    def write_samples(self, folder):
        (folder / "any.ink").write_text("ink")
        return f"input={folder}/any.ink"


class InkTask(ImageTask):
    batch_type = InkBatch
    headline, headline_mode = "val/error", "min"

    def check(self, batch):
        if batch.ink.min() < 0:
            raise BatchError("ink must be >= 0")

    def training_step(self, batch, batch_idx):
        images, ink = self.augment(batch, generator("augment", *self.position))
        loss = F.mse_loss(self.model(images)[:, 0], ink)
        self.sums += torch.stack([loss.detach() * batch.size, loss.new_tensor(batch.size)])
        return loss

    def evaluation_step(self, batch, batch_idx):
        outputs = self.model(self.augment(batch).images)[:, 0]
        self.add_loss(F.l1_loss(outputs, batch.ink, reduction="sum"), torch.tensor(batch.size))
        return outputs

    def evaluation_end(self, split):
        self.log_metrics(split, {"error": self.mean_loss()})

    def figures(self, batch, outputs):
        return {"darkest": make_grid(batch.images[outputs.argsort()[:4]])}

    def predict(self, inputs, data, digits=2):
        for item in inputs:
            ink = float(self.model(self.augment.normalize(item.load()[None])))
            yield Prediction(item.name, [f"{ink:.{digits}f}"], records=[{"file": item.name, "ink": ink}])


class Linear(nn.Sequential):
    def __init__(self, in_channels):
        super().__init__(nn.Flatten(), nn.Linear(64 * in_channels, 1))
'''
YAML = {
    "data/ink": """# @package _global_
# Random images and how much ink they have
data: {_target_: ink.Ink, batch_type: InkBatch, channels: 1, image_px: 8, batch_size: 16}
""",
    "task/ink": """# Squared error of the ink
defaults: [base/task, _self_]
_target_: ink.InkTask
batch_type: InkBatch
predict:
  input: null  # str or null: a picture
  digits: 2    # int >= 1: after the point
""",
    "model/linear": """# @package _global_
# One linear layer
defaults: [/task: ink, override /data: ink]
model: {_target_: ink.Linear, in_channels: "${data.channels}"}
""",
}


@pytest.fixture(autouse=True)
def own_code(tmp_path, monkeypatch):
    """The code and the configs above, in the folder in which the commands run."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "ink", raising=False)
    (tmp_path / "ink.py").write_text(CODE)
    for name, text in YAML.items():
        path = tmp_path / f"conf/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_it_takes_at_most_a_hundred_lines():
    lines = [line for text in (CODE, *YAML.values()) for line in text.splitlines() if line.strip()]
    assert len(lines) <= 100


def test_it_goes_through_every_verb(dltrain, tmp_path):
    train = ("--config-dir", "conf", "model=linear", "name=a", "trainer.max_epochs=15", "task.optimizer.lr=0.01")
    code, out, err = dltrain(*train)
    assert (code, err) == (0, "")
    assert "next: dltrain predict run=outputs/a input=outputs/a/samples/any.ink" in out
    run = tmp_path / "outputs/a"
    result = json.loads((run / "result.json").read_text())
    assert 0 < result["test/error"] < 0.1

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run), size_guidance={"images": 0})
    board.Reload()
    assert {"train/augmented_batch", "val/darkest", "test/darkest"} <= {*board.Tags()["images"]}

    (run / "result.json").unlink()
    code, out, _ = dltrain("resume", "run=outputs/a")
    assert code == 0
    assert json.loads((run / "result.json").read_text())["test/error"] == result["test/error"]

    code, out, _ = dltrain("eval", "run=outputs/a", "split=val", "data.batch_size=7")
    assert code == 0
    assert f"val/error {result['val/error']:.4f}" in out

    code, out, _ = dltrain("predict", "run=outputs/a", "input=outputs/a/samples/any.ink", "digits=3")
    assert code == 0
    (record,) = json.loads((run / "predictions.json").read_text())
    assert out.startswith(f"{record['ink']:.3f}\n")
    code, _, err = dltrain("predict", "run=outputs/a", "input=outputs/a/samples/any.ink", "digits=0")
    assert (code, err) == (2, "dltrain: error: digits=0: must be an integer >= 1\n")

    code, out, _ = dltrain("show", "--config-dir", "conf", "model=linear")
    assert (code, out) == (0, "outputs/show/none-on-ink.png\noutputs/show/augmented_batch-of-ink.png\n")
    assert all(Path(file).is_file() for file in out.split())

    code, out, _ = dltrain("check", *train)
    assert code == 0, out
    assert "ok       overfits a batch" in out
    assert "-        samples alone        what the model gives for each sample is not known here" in out

    code, out, _ = dltrain("ls", "runs")
    assert "linear on ink" in out
    assert "test/error" in out
    assert f"{result['test/error']:.4f}" in out


def test_wrong_data_are_refused_with_those_that_fit(dltrain):
    code, _, err = dltrain("--config-dir", "conf", "model=linear", "data=digits")
    assert code == 2
    assert "model=linear trains on InkBatch, but data=digits yields ClassificationBatch. Data that fits: ink." in err


def test_an_own_batch_that_breaks_its_promise_is_named(dltrain, tmp_path):
    (tmp_path / "ink.py").write_text(CODE.replace("/ 255)", "/ 255 - 1)"))
    code, _, err = dltrain("--config-dir", "conf", "model=linear")
    assert code == 3
    assert err.endswith("ink must be >= 0\n")
