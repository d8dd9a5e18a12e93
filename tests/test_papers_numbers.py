"""The numbers that the papers state, read back from the objects that the configs build, not from the yaml."""

from typing import Any

import pytest
import torch
from torch import nn

from dltrain.build import build
from dltrain.config.compose import compose


def objects(augment: str, image_px: int) -> dict[str, dict[str, Any]]:
    """The transforms of a pipeline by the name of their class, each with its attributes."""
    pipeline = build(compose([f"augment={augment}"]).config.augment, "augment", channels=3, image_px=image_px)
    return {type(transform).__name__: vars(transform) for transform in (*pipeline.on_pixels, *pipeline.on_normalized)}


def build_model(*words: str, num_classes: int | None = 1000) -> Any:
    """Without memory for its weights. `num_classes`: None for data that have none."""
    config = compose([*words, *([] if num_classes is None else [f"data.num_classes={num_classes}"])]).config
    with torch.device("meta"):
        return build(config.model, "model")


def dropouts(model: nn.Module) -> list[float]:
    return [module.p for module in model.modules() if type(module) is nn.Dropout]


# He et al. 2015 (1512.03385), 3.4 and 4.2; Krizhevsky et al. 2012, 4.1; Szegedy et al. 2014, 6
PIPELINES: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "cifar": (32, {"PadCrop": {"padding_px": 4, "mode": "zero"}, "HorizontalFlip": {"p": 0.5}}),
    "imagenet": (224, {"ScaleJitter": {"px": 224, "short_px": (256, 480)}, "Lighting": {"std": 0.1},
                       "HorizontalFlip": {"p": 0.5}}),
    "inception": (224, {"ResizedCrop": {"px": 224, "scale": (0.08, 1.0)}, "HorizontalFlip": {"p": 0.5}})}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_the_papers(name):
    image_px, expected = PIPELINES[name]
    built = objects(name, image_px=image_px)
    for transform, numbers in expected.items():
        stated = {key: built[transform][key] for key in numbers}
        assert {key: tuple(value) if type(value) is list else value for key, value in stated.items()} == numbers
    assert [*built][-1] == "HorizontalFlip"


def test_a_resized_crop_has_the_papers_aspect_ratios():
    ratio = objects("inception", image_px=224)["ResizedCrop"]["ratio"]
    assert tuple(ratio) == pytest.approx((3 / 4, 4 / 3))  # Szegedy et al. 2014, section 6


def test_faster_rcnn_has_the_papers_numbers():
    """S. Ren et al., 2015, 1506.01497: sections 3.1.1, 3.1.3 and 3.3; R. Girshick, 2015, 1504.08083: section 2.3."""
    net = build_model("model=faster_rcnn_vgg16", "data=voc2007", num_classes=20).net
    rpn, heads = net.rpn, net.roi_heads
    assert (net.transform.min_size, net.transform.max_size) == ((600,), 1000)
    assert rpn.anchor_generator.sizes == ((128, 256, 512),)
    assert rpn.anchor_generator.aspect_ratios == ((0.5, 1.0, 2.0),)
    sampler, matcher = rpn.fg_bg_sampler, rpn.proposal_matcher
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (256, 0.5)
    assert (matcher.high_threshold, matcher.low_threshold) == (0.7, 0.3)
    assert rpn.nms_thresh == 0.7
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == ({"training": 12000, "testing": 6000},
                                                         {"training": 2000, "testing": 300})
    sampler, matcher = heads.fg_bg_sampler, heads.proposal_matcher
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (128, 0.25)
    assert (matcher.high_threshold, matcher.low_threshold) == (0.5, 0.5)
    assert heads.box_coder.weights == (10.0, 10.0, 5.0, 5.0)
    assert [layer.out_features for layer in heads.box_head.modules() if type(layer) is nn.Linear] == [4096, 4096]


@pytest.mark.parametrize("model", ["fast_rcnn", "rcnn"])
def test_a_quarter_of_the_regions_may_have_an_object(model):
    heads = build_model(f"model={model}", "data=scenes", num_classes=10).regions.heads
    assert heads.fg_bg_sampler.positive_fraction == 0.25  # R. Girshick, 2015, section 2.3
    assert heads.proposal_matcher.high_threshold == 0.5


@pytest.mark.parametrize(("model", "expected"), [
    ("alexnet", [0.5, 0.5]),             # A. Krizhevsky et al., 2012, section 4.2
    ("vgg16", [0.5, 0.5]),               # K. Simonyan and A. Zisserman, 2014, 1409.1556, section 3.1
    ("googlenet", [0.7, 0.7, 0.4]),      # C. Szegedy et al., 2014, section 5
    ("resnet50", [])])                   # K. He et al., 2015, section 3.4: none
def test_dropout_is_the_papers(model, expected):
    assert sorted(dropouts(build_model(f"model={model}")), reverse=True) == expected


def test_blocks_survive_with_linearly_decaying_probability():
    """G. Huang et al., 2016, 1603.09382, equation 4: p_l = 1 - l / L (1 - p_L), p_L = 0.5, 54 blocks."""
    net = build_model("model=sdresnet110", "data=cifar10", num_classes=10)
    expected = [1 - number / 54 * 0.5 for number in range(1, 55)]
    assert [block.survival for block in net.blocks] == pytest.approx(expected)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_nine_nets_on_one_text_have_equal_parameters(size):
    """Karpathy et al. 2015 (1506.02078), section 4.1: the others have about as many as an LSTM of one layer."""
    def parameters(cell: str, layers: int) -> int:
        net = build_model("experiment=cells_on_text", "data.root=x", "data.vocab_size=84", f"size={size}",
                          f"model.cell={cell}", f"model.layers={layers}", num_classes=None)
        return sum(parameter.numel() for parameter in net.parameters())

    reference = parameters("lstm", 1)
    assert reference == 4 * size * (84 + size + 2) + (size + 1) * 84
    for cell in ("lstm", "rnn", "gru"):
        for layers in (1, 2, 3):
            assert parameters(cell, layers) == pytest.approx(reference, rel=0.02)
