"""One page of a user's own code outside the package (model, data, task, metric, callback, transform, schedule, figure,
recipe) through every verb."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PAGE = '''\
"""Bright or dark: which half of a picture has more light."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torchmetrics import Metric

from dltrain.data.classification import InMemoryImages, Split
from dltrain.tasks.classification import Classification


class Halves(InMemoryImages):
    def load(self):
        self.class_names = ["left", "right"]
        for split, count in (("train", 160), ("val", 40), ("test", 40)):
            rng = torch.Generator().manual_seed(count)
            images = torch.randint(40, 120, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)
            labels = torch.randint(2, (count,), generator=rng)
            for image, label in zip(images, labels.tolist()):
                image[:, :, 4 * label : 4 * label + 4] += 80
            self.splits[split] = Split(images, labels)


class Linear(torch.nn.Linear):
    def __init__(self, px, num_classes, scale):
        super().__init__(px * px, num_classes)
        self.scale = scale

    def forward(self, images):
        return super().forward(images.flatten(1)) * self.scale


class Margin(Classification):
    """The hinge loss of the tutorial's linear classifier."""

    def training_step(self, batch, batch_idx):
        images, labels = self.augmented(batch)
        logits = self.model(images)
        loss = F.multi_margin_loss(logits, labels)
        correct = (logits.argmax(1) == labels).sum()
        self.sums += torch.stack([loss.detach() * len(labels), correct, correct.new_full((), len(labels))])
        return loss


class Worst(Metric):
    """The lowest score of a true class."""

    def __init__(self):
        super().__init__()
        self.add_state("lowest", torch.tensor(float("inf")), dist_reduce_fx="min")

    def update(self, logits, labels):
        self.lowest = torch.minimum(self.lowest, logits.gather(1, labels[:, None]).min())

    def compute(self):
        return self.lowest


class Greet(pl.Callback):
    def on_train_end(self, trainer, task):
        print("trained", trainer.global_step, "steps")


class Dim:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, batch, rng):
        return batch._replace(images=batch.images * self.factor)


def triangle(step, total_steps):
    return 1 - abs(2 * step / total_steps - 1)


def weights(task, batch, outputs):
    rows = task.model.weight.detach().view(2, 8, 8).flatten(1)
    scaled = 255 * (rows - rows.min()) / (rows.max() - rows.min())
    return {"weights": scaled.to(torch.uint8).view(1, 16, 8).expand(3, -1, -1)}
'''

CONF = {
    "data/halves.yaml": """\
# @package _global_
# Which half is brighter
data:
  _target_: halves.Halves
  batch_type: ClassificationBatch
  channels: 1
  num_classes: 2
  image_px: 8
  batch_size: 16   # int >= 1: images per batch
""",
    "model/linear.yaml": """\
# @package _global_
# One linear layer
defaults:
  - /task: margin
  - override /augment: dim
  - override /data: halves
model:
  _target_: halves.Linear
  px: ${data.image_px}
  num_classes: ${data.num_classes}
  scale: 1.0       # float > 0: of the logits
""",
    "task/margin.yaml": """\
# The hinge loss
defaults:
  - classification
  - _self_
_target_: halves.Margin
""",
    "augment/dim.yaml": """\
# Half of the light
defaults:
  - none
  - _self_
on_pixels:
  - {_target_: halves.Dim, factor: 0.5}
""",
    "recipe/linear-on-halves.yaml": """\
# @package _global_
# Eight epochs with everything of our own
trainer:
  max_epochs: 8
  callbacks: [{_target_: halves.Greet}]
task:
  optimizer: {lr: 0.05}
  schedule: {name: halves.triangle}
  metrics: {worst: {_target_: halves.Worst}}
  figures: [halves.weights]
""",
}


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The folder at hand, with halves.py and conf/."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "halves", raising=False)
    (tmp_path / "halves.py").write_text(PAGE)
    for name, text in CONF.items():
        file = tmp_path / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_it_goes_through_every_verb(page, dltrain):
    mine = ["--config-dir", "conf"]
    code, out, err = dltrain("train", "model=linear", "name=a", *mine)
    assert (code, err) == (0, "")
    assert out.startswith("linear on halves, recipe linear-on-halves; folder outputs/a\n")
    assert "trained 80 steps" in out
    result = json.loads((page / "outputs/a/result.json").read_text())
    assert result["test/accuracy"] > 0.9
    assert "test/worst" in result

    for verb, words, expected in (
            ("eval", ["run=outputs/a", "split=val"], "val/worst"),
            ("predict", ["run=outputs/a", "input=outputs/a/samples"], "left"),
            ("resume", ["run=outputs/a"], "outputs/a is finished"),
            ("ls", ["models", *mine], "linear "),
            ("ls", ["recipes", *mine], "linear-on-halves "),
            ("why", ["task.schedule.name", "model=linear", *mine], "conf/recipe/linear-on-halves.yaml:8"),
            ("why", ["model.scale", "model=linear", *mine], "float > 0: of the logits"),
            ("show", ["model=linear", *mine], ".png")):
        code, out, err = dltrain(verb, *words)
        assert (code, err) == (0, ""), verb
        assert expected in out, (verb, out)

    code, _, err = dltrain("-m", "model=linear", "model.scale=0.5,2", "epochs=1", "name=s", *mine)
    assert (code, err) == (0, "")
    assert len([*(page / "outputs/s").glob("*/result.json")]) == 2
    assert "model.scale=-1.0: must be" in dltrain("model=linear", "model.scale=-1.0", *mine)[2]


def draw_right(page: Path) -> None:
    picture = page / "right.png"
    image = Image.new("L", (8, 8), 60)
    image.paste(160, (4, 0, 8, 8))
    image.save(picture)


SCRIPT = ("import dltrain; run = dltrain.train('model=linear', 'name=a', config_dir='conf'); "
          "print(run.predict('right.png')[0].text, dltrain.load('outputs/a').classes)")


def test_python_opens_the_run(page, monkeypatch, without_figures, capsys):
    """The folder at hand holds the module."""
    draw_right(page)
    monkeypatch.chdir(page)
    monkeypatch.syspath_prepend("")
    exec(SCRIPT, {})
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1].startswith("right.png  right ")
    assert out.strip().endswith("['left', 'right']")
    assert Path(page / "outputs/a/config.yaml").is_file()


@pytest.mark.slow
def test_python_opens_the_run_in_a_process_of_its_own(page):
    draw_right(page)
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=page, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("right.png  right ")
    assert done.stdout.strip().endswith("['left', 'right']")
