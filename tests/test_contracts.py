"""The models keep the contracts: the annotations say so to a type checker, the assertions to everybody."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dltrain.contracts import (
    Backbone,
    Classifier,
    Decoder,
    Detector,
    PixelSegmenter,
    Segmenter,
    StatefulModel,
    backbone_of,
)
from dltrain.models.alexnet import AlexNet
from dltrain.models.backbones import VGG16
from dltrain.models.captioner import Captioner
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.dilated import Dilated
from dltrain.models.efficientnet_lite import EfficientNetLite0
from dltrain.models.fast_rcnn import RCNN, FastRCNN
from dltrain.models.faster_rcnn import FasterRCNN
from dltrain.models.fcn import FCN
from dltrain.models.googlenet import GoogLeNet
from dltrain.models.hypercolumn import Hypercolumn
from dltrain.models.imagenet_resnet import ImagenetResNet
from dltrain.models.localizer import Localizer
from dltrain.models.mlp import MLP
from dltrain.models.overfeat import OverFeatDetector
from dltrain.models.recurrent import CharRNN
from dltrain.models.seq2seq import Seq2Seq
from dltrain.models.timm_model import TimmModel
from dltrain.models.vgg import CifarVGG, ImagenetVGG

CLASSES, PX = 3, 64


GRID = (CLASSES, [24], [1.0], 0.5, PX, 99, 8)  # of num_classes, box_px, ratios, step, short_px, long_px, hidden

BACKBONES: list[Callable[[], Backbone]] = [
    lambda: CifarResNet(8), lambda: CifarVGG(11, width=4), lambda: GoogLeNet(width=8),
    lambda: GoogLeNet(width=8, size="cifar"), lambda: ImagenetResNet(18), lambda: EfficientNetLite0(until=5), AlexNet,
    lambda: ImagenetVGG(11), VGG16]
CLASSIFIERS: list[Callable[[], Classifier]] = [
    lambda: CifarResNet(8, CLASSES), lambda: CifarVGG(11, CLASSES, width=4), lambda: GoogLeNet(CLASSES, width=8),
    lambda: ImagenetResNet(18, CLASSES), lambda: EfficientNetLite0(CLASSES), lambda: AlexNet(CLASSES),
    lambda: TimmModel("test_resnet", CLASSES), lambda: MLP(3 * PX**2, CLASSES)]
DETECTORS: list[Callable[[], Detector]] = [
    lambda: FasterRCNN(CifarResNet(8), CLASSES, [16], [1.0], PX, 99, 8),
    lambda: FasterRCNN(ImagenetResNet(18), CLASSES, [8, 16, 32, 64, 96], [1.0], PX, 99, 8, pyramid=True),
    lambda: FastRCNN(CifarResNet(8), *GRID), lambda: RCNN(CifarResNet(8), *GRID),
    lambda: Localizer(CifarResNet(8), CLASSES, 2, 1.0),
    lambda: OverFeatDetector(CLASSES, 3, 4, 8, 32, [1.0], 8, 0.05, 0.5)]
PIXEL_SEGMENTER: Callable[[], PixelSegmenter] = lambda: Hypercolumn(  # noqa: E731  # its type is what is tested
    CifarResNet(8), CLASSES, 3, [], 8, 0.0)
SEGMENTERS: list[Callable[[], Segmenter]] = [
    lambda: FCN(CifarVGG(11, width=4), CLASSES, 3, 8, 8, 3, 0.0, "learned"),
    lambda: Dilated(CifarResNet(8), CLASSES, 2, [2], 8, 0.0), PIXEL_SEGMENTER]
DECODERS: list[tuple[Callable[[], Decoder], list[Any]]] = [
    (lambda: Captioner(CifarResNet(8), 9, "lstm", 6, 1, 5, "first_state", 1, True, 2), [torch.randn(2, 3, PX, PX)]),
    (lambda: Captioner(CifarResNet(8), 9, "gru", 6, 1, 5, "first_input", 1, False, 2), [torch.randn(2, 3, PX, PX)]),
    (lambda: Seq2Seq(9, 9, "gru", 6, 1, 5), [torch.randint(4, 9, (2, 5)), (5, 3)])]


def language_model(cell: str) -> StatefulModel:
    return CharRNN(9, cell, 6, 2, 5)


@pytest.mark.parametrize("make", BACKBONES)
def test_the_stages_of_a_backbone_compute_its_features(make):
    backbone, images = make().eval(), torch.randn(2, 3, PX, PX)
    x: Tensor = images
    for layers in backbone.stages().values():
        for layer in layers:
            x = layer(x)
    torch.testing.assert_close(x, backbone.features(images))
    assert x.shape[:2] == (2, backbone.out_channels)
    assert backbone_of(backbone) is backbone


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_classifiers(make):
    classifier = make()
    assert classifier.eval()(torch.randn(2, 3, PX, PX)).shape == (2, CLASSES)
    logits = classifier.train()(torch.randn(2, 3, PX, PX))
    if isinstance(logits, tuple):
        assert {tuple(of_one.shape) for of_one in logits} == {(2, CLASSES)}
        assert classifier.auxiliary_weight > 0


@pytest.mark.parametrize("make", DETECTORS)
def test_detectors(make):
    detector, images = make(), [torch.randn(3, PX, PX) for _ in range(2)]
    targets = [{"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([CLASSES - 1])} for _ in images]
    losses = detector.train()(images, targets)
    assert {*losses} == {*detector.losses}
    assert all(loss.shape == () for loss in losses.values())
    for detected in detector.eval().detect(images):
        count = len(detected["scores"])
        assert (detected["boxes"].shape, detected["labels"].shape) == ((count, 4), (count,))
        assert ((detected["labels"] >= 0) & (detected["labels"] < CLASSES)).all()
        assert ((detected["scores"] >= 0) & (detected["scores"] <= 1)).all()
        assert (detected["scores"].diff() <= 0).all()


@pytest.mark.parametrize("make", SEGMENTERS)
def test_segmenters(make):
    segmenter, images = make().eval(), torch.randn(2, 3, PX, 48)
    logits = segmenter(images)
    assert logits.shape == (2, CLASSES, PX, 48)
    if isinstance(segmenter, PixelSegmenter):
        places = torch.tensor([[[0, 0], [63, 47], [9, 3]]]).expand(2, -1, -1)
        at = segmenter.at(images, places)
        torch.testing.assert_close(at, logits[:, :, places[0, :, 0], places[0, :, 1]].transpose(1, 2))
    assert isinstance(segmenter, PixelSegmenter) is isinstance(segmenter, Hypercolumn)


@pytest.mark.parametrize(("make", "inputs"), DECODERS)
def test_decoders(make, inputs):
    decoder = make()
    state = decoder.begin(*inputs)
    for _ in range(2):
        logits, state = decoder.step(torch.tensor([4, 5]), state)
        assert logits.shape == (2, 9)
        assert all(len(tensor) == 2 for tensor in tree_leaves(state))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_stateful_models(cell):
    model, tokens = language_model(cell), torch.randint(0, 9, (2, 5))
    logits, last = model(tokens)
    again, state = model(tokens[:, :3], model.zeros(2))
    torch.testing.assert_close(again, logits[:, :3])
    again, state = model(tokens[:, 3:], state)
    torch.testing.assert_close(again, logits[:, 3:])
    for ours, theirs in zip(state, last, strict=True):
        torch.testing.assert_close(ours, theirs)
    step, _ = model.step(tokens[:, 0], model.zeros(2))
    torch.testing.assert_close(step, logits[:, 0])


def test_models_without_a_backbone():
    assert backbone_of(nn.Linear(3, 3)) is None
    assert backbone_of(language_model("gru")) is None
