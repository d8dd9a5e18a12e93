"""Pretrained weights of a file, of torchvision and of timm; what does not fit is named by key."""

from urllib.error import URLError

import pytest
import timm
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from dltrain import build, run
from dltrain.errors import DataError, UserError
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.timm_model import TimmModel
from dltrain.pretrained import without_pretrained
from dltrain.run_dir import RunDir
from dltrain.tasks.classification import Classification
from tests.conftest import TINY

DETECTOR = ["model=faster_rcnn", "data.num_train=8", "recipe=none", "model.hidden=16", "model.backbone.depth=8"]


def test_weights_from_a_file(config, tmp_path):
    torch.manual_seed(1)
    net = CifarResNet(8)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    words = [*DETECTOR, f"model.backbone.pretrained.weights={tmp_path}/w.pth"]
    backbone = build.build_task(config(*words)).model.backbone
    expected = net.state_dict()
    assert len(backbone.state_dict()) == len(expected) - 2, "all but the head"
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())
    torch.save(CifarResNet(8, num_classes=100).state_dict(), tmp_path / "w.pth")
    assert build.build_task(config(*words)).model.backbone.out_channels == 64, "the head may have another size"
    torch.save(dict(list(net.state_dict().items())[6:]), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"model.backbone.pretrained.weights=.*w.pth: it lacks 5 of the \d+ tensors of "
                                        r"CifarResNet: stem.0"):
        build.build_task(config(*words))
    torch.save(CifarResNet(8, in_channels=1).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth: size mismatch for stem.0.weight"):
        build.build_task(config(*words))
    (tmp_path / "w.pth").write_text("nothing")
    with pytest.raises(UserError, match=r"w.pth: not a file of tensors"):
        build.build_task(config(*words))


def test_tensors_of_a_foreign_file_are_renamed(config, tmp_path):
    """Patterns are applied in order; the file of a wrapped net with another name for its stem."""
    torch.manual_seed(1)
    net = CifarResNet(8)
    foreign = {f"module.{name.replace('stem.0', 'conv1')}": value for name, value in net.state_dict().items()}
    torch.save(foreign, tmp_path / "w.pth")
    words = [*DETECTOR, f"model.backbone.pretrained.weights={tmp_path}/w.pth"]
    with pytest.raises(UserError, match=r"lacks 35 of the .*; model.backbone.pretrained.rename can map other names"):
        build.build_task(config(*words))
    renames = r"model.backbone.pretrained.rename=['^module\.:','^(?:conv1)\.(\w+):stem.0.\1']"
    backbone = build.build_task(config(*words, renames)).model.backbone
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in backbone.state_dict().items())
    with pytest.raises(UserError, match=r"pretrained.rename: two tensors of .*w.pth would be called 'x'"):
        build.build_task(config(*words, "model.backbone.pretrained.rename=['^.*$:x']"))


@pytest.mark.parametrize(("rename", "message"), [
    (r"(module\.:", r"model.pretrained.rename: '\(module\\.:' must be PATTERN:REPLACEMENT with a regular expression: "),
    (r"^a:\2", r"rename: '\^a:\\2' must be PATTERN:REPLACEMENT with a regular expression: invalid group reference 2"),
    (r"module", r"rename: 'module' must be PATTERN:REPLACEMENT, as \^module"),
])
def test_a_bad_pattern_is_refused_by_key(rename, message, config):
    with pytest.raises(UserError, match=message):
        config("model=resnet20", f"model.pretrained.rename=['{rename}']", "model.pretrained.weights=w.pth")
    with pytest.raises(UserError, match=r"model.pretrained.rename: must be \[\] without a file or a name"):
        config("model=resnet20", "model.pretrained.rename=['a:b']")


def test_weights_by_name(config, monkeypatch):
    words = ["model=resnet18", "data.num_classes=3", "recipe=none"]
    published = resnet18(weights=None).state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *args, **keys: published)
    name = "model.pretrained.weights=ResNet18_Weights.IMAGENET1K_V1"
    weights = build.build_task(config(*words, name)).model.state_dict()
    assert weights.keys() == published.keys()
    assert all(torch.equal(weights[key], value) for key, value in published.items() if not key.startswith("fc."))
    assert weights["fc.weight"].shape == (3, 512)
    with pytest.raises(UserError, match=r"weights=nonsense: no such file, and no name of torchvision's"):
        build.build_task(config(*words, "model.pretrained.weights=nonsense"))

    def offline(*args, **keys):
        raise URLError("no network")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(DataError, match=r"cannot download https://.*resnet18.*; download it elsewhere and name the"):
        build.build_task(config(*words, name))


@pytest.mark.parametrize(("num_classes", "kept"), [(1000, False), (5, True)])
def test_weights_that_timm_publishes(num_classes, kept, config, monkeypatch):
    """The net is the published one but for a classifier of another number of classes, which is that of the seed; the
    random numbers after it are the same."""
    words = ["model=timm", "model.name=test_resnet", f"data.num_classes={num_classes}"]
    initial = build.build_task(config(*words)).model.state_dict()
    state = torch.get_rng_state()
    create, pretrained = timm.create_model, []

    def create_model(*args, **keys):
        pretrained.append(keys.pop("pretrained"))
        net = create(*args, **keys)
        for parameter in net.parameters() if pretrained[-1] else ():
            nn.init.constant_(parameter, 0.25)
        return net

    monkeypatch.setattr(timm, "create_model", create_model)
    model = build.build_task(config(*words, "model.pretrained.weights=timm")).model
    assert torch.equal(torch.get_rng_state(), state)
    assert pretrained == [False, True]
    for name, parameter in model.named_parameters():
        if name.startswith("net.fc."):
            assert torch.equal(parameter, initial[name]) is kept
        else:
            assert (parameter == 0.25).all(), name


def test_weights_of_timm_that_cannot_be_had(config, monkeypatch):
    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(TimmModel, "published_weights", offline)
    words = ["data.num_classes=5", "model.pretrained.weights=timm"]
    with pytest.raises(DataError, match=r"model.pretrained.weights=timm: cannot download weights of 'test_resnet' "):
        build.build_task(config("model=timm", "model.name=test_resnet", *words))
    with pytest.raises(UserError, match=r"weights=timm: only model=timm can have the weights of timm, but this is C"):
        build.build_task(config("model=resnet20", *words))


@pytest.mark.parametrize("words", [["model=timm", "model.pretrained.weights=timm"],
                                   [*DETECTOR, "model.backbone.pretrained.weights=some.pth"]])
def test_weights_are_not_read_again_when_a_run_is_resumed(words, config):
    model = config(*words).model
    node = model if "backbone" not in model else model.backbone
    copy = without_pretrained(model)
    assert node.pretrained.weights is not None
    assert (copy if "backbone" not in copy else copy.backbone).pretrained == {"from_run": None, "weights": None,
                                                                            "rename": []}


class Weighted(Classification):
    """A user's task with an argument `weights`, and one for each class that is named as dltrain's own keys are."""

    def __init__(self, model, augment, num_classes, weights, batch, from_run, **keys):
        super().__init__(model, augment, num_classes, **keys)
        self.arguments = weights, batch, from_run


class Branching(nn.Module):
    """A user's model with arguments named as dltrain's keys are, `pretrained` among them."""

    def __init__(self, num_classes, from_run, weights, batch, pretrained):
        super().__init__()
        self.arguments = from_run, weights, batch, pretrained
        self.head = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.head(images.flatten(1))


OWN_MODEL = """# @package _global_
# A model of a user
defaults:
  - /task: weighted
  - override /data: digits
model:
  _target_: tests.test_pretrained.Branching
  num_classes: ${data.num_classes}
  from_run: a
  weights: [1, 2]
  batch: 3
  pretrained: true
"""
OWN_TASK = """# A task of a user
defaults:
  - classification
  - _self_
_target_: tests.test_pretrained.Weighted
weights: [0.5, 2.0]
batch: 7
from_run: b
"""


def test_a_users_own_classes_may_take_arguments_of_any_name(config, tmp_path):
    for name, text in (("model/branching", OWN_MODEL), ("task/weighted", OWN_TASK)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(text)
    composed = config("model=branching", *TINY[2:], "trainer.max_epochs=1", config_dir=str(tmp_path))
    task = build.build_task(composed)
    assert task.model.arguments == ("a", [1, 2], 3, True)
    assert task.arguments == ([0.5, 2.0], 7, "b")
    assert run.train(composed, RunDir.named(tmp_path, "a"))["steps"] == 3
    (tmp_path / "task/weighted.yaml").write_text(OWN_TASK.replace("batch: 7", "batch: ClassificationBatch"))
    with pytest.raises(UserError, match=r"weighted.yaml:7: 'task.batch' is a key of an earlier version; use task.batc"):
        config("model=branching", config_dir=str(tmp_path))
