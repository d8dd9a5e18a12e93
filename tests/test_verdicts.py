"""A claim that an experiment judges holds for numbers as its paper has them, and not with its two sides swapped."""

from typing import Any

import pytest
import torch
import yaml

from dltrain.config import groups
from dltrain.studies import batchnorm_effect, comparison, receptive_field
from dltrain.studies.claims import parse_claim

HIGHER = {  # experiment -> (metric, the run that has the higher value, the run that has the lower one)
    "camvid": [("test/mean_iou", "hypercolumn", "fcn8s"), ("test/mean_iou", "dilated", "fcn8s")],
    "caption_transfer": [("test/bleu_4", "from a classifier, fine-tuned", "from scratch"),
                         ("test/bleu_4", "from a classifier, fine-tuned", "from a classifier, frozen"),
                         ("test/bleu_4", "from a classifier, frozen", "random, frozen")],
    "plain_vs_residual": [("train/loss", "plain56", "plain20"), ("train/loss", "plain56", "resnet56"),
                          ("train/loss", "resnet20", "resnet56"), ("train/accuracy", "resnet56", "resnet20")],
    "pretrained_backbones": [("test/accuracy", "lite0, ImageNet", "lite0, from scratch"),
                             ("test/accuracy", "resnet20, CIFAR-10", "resnet20, from scratch")],
    "rcnn_family": [("train_ms_per_image", "R-CNN", "Fast R-CNN"), ("test_ms_per_image", "R-CNN", "Fast R-CNN"),
                    ("test_ms_per_image", "Fast R-CNN", "Faster R-CNN")],
    "stochastic_depth": [("seconds_per_epoch", "constant depth", "stochastic depth"),
                         ("test/accuracy", "stochastic depth", "constant depth")]}
HIGHER["transfer_advice"] = [
    ("test/accuracy", f"{data}, {best}", f"{data}, {other}")
    for data, best in (("little similar", "linear"), ("much similar", "last stage"), ("much different", "all"))
    for other in ("linear", "last stage", "all", "from scratch") if other != best]


def test_every_experiment_that_claims_something_is_here():
    claiming = {name for name in groups.names("experiment") if study_of(name).get("claims")}
    assert claiming == {*HIGHER}


@pytest.mark.parametrize("name", HIGHER)
def test_a_claim_of_a_comparison_holds_one_way_only(name):
    node = study_of(name)
    claims = [parse_claim(text, list(node["runs"])) for text in node["claims"]]
    assert len(claims) == len(HIGHER[name])
    for claim, (metric, higher, lower) in zip(claims, HIGHER[name], strict=True):
        assert claim.metric == metric
        assert comparison.judge(claim, {higher: [0.7, 0.5], lower: [0.2, 0.4]}).held
        assert not comparison.judge(claim, {higher: [0.2, 0.4], lower: [0.7, 0.5]}).held


def study_of(experiment: str) -> dict[str, Any]:
    file = groups.path_of("experiment", experiment)
    assert file is not None
    return dict(yaml.safe_load(file.read_text()).get("study", {}))


def history(accuracies: list[float], medians: list[float]) -> batchnorm_effect.History:
    """Of one unit, whose 15th and 85th percentiles lie 1 below and above the median."""
    return batchnorm_effect.History(torch.tensor(accuracies), torch.tensor([[[m - 1], [m], [m + 1]] for m in medians]))


def test_batch_normalisation_is_quicker_bears_higher_rates_and_moves_less():
    with_norm = {0.1: history([0.2, 0.9, 0.9], [0.0, 0.1, 0.0]), 1.0: history([0.9, 0.9, 0.9], [0.0, 0.1, 0.0])}
    without = {0.1: history([0.1, 0.2, 0.9], [0.0, 3.0, 1.0]), 1.0: history([0.1, 0.1, 0.1], [0.0, 3.0, 1.0])}
    for batch, none, held in ((with_norm, without, True), (without, with_norm, False), (with_norm, with_norm, False)):
        histories = {(norm, lr): histories[lr] for norm, histories in (("batch", batch), ("none", none))
                     for lr in histories}
        verdicts, drift = batchnorm_effect.judge(histories, [10, 20, 30], target=0.8, best=0.1)
        assert [verdict.held for verdict in verdicts] == [held] * 3
    assert drift == {"batch": pytest.approx(0.05), "none": pytest.approx(0.05)}
    assert verdicts[0].evidence.startswith("10 steps with, 10 without")
    assert "is 1 with, 1 without" in verdicts[1].evidence


def test_dilation_and_hypercolumns_reach_as_far_as_strides():
    sizes = {"strided": {"reach_px": 100.0, "half_px": 30.0}, "dilated": {"reach_px": 95.0, "half_px": 30.0},
             "hypercolumn": {"reach_px": 95.0, "half_px": 10.0}}
    assert [verdict.held for verdict in receptive_field.judge(sizes)] == [True, True, True]
    short = {"strided": sizes["strided"], "dilated": {"reach_px": 85.0, "half_px": 30.0},
             "hypercolumn": {"reach_px": 85.0, "half_px": 31.0}}
    assert [verdict.held for verdict in receptive_field.judge(short)] == [False, False, False]
    assert len(receptive_field.judge({"strided": sizes["strided"], "dilated": sizes["dilated"]})) == 1
