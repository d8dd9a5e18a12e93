"""VGG, GoogLeNet, AlexNet and timm's nets against torchvision's own; stages; auxiliary losses."""

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from dltrain import build
from dltrain.augment.pipeline import Augment
from dltrain.batches import ClassificationBatch
from dltrain.contracts import Backbone
from dltrain.errors import UserError
from dltrain.models.alexnet import AlexNet
from dltrain.models.deterministic_pool import AverageTo
from dltrain.models.googlenet import GoogLeNet
from dltrain.models.timm_model import TimmModel
from dltrain.models.vgg import CifarVGG, ImagenetVGG
from dltrain.pretrained import HEADS
from dltrain.tasks.classification import Classification


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_is_torchvisions(depth, norm):
    """Every name and shape, so that its published weights fit."""
    with torch.device("meta"):
        reference = torchvision.models.get_model(f"vgg{depth}{'_bn' if norm == 'batch' else ''}", weights=None)
        assert shapes(ImagenetVGG(depth, norm=norm)) == shapes(reference)
        assert str(ImagenetVGG(depth, norm=norm).features) == str(reference.features)


def test_alexnet_and_googlenet_are_torchvisions():
    with torch.device("meta"):
        assert shapes(AlexNet()) == shapes(torchvision.models.alexnet(weights=None))
        assert shapes(GoogLeNet()) == shapes(torchvision.models.googlenet(weights=None, init_weights=False))


def test_maps_are_averaged_to_the_size_of_torchvisions():
    with torch.device("meta"):
        assert torchvision.models.vgg11(weights=None).avgpool.output_size == (ImagenetVGG(11).avgpool.side,) * 2
        assert torchvision.models.alexnet(weights=None).avgpool.output_size == (AlexNet().avgpool.side,) * 2


def googlenet_and_reference() -> tuple[GoogLeNet, torchvision.models.GoogLeNet]:
    """Ours and torchvision's with the same weights, without dropout, for 5 classes."""
    torch.manual_seed(0)
    net, reference = GoogLeNet(5), torchvision.models.googlenet(weights=None, num_classes=5, init_weights=False)
    reference.load_state_dict(net.state_dict())
    for module in [*net.modules(), *reference.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net, reference


def test_googlenets_logits_are_torchvisions():
    """In evaluation the logits; in training, in torchvision's order: the net's, those that read 4d, those that read
    4a."""
    net, reference = googlenet_and_reference()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), reference.eval()(images))
        logits, expected = net.train()(images), reference.train()(images)
    assert [tuple(of_one.shape) for of_one in logits] == [(2, 5)] * 3
    for actual, reference_logits in zip(logits, expected, strict=True):
        torch.testing.assert_close(actual, reference_logits)


@pytest.mark.parametrize(("size", "side"), [((7, 7), 7), ((3, 9), 7), ((14, 15), 4), ((1, 2), 6)])
def test_averages_are_torchs_adaptive_ones(size, side):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, *size, requires_grad=True)
    averaged, expected = AverageTo(side)(maps), F.adaptive_avg_pool2d(maps, side)
    torch.testing.assert_close(averaged, expected)
    weights = torch.randn(2, 3, side, side)
    torch.testing.assert_close(*(torch.autograd.grad((out * weights).sum(), maps)[0] for out in (averaged, expected)))


VGG_STAGES = {"conv1": 1, "conv2": 2, "conv3": 4, "conv4": 8, "conv5": 16, "pool5": 32}
GOOGLENET = ("conv1", "conv2", "inception3", "inception4", "inception5")


class Case(NamedTuple):
    build_net: Callable[[], Backbone]
    image_px: int
    strides: dict[str, int]


BACKBONES = {
    "vgg11": Case(lambda: CifarVGG(11, width=4), 64, VGG_STAGES),
    "vgg16 without norm": Case(lambda: CifarVGG(16, width=4, norm="none"), 64, VGG_STAGES),
    "googlenet": Case(lambda: GoogLeNet(2, width=8), 64, dict(zip(GOOGLENET, (2, 4, 8, 16, 32), strict=True))),
    "googlenet cifar": Case(lambda: GoogLeNet(2, width=8, size="cifar"), 32,
                            dict(zip(GOOGLENET, (1, 1, 1, 2, 4), strict=True))),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_stages_in_order_are_the_features(kind):
    """The map of each stage has its stride, a pooling begins a stage, and the last map is that of `features`."""
    torch.manual_seed(0)
    build_net, px, strides = BACKBONES[kind]
    net = build_net().eval()
    assert list(net.stages()) == list(strides)
    x = images = torch.randn(1, 3, px, px)
    with torch.no_grad():
        for name, layers in net.stages().items():
            for layer in layers:
                x = layer(x)
            assert x.shape[2:] == (px // strides[name],) * 2, name
            assert not any(isinstance(layer, nn.MaxPool2d) for layer in layers[1:])
        torch.testing.assert_close(x, net.features(images))
    assert x.shape[1] == net.out_channels


def test_alexnets_stages():
    with torch.device("meta"):
        net, x, sides = AlexNet(), torch.empty(1, 3, 224, 224), []
        for modules in net.stages().values():
            x = nn.Sequential(*modules)(x)
            sides.append(x.shape[3])
    assert sides == [55, 27, 13, 6]
    assert list(net.stages()) == ["conv1", "conv2", "conv3", "pool5"]
    assert [module for modules in net.stages().values() for module in modules] == list(net.features)
    assert x.shape[1] == net.out_channels


def test_stages_list_a_layer_that_replaces_another():
    net = CifarVGG(11, width=4)
    net.features[3] = nn.Identity()
    assert isinstance(net.stages()["conv2"][0], nn.Identity)
    with torch.device("meta"):
        big = ImagenetVGG(16, norm="batch")
        assert [type(layers[0]).__name__ for layers in big.stages().values()] == ["Conv2d"] + ["MaxPool2d"] * 5
        assert sum(len(layers) for layers in big.stages().values()) == len(big.features)


@pytest.mark.parametrize("build_net", [
    lambda: ImagenetVGG(11, 7), lambda: CifarVGG(11, 7), lambda: AlexNet(7), lambda: GoogLeNet(7),
    lambda: GoogLeNet(7, size="cifar", width=8), lambda: TimmModel("test_resnet", 7),
    lambda: TimmModel("test_vit", 7), lambda: TimmModel("test_efficientnet", 7), lambda: TimmModel("vgg11", 7)])
def test_layers_that_compute_class_logits_are_known_as_heads(build_net):
    """All tensors that have the number of classes in their shape, and no others of these layers."""
    with torch.device("meta"):
        net = build_net()
    names = {name for name, value in net.state_dict().items() if value.shape[:1] == (7,)}
    layers = {name.rpartition(".")[0] for name in names}
    assert names == {f"{layer}.{parameter}" for layer in layers for parameter in ("weight", "bias")}
    assert len(layers) == (3 if isinstance(net, GoogLeNet) else 1)
    assert all(name.startswith(HEADS) for name in names)


@pytest.mark.parametrize("build_net", [lambda: CifarVGG(11, 4, in_channels=1, width=4),
                                       lambda: GoogLeNet(4, in_channels=1, size="cifar", width=8),
                                       lambda: TimmModel("test_resnet", 4, in_channels=1)])
def test_a_narrow_net_of_grey_images_learns_four_of_them(build_net):
    torch.manual_seed(0)
    net, images, labels = build_net().train(), torch.randn(4, 1, 32, 32), torch.tensor([0, 3, 0, 3])
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        output = net(images)
        loss = F.cross_entropy(output[0] if isinstance(output, tuple) else output, labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_large_nets_take_grey_images():
    with torch.device("meta"):
        for net in (ImagenetVGG(11, 4, in_channels=1), AlexNet(4, in_channels=1), GoogLeNet(4, in_channels=1)):
            assert net.eval()(torch.empty(2, 1, 224, 224)).shape == (2, 4)


def test_initial_weights_have_hes_variance_and_biases_are_zero():
    torch.manual_seed(0)
    vgg = CifarVGG(16, width=32)
    convolutions = [layer for layer in vgg.features if isinstance(layer, nn.Conv2d)]
    for conv in (convolutions[2], GoogLeNet(size="cifar").get_submodule("conv3.conv")):
        assert isinstance(conv, nn.Conv2d)
        fan = conv.out_channels * 9
        assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan), rel=0.02)
    biases = [conv.bias for conv in convolutions if conv.bias is not None]
    assert len(biases) == 13
    assert not any(bias.any() for bias in biases)


def test_an_unknown_depth_is_refused():
    for kind in (CifarVGG, ImagenetVGG):
        with pytest.raises(ValueError, match="depth must be one of 11, 13, 16, 19, but is 12"):
            kind(12)


def test_timm_by_name(config, monkeypatch):
    small = ["model=timm", "model.name=test_resnet", "data.num_classes=5"]
    net = build.build_task(config(*small)).model.eval()
    images = torch.randn(2, 3, 64, 64)
    assert net(images).shape == (2, 5)
    assert net.features(images).shape == (2, net.out_channels, 2, 2)
    with pytest.raises(UserError, match=r"model \(TimmModel\): timm has no model 'resnt18'; near it: .*resnet18"):
        build.build_task(config(*small, "model.name=resnt18"))
    with pytest.raises(UserError, match=r"freezing.until=all: TimmModel has no stages: timm's nets do not list which"):
        build.build_task(config(*small, "task.freezing.until=all"))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model \(TimmModel\): it needs the package timm: pip install dltrain\[timm\]"):
        build.build_task(config(*small))


class ThreeLogits(nn.Module):
    """Logits that are parameters, and twice and minus them as auxiliary ones."""

    auxiliary_weight = 0.3

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[0.5, -1.0], [2.0, 0.0]]))

    def forward(self, images):
        return (self.logits, 2 * self.logits, -self.logits) if self.training else self.logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_auxiliary_losses_by_hand(smoothing):
    """The loss against sums written out; accuracy is that of the main logits; evaluation has no auxiliary logits."""
    task = Classification(ThreeLogits(), Augment("box", 1, 4), 2, smoothing, seed=0, schedule={"name": "constant"},
                          optimizer={"name": "sgd", "lr": 0.1, "weight_decay": 0.0})
    batch = ClassificationBatch(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    loss = task.training_step(batch, 0).detach()

    def mean(scale, smoothing):
        """Of two cross-entropies; each pair of logits has that of its label first."""
        pairs = [(scale * a, scale * b) for a, b in ((0.5, -1.0), (0.0, 2.0))]
        return sum((1 - smoothing / 2) * math.log(1 + math.exp(b - a)) + smoothing / 2 * math.log(1 + math.exp(a - b))
                   for a, b in pairs) / 2

    assert float(loss) == pytest.approx(mean(1, smoothing) + 0.3 * (mean(2, smoothing) + mean(-1, smoothing)), rel=1e-6)
    assert task.read_training_metrics() == pytest.approx({"train/loss": float(loss), "train/accuracy": 0.5})
    task.eval().evaluation_step(batch)
    assert task.evaluation_loss.tolist() == pytest.approx([2 * mean(1, 0.0), 2])
