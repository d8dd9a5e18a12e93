"""The models keep the contracts: the annotations say so to a type checker, the assertions at run time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dltrain.contracts import (
    Backbone,
    CaptionModel,
    Classifier,
    Decoder,
    Detector,
    Model,
    PixelSegmenter,
    ProposalDetector,
    Segmenter,
    SequenceModel,
    StatefulModel,
    TranslationModel,
    auxiliary_weight,
    backbone_of,
    drops_blocks,
)
from dltrain.models.alexnet import AlexNet
from dltrain.models.backbones import VGG16, remove_head
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
from dltrain.models.recurrent import CharRNN, SequenceClassifier, Tagger
from dltrain.models.seq2seq import Seq2Seq
from dltrain.models.timm_model import TimmModel
from dltrain.models.vgg import CifarVGG, ImagenetVGG

CLASSES, PX, WORDS = 3, 64, 9

GRID = (CLASSES, [24], [1.0], 0.5, PX, 99, 8)  # num_classes, box_px, ratios, step, short_px, long_px, hidden

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "resnet": lambda: CifarResNet(8), "bottleneck": lambda: CifarResNet(11, block="bottleneck", shortcut="B"),
    "stochastic_depth": lambda: CifarResNet(8, survival=0.5), "cifar_vgg": lambda: CifarVGG(11, width=4),
    "googlenet": lambda: GoogLeNet(width=8), "googlenet_cifar": lambda: GoogLeNet(width=8, size="cifar"),
    "imagenet_resnet": lambda: ImagenetResNet(18), "imagenet_bottleneck": lambda: ImagenetResNet(50),
    "lite0": lambda: EfficientNetLite0(), "lite0_until_5": lambda: EfficientNetLite0(until=5), "alexnet": AlexNet,
    "vgg": lambda: ImagenetVGG(11), "vgg16": VGG16}
CLASSIFIERS: dict[str, Callable[[], Classifier]] = {
    "resnet": lambda: CifarResNet(8, CLASSES), "cifar_vgg": lambda: CifarVGG(11, CLASSES, width=4),
    "googlenet": lambda: GoogLeNet(CLASSES, width=8), "imagenet_resnet": lambda: ImagenetResNet(18, CLASSES),
    "lite0": lambda: EfficientNetLite0(CLASSES), "alexnet": lambda: AlexNet(CLASSES),
    "timm": lambda: TimmModel("test_resnet", CLASSES), "mlp": lambda: MLP(3 * PX**2, CLASSES)}
DETECTORS: dict[str, Callable[[], Detector]] = {
    "fast_rcnn": lambda: FastRCNN(CifarResNet(8), *GRID), "rcnn": lambda: RCNN(CifarResNet(8), *GRID),
    "localizer": lambda: Localizer(CifarResNet(8), CLASSES, 2, 1.0),
    "overfeat": lambda: OverFeatDetector(CLASSES, 3, 4, 8, 32, [1.0], 8, 0.05, 0.5)}
PROPOSAL_DETECTORS: dict[str, Callable[[], ProposalDetector]] = {
    "faster_rcnn": lambda: FasterRCNN(CifarResNet(8), CLASSES, [16], [1.0], PX, 99, 8),
    "pyramid": lambda: FasterRCNN(ImagenetResNet(18), CLASSES, [8, 16, 32, 64, 96], [1.0], PX, 99, 8, pyramid=True)}
SEGMENTERS: dict[str, Callable[[], Segmenter]] = {
    "fcn": lambda: FCN(CifarVGG(11, width=4), CLASSES, 3, 8, 8, 3, 0.0, "learned"),
    "dilated": lambda: Dilated(CifarResNet(8), CLASSES, 2, [2], 8, 0.0)}
PIXEL_SEGMENTERS: dict[str, Callable[[], PixelSegmenter]] = {
    "hypercolumn": lambda: Hypercolumn(CifarResNet(8), CLASSES, 3, [], 8, 0.0)}
CAPTION_MODELS: dict[str, Callable[[], CaptionModel]] = {
    "attention": lambda: Captioner(CifarResNet(8), WORDS, "lstm", 6, 1, 5, "first_state", 1, True, 2),
    "first_input": lambda: Captioner(CifarResNet(8), WORDS, "gru", 6, 1, 5, "first_input", 1, False, 2)}
TRANSLATION_MODELS: dict[str, Callable[[], TranslationModel]] = {
    "seq2seq": lambda: Seq2Seq(WORDS, WORDS, "gru", 6, 1, 5)}
SEQUENCE_MODELS: dict[str, tuple[Callable[[], SequenceModel], tuple[int, ...]]] = {  # and the shape of the logits
    "classifier": (lambda: SequenceClassifier(CLASSES, "lstm", 6, 1, WORDS), (2, CLASSES)),
    "tagger": (lambda: Tagger(WORDS, CLASSES, "gru", 6, 1), (2, 5, CLASSES))}
LANGUAGE_MODELS: dict[str, Callable[[], StatefulModel]] = {
    cell: lambda cell=cell: CharRNN(WORDS, cell, 6, 2, 5) for cell in ("rnn", "lstm", "gru")}  # type: ignore[misc]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def build_backbone(name: str) -> Backbone:
    """Without its head, with torch's default random weights and random statistics of batch normalisation, in evaluation
    mode. The constructors of large nets take seconds to initialise them."""
    with torch.device("meta"):
        backbone = remove_head(BACKBONES[name]())
    assert isinstance(backbone, nn.Module)
    backbone.to_empty(device="cpu")
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return backbone.eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_stages_of_a_backbone_compute_its_features(name):
    backbone, images = build_backbone(name), torch.randn(2, 3, PX, PX)
    x: Tensor = images
    for layers in backbone.stages().values():
        for layer in layers:
            x = layer(x)
    torch.testing.assert_close(x, backbone.features(images))
    assert x.shape[:2] == (2, backbone.out_channels)
    assert backbone_of(backbone) is backbone


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name):
    classifier, images = CLASSIFIERS[name](), torch.randn(2, 3, PX, PX)
    logits = classifier.eval()(images)
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, CLASSES)
    logits = classifier.train()(images)
    num_outputs = 3 if name == "googlenet" else 1
    assert auxiliary_weight(classifier) == (0.3 if name == "googlenet" else 0)
    assert [tuple(x.shape) for x in (logits if isinstance(logits, tuple) else [logits])] == [(2, CLASSES)] * num_outputs


def test_models_that_drop_blocks():
    assert drops_blocks(CifarResNet(8, survival=0.5)) is True
    assert drops_blocks(CifarResNet(8)) is False
    assert drops_blocks(nn.Linear(3, 3)) is False


def check_detector(detector: Detector) -> None:
    images = [torch.randn(3, PX, PX) for _ in range(2)]
    targets = [{"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([CLASSES - 1])} for _ in images]
    losses = detector.train()(images, targets)
    assert {name: tuple(loss.shape) for name, loss in losses.items()} == dict.fromkeys(detector.losses, ())
    detections = detector.eval().detect(images)
    assert len(detections) == 2
    for detected in detections:
        count = len(detected["scores"])
        assert count > 0
        assert (detected["boxes"].shape, detected["labels"].shape) == ((count, 4), (count,))
        assert detected["labels"].min() >= 0
        assert detected["labels"].max() < CLASSES
        assert 1 >= detected["scores"][0] >= detected["scores"][-1] >= 0
        assert (detected["scores"].diff() <= 0).all()


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors(name):
    detector = DETECTORS[name]()
    assert not isinstance(detector, ProposalDetector)
    check_detector(detector)


@pytest.mark.parametrize("name", PROPOSAL_DETECTORS)
def test_proposal_detectors(name):
    detector = PROPOSAL_DETECTORS[name]()
    assert isinstance(detector, ProposalDetector)
    check_detector(detector)
    proposals, anchors = detector.eval().proposals([torch.randn(3, PX, 2 * PX), torch.randn(3, PX, PX)])
    assert [boxes.shape[1] for boxes in [*proposals, *anchors]] == [4, 4, 4, 4]
    assert len(anchors[0]) == len(anchors[1]) > len(proposals[0]) > 0
    for boxes, width in zip(proposals, (2 * PX, PX), strict=True):
        assert boxes.min() >= 0
        assert (boxes <= torch.tensor([width, PX] * 2)).all()


def check_segmenter(segmenter: Segmenter) -> tuple[Tensor, Tensor]:
    """Images and their logits."""
    images = torch.randn(2, 3, PX, 48)
    logits = segmenter.eval()(images)
    assert logits.shape == (2, CLASSES, PX, 48)
    return images, logits


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters(name):
    segmenter = SEGMENTERS[name]()
    check_segmenter(segmenter)
    assert not isinstance(segmenter, PixelSegmenter)


@pytest.mark.parametrize("name", PIXEL_SEGMENTERS)
def test_pixel_segmenters(name):
    segmenter = PIXEL_SEGMENTERS[name]()
    assert isinstance(segmenter, PixelSegmenter)
    images, logits = check_segmenter(segmenter)
    places = torch.tensor([[[0, 0], [63, 47], [9, 3]], [[5, 40], [0, 47], [63, 0]]])
    at = segmenter.classify_pixels(images, places)
    for image in range(2):
        rows, columns = places[image].unbind(1)
        torch.testing.assert_close(at[image], logits[image, :, rows, columns].T)


def check_decoder(decoder: Decoder[Any], *inputs: object) -> None:
    state = decoder.begin(*inputs)
    for _ in range(2):
        logits, state = decoder.step(torch.tensor([4, 5]), state)
        assert logits.shape == (2, WORDS)
        assert {len(tensor) for tensor in tree_leaves(state)} == {2}


@pytest.mark.parametrize("name", CAPTION_MODELS)
def test_caption_models(name):
    model, images = CAPTION_MODELS[name](), torch.randn(2, 3, PX, PX)
    check_decoder(model, images)
    assert model.word_embedding.shape == (WORDS, 5)
    assert model(images, torch.randint(4, WORDS, (2, 3, 5))).shape == (2, 3, 5, WORDS)
    assert model.attends is (name == "attention")
    if model.attends:
        weights = model.attention_maps(images, torch.randint(4, WORDS, (2, 5)))
        assert weights.shape == (2, 5, 2, 2)
        torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 5))


@pytest.mark.parametrize("name", TRANSLATION_MODELS)
def test_translation_models(name):
    model, source = TRANSLATION_MODELS[name](), torch.randint(4, WORDS, (2, 5))
    check_decoder(model, source, (5, 3))
    assert model(source, (5, 3), torch.randint(4, WORDS, (2, 6))).shape == (2, 6, WORDS)


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_sequence_models(name):
    make, shape = SEQUENCE_MODELS[name]
    model, tokens = make(), torch.randint(0, WORDS, (2, 5))
    logits = model(tokens, (5, 3))
    assert logits.shape == shape
    changed = tokens.clone()
    changed[1, 3:] = (changed[1, 3:] + 1) % WORDS
    torch.testing.assert_close(model(changed, (5, 3)), logits, msg="symbols beyond the length do not count")


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_stateful_models(name):
    model, tokens = LANGUAGE_MODELS[name](), torch.randint(0, WORDS, (2, 5))
    logits, last = model(tokens)
    first, state = model(tokens[:, :3], model.zeros(2))
    torch.testing.assert_close(first, logits[:, :3])
    second, state = model(tokens[:, 3:], state)
    torch.testing.assert_close(second, logits[:, 3:])
    for value, expected in zip(state, last, strict=True):
        torch.testing.assert_close(value, expected)
    step, states = model.step(tokens[:, 0], model.zeros(2))
    torch.testing.assert_close(step, logits[:, 0])
    step, _ = model.step(tokens[:, 1], states)
    torch.testing.assert_close(step, logits[:, 1])


def test_models_without_a_backbone():
    models: list[Model] = [nn.Linear(3, 3), LANGUAGE_MODELS["gru"]()]
    assert [backbone_of(model) for model in models] == [None, None]
