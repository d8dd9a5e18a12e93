"""The class of every pixel: stages and strides of backbones, dilation, hypercolumns, skips, learned upsampling."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.contracts import Backbone
from dltrain.models.alexnet import AlexNet
from dltrain.models.backbones import stage_maps, stage_shapes
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.dilated import Dilated
from dltrain.models.dilation import dilate
from dltrain.models.efficientnet_lite import EfficientNetLite0
from dltrain.models.fcn import FCN, Upsampling
from dltrain.models.googlenet import GoogLeNet
from dltrain.models.hypercolumn import Hypercolumn
from dltrain.models.imagenet_resnet import ImagenetResNet
from dltrain.models.vgg import CifarVGG, ImagenetVGG
from tests.finished_run import count_computed_blocks

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "resnet": lambda: CifarResNet(8), "bottleneck": lambda: CifarResNet(11, block="bottleneck", shortcut="B"),
    "vgg": lambda: CifarVGG(11, width=4), "imagenet_resnet": lambda: ImagenetResNet(18),
    "imagenet_bottleneck": lambda: ImagenetResNet(50), "lite0": lambda: EfficientNetLite0(),
    "alexnet": lambda: AlexNet(10), "googlenet": lambda: GoogLeNet(10, width=8),
    "googlenet_cifar": lambda: GoogLeNet(10, width=8, size="cifar")}


def add_statistics(net: nn.Module) -> None:
    """Random statistics of batch normalisation, in evaluation mode and double precision."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    net.double().eval()


def make_images(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize(("name", "stride"), [
    ("resnet", 1), ("bottleneck", 2), ("vgg", 4), ("vgg", 1), ("imagenet_resnet", 8), ("lite0", 8),
    ("googlenet_cifar", 2), ("imagenet_bottleneck", 16)])
def test_dilated_and_strided_maps_coincide_at_the_offset(name, stride):
    torch.manual_seed(0)
    strided = BACKBONES[name]()
    assert isinstance(strided, nn.Module)
    add_statistics(strided)
    dense = copy.deepcopy(strided)
    offset = dilate(dense, stride)
    assert dict(dense.named_parameters()).keys() == dict(strided.named_parameters()).keys()
    image = make_images(96, 64)
    with torch.no_grad():
        coarse, fine = strided.features(image), dense.features(image)
    factor = fine.shape[2] // coarse.shape[2]
    assert factor > 1
    assert fine.shape[2:] == (96 // stride, 64 // stride)
    torch.testing.assert_close(fine[:, :, offset::factor, offset::factor], coarse, rtol=1e-5, atol=1e-5)
    assert stage_shapes(dense.float(), 3)[-1].stride == stride


def test_strides_and_stages_that_a_backbone_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"stride must be one of 1, 2, 4, the strides of CifarResNet, but is 8"):
        Dilated(CifarResNet(8), 3, stride=8, rates=[1], hidden=4, dropout=0.0)
    with pytest.raises(ValueError, match=r"stride must be one of 1, 2, 4, the strides of CifarResNet, but is 16"):
        FCN(CifarResNet(8), 3, 3, stride=16, hidden=4, kernel=3, dropout=0.0, upsampling="bilinear")
    with pytest.raises(ValueError, match=r"taps must be among stem, stage1, stage2, stage3, .* but has conv1"):
        Hypercolumn(CifarResNet(8), 3, 3, taps=["conv1", "stem"], hidden=4, dropout=0.0)
    with pytest.raises(ValueError, match=r"Linear must have features, out_channels and stages\(\) to be a backbone"):
        stage_shapes(nn.Linear(3, 3), 3)  # type: ignore[arg-type]  # its type is what is refused


@pytest.mark.parametrize(("name", "strides"), [
    ("alexnet", [4, 8, 16, 32]), ("vgg", [1, 2, 4, 8, 16, 32]), ("lite0", [2, 2, 4, 8, 16, 16, 32, 32]),
    ("imagenet_bottleneck", [2, 4, 8, 16, 32]), ("googlenet", [2, 4, 8, 16, 32]), ("googlenet_cifar", [1, 1, 1, 2, 4]),
    ("bottleneck", [1, 1, 2, 4])])
def test_the_stride_of_a_stage_is_the_product_of_those_of_its_layers(name, strides):
    backbone = BACKBONES[name]()
    stages = stage_shapes(backbone, 3)
    assert [stage.stride for stage in stages] == strides
    assert [stage.name for stage in stages] == list(backbone.stages())
    with torch.no_grad():
        maps = stage_maps(backbone.eval(), torch.zeros(1, 3, 64, 64))
    assert [stage.channels for stage in stages] == [map_.shape[1] for map_ in maps]
    assert stages[-1].channels == backbone.out_channels
    if name != "alexnet":  # its first convolution and its poolings are not padded to the stride
        assert [map_.shape[2] for map_ in maps] == [64 // stride for stride in strides]


def test_a_stochastic_depth_backbone_drops_blocks_stage_by_stage_too():
    """In training; in evaluation it is the expected net."""
    torch.manual_seed(0)
    net = CifarResNet(14, survival=0.5)
    num_calls = count_computed_blocks(net)
    num_steps, image = 150, torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for _ in range(num_steps):
            stage_maps(net, image)
        for calls, p in zip(num_calls, net.survival_probabilities, strict=True):
            assert calls / num_steps == pytest.approx(p, abs=4 * (p * (1 - p) / num_steps) ** 0.5)
        net.eval()
        assert torch.equal(stage_maps(net, image)[-1], net.features(image))


def test_a_pixels_hypercolumn_is_the_stack_of_enlarged_maps():
    torch.manual_seed(0)
    net = Hypercolumn(CifarVGG(11, width=4), 3, 3, taps=[], hidden=8, dropout=0.0)
    add_statistics(net)
    images = make_images(64, 96, count=2)
    stack = torch.cat([F.interpolate(map_, size=(64, 96), mode="bilinear", align_corners=False)
                       for map_ in stage_maps(net.backbone, images)], 1)
    assert stack.shape[1] == 4 + 8 + 16 + 32 + 32 + 32
    expected = net.fc2_and_classes(net.fc1(stack.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    torch.testing.assert_close(net(images), expected)
    places = torch.tensor([[[0, 0], [63, 95], [10, 77]], [[31, 2], [5, 5], [63, 0]]])
    logits = net.classify_pixels(images, places)
    for image in range(2):
        for number, (row, column) in enumerate(places[image].tolist()):
            torch.testing.assert_close(logits[image, number], expected[image, :, row, column])
    two_taps = Hypercolumn(CifarVGG(11, width=4), 3, 3, taps=["conv1", "conv3"], hidden=8, dropout=0.0)
    assert two_taps.fc1.in_features == 4 + 16
    assert [map_.shape[1:] for map_ in two_taps.tapped_maps(torch.randn(1, 3, 64, 96))] == [(4, 64, 96), (16, 16, 24)]


@pytest.mark.parametrize("factor", [2, 3, 8, 32])
def test_learned_upsampling_starts_as_bilinear(factor):
    x = torch.randn(2, 3, 4, 5)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    learned = Upsampling(3, factor, learned=True)
    torch.testing.assert_close(learned(x, expected.shape[2:]), expected)
    assert [p.shape for p in learned.parameters()] == [(3, 3, 2 * factor - factor % 2, 2 * factor - factor % 2)]
    assert learned(x, torch.Size((4 * factor - 1, 5 * factor + 1))).shape == (2, 3, 4 * factor - 1, 5 * factor + 1)


def test_fcn_adds_the_logits_of_finer_maps():
    torch.manual_seed(0)
    net = FCN(CifarVGG(11, width=4), 3, 3, stride=8, hidden=8, kernel=3, dropout=0.0, upsampling="bilinear").eval()
    images = torch.randn(1, 3, 64, 96)

    def enlarge(x: Tensor, factor: int) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    maps = stage_maps(net.backbone, images)
    assert torch.equal(net.skips[0](maps[4]), torch.zeros(1, 3, 4, 6))
    coarse = net.head(maps[5])
    torch.testing.assert_close(net(images), enlarge(enlarge(enlarge(coarse, 2), 2), 8))
    for parameter in net.skips.parameters():
        nn.init.normal_(parameter)
    of_stride_16 = net.skips[0](maps[4]) + enlarge(coarse, 2)
    torch.testing.assert_close(net(images), enlarge(net.skips[1](maps[3]) + enlarge(of_stride_16, 2), 8))
    assert net(torch.randn(1, 3, 70, 51)).shape == (1, 3, 70, 51)


def test_fcn_8s_of_the_paper_reads_pool4_and_pool3():
    """VGG-16's layers 23 and 16, of strides 16 and 8 (Long et al. 2014, figure 3)."""
    torch.manual_seed(0)
    net = FCN(CifarVGG(16, norm="none", width=4), 3, 3, 8, 8, 3, 0.0, "bilinear", skips="pools").eval()
    assert isinstance(net.backbone, CifarVGG)
    images = torch.randn(1, 3, 64, 96)
    pool4, pool3 = net.backbone.features[:24](images), net.backbone.features[:17](images)
    assert (pool4.shape, pool3.shape) == ((1, 32, 4, 6), (1, 16, 8, 12))
    assert [skip(pool).abs().sum().item() for skip, pool in zip(net.skips, (pool4, pool3), strict=True)] == [0, 0]

    def enlarge(x: Tensor, factor: int) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    for parameter in net.skips.parameters():
        nn.init.normal_(parameter)
    of_stride_16 = net.skips[0](pool4) + enlarge(net.head(net.backbone.features(images)), 2)
    torch.testing.assert_close(net(images), enlarge(net.skips[1](pool3) + enlarge(of_stride_16, 2), 8))
    assert net(torch.randn(1, 3, 70, 51)).shape == (1, 3, 70, 51)


@pytest.mark.parametrize(("stride", "upsampling", "expected"), [
    (32, "bilinear", 0), (16, "bilinear", 512 * 21 + 21), (8, "bilinear", 512 * 21 + 21 + 256 * 21 + 21),
    (8, "learned", 512 * 21 + 21 + 256 * 21 + 21 + 21 * 21 * (4 * 4 + 4 * 4 + 16 * 16))])
def test_the_papers_net_has_its_number_of_parameters(stride, upsampling, expected):
    """21 classes of VOC: the convolutions of VGG-16, fc6 and fc7, their scores, and those of pool4 and pool3."""
    with torch.device("meta"):
        net = FCN(ImagenetVGG(16), 21, 3, stride, 4096, 7, 0.5, upsampling, skips="pools")
    convolutions, fc6, fc7 = 14_714_688, 512 * 49 * 4096 + 4096, 4096 * 4096 + 4096
    assert sum(p.numel() for p in net.parameters()) == convolutions + fc6 + fc7 + 4096 * 21 + 21 + expected


def test_pools_need_a_backbone_with_poolings_between_its_stages():
    with pytest.raises(ValueError, match="skips must be last: stride 2 of CifarResNet is not reached by a pooling"):
        FCN(CifarResNet(8), 3, 3, 2, 4, 3, 0.0, "bilinear", skips="pools")
    net = FCN(GoogLeNet(10, width=8), 3, 3, 16, 4, 3, 0.0, "bilinear", skips="pools").eval()
    assert net(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_fcn_32s_has_no_skips_and_no_classifier_of_the_backbone():
    net = FCN(CifarVGG(11, width=4), 3, 3, stride=32, hidden=8, kernel=3, dropout=0.0, upsampling="learned")
    assert len(net.skips) == 0
    assert [name for name, _ in net.backbone.named_parameters() if "head" in name] == []
    assert net(torch.randn(1, 3, 70, 51)).shape == (1, 3, 70, 51)


def test_aspp_adds_the_logits_of_its_branches():
    torch.manual_seed(0)
    net = Dilated(CifarVGG(11, width=4), 3, stride=8, rates=[1, 2, 3], hidden=8, dropout=0.0).eval()
    assert [branch.get_submodule("0").dilation for branch in net.branches] == [(1, 1), (2, 2), (3, 3)]
    images = torch.randn(1, 3, 64, 64)
    map_ = net.backbone.features(images)
    assert map_.shape == (1, 32, 8, 8)
    total = torch.stack([branch(map_) for branch in net.branches]).sum(0)
    torch.testing.assert_close(net(images), F.interpolate(total, scale_factor=8, mode="bilinear"))
