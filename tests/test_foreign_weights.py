"""Weights of other code, with other names and zeros on both sides of shortcut A, are evaluated without a run."""

import json
import re
import shlex
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dltrain.build import build, build_data
from dltrain.config.compose import compose
from dltrain.data.digits import Digits

PAGE = (Path(__file__).parents[1] / "docs/images.md").read_text()


class TheirBlock(nn.Module):
    """As in much published code for ResNet-20 on CIFAR-10."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.quarter = c_out // 4 if c_in != c_out else 0

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.quarter:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.quarter, self.quarter))
        return F.relu(out + x)


class TheirNet(nn.Module):
    def __init__(self, channels=1, num_classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(TheirBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(TheirBlock(16, 32, 2), TheirBlock(32, 32, 1), TheirBlock(32, 32, 1))
        self.layer3 = nn.Sequential(TheirBlock(32, 64, 2), TheirBlock(64, 64, 1), TheirBlock(64, 64, 1))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(out.mean((2, 3)))


@pytest.fixture
def theirs(tmp_path):
    """Their net with statistics that are not those of a new net, and its file, as DataParallel names the tensors."""
    torch.manual_seed(1)
    net = TheirNet()
    for name, value in net.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, tmp_path / "theirs.pth")
    return net.eval()


def command_of_the_docs() -> list[str]:
    (command,) = re.findall(r"^dltrain eval (model=resnet20 .*rename=.*)$", PAGE, re.MULTILINE)
    return shlex.split(command)


def test_they_give_their_own_accuracy(theirs, dltrain, tmp_path):
    words = [word for word in command_of_the_docs() if word != "data=cifar10"]
    config = compose(["augment=digits", "recipe=none"]).job_config()
    data = cast(Digits, build_data(config))
    augment = build(config.augment, "augment", channels=1, image_px=8)
    augment.fit(data.training_pixels(10_000))
    images, labels = data.splits["test"]
    with torch.no_grad():
        logits = theirs(augment.normalize(images))
    code, out, err = dltrain("eval", *words, "data=digits", "augment=digits", "recipe=none")
    assert (code, err) == (0, "")
    accuracy, loss = float((logits.argmax(1) == labels).float().mean()), float(F.cross_entropy(logits, labels))
    assert out.startswith(f"test/accuracy {accuracy:.4f}\ntest/loss {loss:.4f}\n")
    (folder,) = (tmp_path / "outputs/eval").iterdir()
    assert out.endswith(f"360 samples of the test split, weights theirs.pth; outputs/eval/{folder.name}/eval.json\n")
    stored = json.loads((folder / "eval.json").read_text())
    assert (stored["test/accuracy"], stored["samples"]) == (pytest.approx(accuracy), 360)
    others = [word for word in words if not word.startswith("model.shortcut")]
    assert f"test/loss {loss:.4f}" not in dltrain("eval", *others, "data=digits", "augment=digits", "recipe=none")[1]


@pytest.mark.parametrize(("changes", "message"), [
    (["model.pretrained.rename=[]"], "it lacks"),
    (["split=tests"], "split=tests: must be test or val or train"),
    (["model.depth=32"], "size mismatch for blocks.3")])
def test_what_does_not_fit_is_refused(changes, message, theirs, dltrain, tmp_path):
    words = [word for word in command_of_the_docs() if word != "data=cifar10"]
    code, _, err = dltrain("eval", *words, "data=digits", "recipe=none", *changes)
    assert (code, message in err) == (2, True)
    assert not [*tmp_path.glob("outputs/eval/*")], "a refused evaluation leaves no folder"


def test_a_head_for_other_classes_is_not_evaluated(theirs, dltrain):
    """Training would give it a new head; an evaluation of that says nothing about the weights."""
    words = [word for word in command_of_the_docs() if word != "data=cifar10"]
    torch.save({f"module.{name}": value for name, value in TheirNet(3).state_dict().items()}, "theirs.pth")
    code, _, err = dltrain("eval", *words, "data=patterns", "recipe=none")
    assert code == 2
    assert "size mismatch for head.weight" in err
