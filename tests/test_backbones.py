"""Backbones of detectors: their maps, their published sizes, feature pyramids; what is no backbone is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_weight, vgg16
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from dltrain import build
from dltrain.augment.pipeline import Normalize
from dltrain.contracts import Backbone, backbone_of
from dltrain.errors import UserError
from dltrain.models.backbones import VGG16, stage_strides
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.efficientnet_lite import EfficientNetLite0, SameConv2d
from dltrain.models.faster_rcnn import FasterRCNN
from dltrain.models.imagenet_resnet import ImagenetResNet
from dltrain.models.localizer import Localizer
from dltrain.models.overfeat import OverFeat
from dltrain.models.recurrent import CharRNN
from dltrain.models.vgg import CifarVGG
from dltrain.tasks.freezing import Freezing


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def test_vgg16s_map_has_stride_16_and_the_published_weights_fit():
    with torch.device("meta"):
        net, published = VGG16(), vgg16(weights=None)
        assert net.features(torch.empty(1, 3, 64, 96)).shape == (1, 512, 4, 6)
    assert stage_strides(net) == {"conv1": 1, "conv2": 2, "conv3": 4, "conv4": 8, "conv5": 16}
    assert [layer for layers in net.stages().values() for layer in layers] == [*net.features]
    assert shapes(net) == {name: shape for name, shape in shapes(published).items() if name.startswith("features.")}
    assert sum(p.numel() for p in net.parameters()) == 14_714_688  # configuration D without its three linear layers


def test_vgg16s_first_two_stages_are_frozen_in_a_detector(config):
    composed = config("model=faster_rcnn_vgg16", "data.num_classes=3", "model.hidden=8")
    with torch.device("meta"):
        model = build.build(composed.model, "model")
    Freezing(model, **composed.task.freezing)
    trained = [layer.weight.requires_grad for layer in model.backbone.features if isinstance(layer, nn.Conv2d)]
    assert trained == [False] * 4 + [True] * 9


def pyramid(backbone: Backbone, **keys) -> FasterRCNN:
    return FasterRCNN(backbone, 3, **{"anchor_px": [16, 32, 64, 128, 256], "ratios": [1.0], "short_px": 64,
                                      "long_px": 99, "hidden": 8, "pyramid": True, **keys})


def test_the_pyramids_detector_is_torchvisions(config):
    """As many parameters of each shape as torchvision's Faster R-CNN with ResNet-50 and FPN, at 91 classes with
    background; the same of them are trained."""
    composed = config("model=faster_rcnn_resnet50", "data.num_classes=90")
    with torch.device("meta"):
        model = build.build(composed.model, "model")
        expected = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    Freezing(model, **composed.task.freezing)

    def sizes(net: nn.Module) -> list[tuple[int, ...]]:
        return sorted(tuple(p.shape) for p in net.parameters() if p.dim() > 1)

    assert sizes(model.net) == sizes(expected)
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in model.modules()) == 53
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert [p.requires_grad for p in model.net.backbone.parameters()] == [p.requires_grad for p in
                                                                          backbone.parameters()]


def test_a_pyramid_needs_its_anchors_its_stages_and_align():
    with pytest.raises(ValueError, match="anchor_px must have 5 sides, one for each map of the pyramid, but is"):
        pyramid(ImagenetResNet(18), anchor_px=[32])
    with pytest.raises(ValueError, match="roi_pool must be align where pyramid=true"):
        pyramid(ImagenetResNet(18), roi_pool="pool")
    with pytest.raises(ValueError, match="pyramid must be false: EfficientNetLite0 has fewer than 4 stages"):
        pyramid(EfficientNetLite0(until=2))


def test_a_pyramid_of_resnet18_trains_and_its_boxes_lie_in_the_image():
    torch.manual_seed(0)
    model = pyramid(ImagenetResNet(18))
    images = [torch.randn(3, 64, 80), torch.randn(3, 96, 64)]
    targets = [{"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([2])}] * 2
    losses = model(images, targets)
    assert sorted(losses) == sorted(model.losses)
    torch.stack([*losses.values()]).sum().backward()
    without_gradient = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without_gradient == []
    boxes, anchors = model.eval().proposals(images)
    assert [len(of_image) for of_image in anchors] == [24**2 + 12**2 + 6**2 + 3**2 + 2**2] * 2
    for of_image, (w, h) in zip(boxes, ((80, 64), (64, 96)), strict=True):
        assert len(of_image) > 10
        assert (of_image > -0.1).all()
        assert (of_image < torch.tensor([w, h, w, h]) + 0.1).all()


def test_frozen_batch_norm_of_a_resnet_has_the_published_statistics():
    torch.manual_seed(0)
    net, frozen = ImagenetResNet(18), ImagenetResNet(18, norm="frozen_batch")
    for name, value in net.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    frozen.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(frozen.train().features(images), net.eval().features(images))


def test_the_backbone_of_a_model():
    classifier, vgg = CifarResNet(8), CifarVGG(11, width=4)
    assert backbone_of(classifier) is classifier
    assert backbone_of(vgg) is vgg, "its features are a submodule and no method"
    detector = FasterRCNN(classifier, 3, anchor_px=[16], ratios=[1.0], short_px=64, long_px=99, hidden=8)
    assert backbone_of(detector) is classifier
    assert backbone_of(Localizer(vgg, 3, points=2, box_weight=1.0)) is vgg
    for model in (nn.Linear(3, 3), CharRNN(9, "gru", 4, 1), OverFeat(3)):
        assert backbone_of(model) is None


def test_a_module_that_is_no_backbone_is_refused(config):
    linear: Any = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"Linear must have features, out_channels and stages\(\) to be a backbone"):
        FasterRCNN(linear, 3, anchor_px=[16], ratios=[1.0], short_px=64, long_px=99, hidden=8)
    with pytest.raises(UserError, match=r"model \(FasterRCNN\): Identity must have features"):
        build.build_task(config("model=faster_rcnn", "model.backbone={_target_:torch.nn.Identity}"))


def test_efficientnet_lite0_has_the_published_size_and_pads_as_tensorflow_does():
    net = EfficientNetLite0()
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    assert net.eval()(torch.randn(1, 3, 65, 64)).shape == (1, 1000)
    assert net.features(torch.randn(1, 3, 65, 64)).shape == (1, 320, 3, 2)
    backbone = EfficientNetLite0(until=5)
    assert backbone.features(torch.randn(1, 3, 64, 64)).shape == (1, backbone.out_channels, 4, 4) == (1, 112, 4, 4)
    for size, kernel in ((8, 3), (9, 3), (8, 5), (9, 5)):
        conv, x = SameConv2d(2, 2, kernel, 2), torch.randn(1, 2, size, size)
        missing = (-(-size // 2) - 1) * 2 + kernel - size
        before = missing // 2
        padded = torch.zeros(1, 2, size + missing, size + missing)
        padded[:, :, before : before + size, before : before + size] = x
        torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=2))


def test_imagenet_normalisation_is_torchvisions():
    expected = get_weight("ResNet50_Weights.IMAGENET1K_V2").transforms()
    stage = Normalize("imagenet", 3, 224)
    stage.fit(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8))
    assert stage.mean.flatten().tolist() == pytest.approx(expected.mean)
    assert stage.std.flatten().tolist() == pytest.approx(expected.std)
    with pytest.raises(ValueError, match="normalize=imagenet needs images with 3 channels, but they have 1"):
        Normalize("imagenet", 1, 224)
