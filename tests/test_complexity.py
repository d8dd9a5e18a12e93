"""Parameters, multiply-adds and depth of nets against what torchvision and the papers publish, and by hand."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from dltrain import complexity
from dltrain.commands import ls
from dltrain.config import groups
from dltrain.models.alexnet import AlexNet
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.efficientnet_lite import EfficientNetLite0
from dltrain.models.googlenet import GoogLeNet
from dltrain.models.imagenet_resnet import ImagenetResNet
from dltrain.models.vgg import ImagenetVGG
from tests.command_line import run_command


def measure(build_net: Callable[[], nn.Module], px: int = 224, channels: int = 3) -> complexity.Complexity:
    with torch.device("meta"):
        return complexity.measure(build_net(), torch.empty(1, channels, px, px))


@pytest.mark.parametrize(("build_net", "name", "depth"), [
    (lambda: ImagenetVGG(16), "vgg16", 16), (lambda: ImagenetVGG(11, norm="batch"), "vgg11_bn", 11),
    (GoogLeNet, "googlenet", 22), (AlexNet, "alexnet", 8),
    (lambda: ImagenetResNet(50), "resnet50", 50), (lambda: ImagenetResNet(18), "resnet18", 18)])
def test_measured_columns_are_those_that_torchvision_publishes(build_net, name, depth):
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    columns = measure(build_net)
    assert columns.parameters == meta["num_params"]
    assert round(columns.multiply_adds / 1e9, 3) == pytest.approx(meta["_ops"], abs=1e-3)
    assert columns.depth == depth


def test_measured_depth_is_the_papers():
    assert measure(lambda: CifarResNet(20), 32).depth == 20
    assert measure(lambda: CifarResNet(20, shortcut="C"), 32).depth == 20
    assert measure(lambda: CifarResNet(29, block="bottleneck", shortcut="B"), 32).depth == 29
    assert measure(EfficientNetLite0).depth == 1 + 2 + 15 * 3 + 1 + 1


def test_multiply_adds_by_hand():
    """One convolution of 3 to 8 channels at stride 2, and a linear layer; not the layer that is not read."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head, self.unread = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5), nn.Linear(9, 9)

        def forward(self, images):
            return self.head(self.conv(images).mean((2, 3)))

    assert measure(Two, 16) == (3 * 8 * 9 + 8 + 8 * 5 + 5, 8 * 8 * 3 * 8 * 9 + 8 * 5, 2)


def test_averages_are_no_layers():
    """Of 256 px the map is 8 x 8 and comes to 7 x 7 by products with matrices that are no weights."""
    assert measure(lambda: ImagenetVGG(11), 256).depth == 11


def test_ls_models_measures(monkeypatch, capsys):
    few, names = {"alexnet", "vgg11", "resnet20", "googlenet", "char_rnn"}, groups.names
    monkeypatch.setattr(groups, "names", lambda group, *folders: [name for name in names(group, *folders)
                                                                  if group != "model" or name in few])
    code, out, err = run_command(monkeypatch, capsys, "ls", "models", "px=32", "classes=10")
    assert (code, err) == (0, "")
    table, _, note = out.partition("\n\n")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert list(rows) == ["model", "alexnet", "googlenet", "resnet20", "vgg11"]
    assert rows["model"] == ["parameters", "multiply-adds", "depth"]
    assert " ".join(rows["alexnet"]) == "- - - Output size is too small"
    assert rows["resnet20"] == ["269,722", "40.55", "M", "20"]
    assert rows["vgg11"][-1] == "11"
    assert note.startswith("For one image of 3 x 32 x 32 and 10 classes. ")


def test_what_was_measured_is_kept_until_a_model_changes(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(groups, "names", lambda group, *folders: ["resnet20"] if group == "model" else [])
    nodes, measure_node = list[object](), complexity.measure_node

    def note(*words):
        nodes.append(words)
        return measure_node(*words)

    monkeypatch.setattr(complexity, "measure_node", note)
    table = partial(run_command, monkeypatch, capsys, "ls", "models", "px=32")
    first = table()
    assert "resnet20" in first[1]
    assert table() == first
    assert len(nodes) == 1
    run_command(monkeypatch, capsys, "ls", "models", "px=33")
    monkeypatch.setattr(ls, "stamps_of_models", lambda: [[1, 2]])
    assert table() == first
    assert len(nodes) == 3
    (tmp_path / "cache").rename(tmp_path / "old")
    (tmp_path / "cache").write_text("a file, so that nothing can be kept")
    assert table() == first
