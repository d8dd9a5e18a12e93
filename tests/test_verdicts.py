"""Claims: how often a difference is called one that is none, and one that is there is seen; those of each experiment
are SUPPORTED by numbers as its paper has them, and NOT SUPPORTED with their two sides swapped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dltrain import repeats
from dltrain.config import groups
from dltrain.studies import batchnorm_effect, comparison, receptive_field
from dltrain.studies.claims import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    code_of_claims,
    judge_excesses,
    parse_claim,
)

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
HIGHER |= {
    "blur": [("blurred", "with blur", "sharp"), ("unchanged", "with blur", "sharp"), ("noisy", "with noise", "sharp"),
             ("rotated", "with rotation", "sharp")],
    "scales": [("smaller", "with scales", "as they are"), ("larger", "with scales", "as they are"),
               ("unchanged", "with scales", "as they are")],
    "input_normalisation": [("border", "raw", "mean_pixel"), ("conditioning", "raw", "mean_pixel"),
                            ("conditioning", "standard", "whiten"), ("steps_to_target", "box", "standard"),
                            ("steps_to_target", "raw", "standard")],
    "localizer_transfer": [("test/map_50", "from a classifier, fine-tuned", "from scratch"),
                           ("test/map_50", "from a classifier, fine-tuned", "from a classifier, frozen")],
    "survival": [("seconds_per_epoch", "p 1.0", "p 0.5"), ("seconds_per_epoch", "p 1.0", "p 0.2"),
                 ("val/accuracy", "p 0.5", "p 1.0")],
    "stride": [("test/mean_iou", net, "strided") for net in ("dilated", "hypercolumn")],
    "translation_by_length": [("all", "backwards", "forwards"), ("all", "attention", "forwards"),
                              ("longer", "attention", "forwards")]}
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
    claims = [parse_claim(text, list(node.get("runs") or node["normalizations"])) for text in node["claims"]]
    assert len(claims) == len(HIGHER[name])
    for claim, (metric, higher, lower) in zip(claims, HIGHER[name], strict=True):
        assert claim.metric == metric
        assert comparison.judge(claim, {higher: [0.7, 0.68, 0.71], lower: [0.4, 0.42, 0.4]}).outcome == SUPPORTED
        assert comparison.judge(claim, {higher: [0.4, 0.42, 0.4], lower: [0.7, 0.68, 0.71]}).outcome == NOT_SUPPORTED
        assert comparison.judge(claim, {higher: [0.4, 0.42, 0.4], lower: [0.4, 0.42, 0.2]}).outcome == UNDECIDED


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
    for batch, none, outcome in ((with_norm, without, SUPPORTED), (without, with_norm, NOT_SUPPORTED),
                                 (with_norm, with_norm, UNDECIDED)):
        histories = {(norm, lr): histories[lr] for norm, histories in (("batch", batch), ("none", none))
                     for lr in histories}
        verdicts, drift = batchnorm_effect.judge([histories] * 3, [10, 20, 30], target=0.8, best=0.1)
        assert [verdict.outcome for verdict in verdicts] == [outcome] * 3
        alone, _ = batchnorm_effect.judge([histories], [10, 20, 30], target=0.8, best=0.1)
        assert [verdict.outcome for verdict in alone] == [UNDECIDED] * 3
    assert drift == {"batch": [pytest.approx(0.05)] * 3, "none": [pytest.approx(0.05)] * 3}
    assert verdicts[0].evidence.startswith("10 ± 0 steps with, 10 ± 0 without")
    assert "is 1 ± 0 with, 1 ± 0 without" in verdicts[1].evidence


def test_a_net_that_never_reaches_the_accuracy_counts_as_one_that_takes_all_steps():
    never, late = history([0.1, 0.1, 0.1], [0.0, 1.0, 0.0]), history([0.1, 0.9, 0.9], [0.0, 0.5, 0.0])
    verdicts, _ = batchnorm_effect.judge([{("none", 1.0): never, ("batch", 1.0): late}] * 3, [10, 20, 30], 0.8, 1.0)
    assert [verdict.outcome for verdict in verdicts] == [SUPPORTED] * 3


def test_dilation_and_hypercolumns_reach_as_far_as_strides():
    def outcomes(**nets: tuple[float, float]) -> list[str]:
        values = {net: {"reach_px": [reach] * 3, "half_px": [half, half + 1, half]}
                  for net, (reach, half) in nets.items()}
        return [verdict.outcome for verdict in receptive_field.judge(values)]

    assert outcomes(strided=(100, 30), dilated=(95, 30), hypercolumn=(95, 10)) == [SUPPORTED] * 3
    assert outcomes(strided=(100, 30), dilated=(85, 30), hypercolumn=(85, 31)) == [NOT_SUPPORTED] * 3
    assert outcomes(strided=(100, 30), dilated=(95, 30)) == [SUPPORTED]


# how sure a verdict is

TRIALS = 4000
DRAWS = {"normal": lambda rng, size: rng.normal(size=size), "uniform": lambda rng, size: rng.uniform(-1, 1, size),
         "a few outliers": lambda rng, size: rng.standard_t(3, size),
         "right answers of 500": lambda rng, size: rng.binomial(500, 0.9, size) / 500,
         "of few values": lambda rng, size: rng.normal(size=size).round()}


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("draws", DRAWS)
def test_without_any_difference_a_claim_is_rarely_supported(seeds, draws):
    """Two settings that are the same, in several thousand experiments."""
    rng = np.random.default_rng(0)
    left, right = (DRAWS[draws](rng, (TRIALS, seeds)) for _ in range(2))
    claim = parse_claim("x: a > b", ["a", "b"])
    outcomes = [comparison.judge(claim, {"a": [*one], "b": [*other]}).outcome
                for one, other in zip(left.tolist(), right.tolist(), strict=True)]
    assert outcomes.count(SUPPORTED) <= 0.05 * TRIALS
    assert outcomes.count(NOT_SUPPORTED) <= 0.05 * TRIALS
    assert outcomes.count(SUPPORTED) > 0


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_an_effect_of_the_stated_size_is_seen_in_four_of_five_experiments(seeds):
    rng = np.random.default_rng(0)
    excesses = rng.normal(repeats.detectable(seeds), size=(TRIALS, seeds)).tolist()
    seen = sum(judge_excesses("a claim", row).outcome == SUPPORTED for row in excesses)
    assert 0.78 * TRIALS < seen < 0.82 * TRIALS
    smaller = (rng.normal(size=(TRIALS, seeds)) + 0.8 * repeats.detectable(seeds)).tolist()
    assert sum(judge_excesses("a claim", row).outcome == SUPPORTED for row in smaller) < 0.75 * TRIALS


def test_fewer_than_three_seeds_decide_nothing_but_what_no_seed_changes():
    assert judge_excesses("a claim", [1.0, 1.0]) == ("a claim", UNDECIDED, "by +1 with 2 seeds; a verdict needs 3")
    assert judge_excesses("a claim", [1.0], is_exact=True).outcome == SUPPORTED
    assert judge_excesses("a claim", [0.0], is_exact=True).outcome == NOT_SUPPORTED
    assert judge_excesses("a claim", [0.0], is_strict=False, is_exact=True).outcome == SUPPORTED


def test_the_interval_is_that_of_scipy_and_says_how_many_seeds_are_missing():
    from scipy import stats

    excesses = [0.3, -0.1, 0.2, 0.15]
    low, high = stats.ttest_1samp(excesses, 0).confidence_interval(0.95)
    verdict = judge_excesses("a claim", excesses, sides="both")
    assert verdict.outcome == UNDECIDED
    assert verdict.evidence.startswith(f"both; by +0.1375 ({low:.4g} to +{high:.4g}; 4 seeds); ")
    assert verdict.evidence.endswith("this difference with about 15 seeds")


@pytest.mark.parametrize(("outcomes", "code"), [
    ([], 0), ([SUPPORTED], 0), ([SUPPORTED, UNDECIDED], 10), ([SUPPORTED, UNDECIDED, NOT_SUPPORTED], 9)])
def test_the_exit_code_is_that_of_the_worst_verdict(outcomes, code):
    result = {"test/accuracy, a": 0.5, **{f"claim, number {place}": outcome for place, outcome in enumerate(outcomes)}}
    assert code_of_claims(result) == code


NO_EFFECT = """# @package _global_
defaults:
  - override /recipe: none
study:
  _target_: dltrain.studies.comparison.study
  common: [model=plain20, model.depth=8, recipe=none, trainer=smoke, trainer.smoke_steps=6]
  more: []
  runs: {one: [%s], other: [%s]}
  seeds: [0, 1, 2]
  columns: {test/accuracy: test accuracy}
  curves: [train/loss]
  claims: ["test/loss: one < other"]
"""


@pytest.mark.parametrize(("one", "other"), [("", ""), ("task.optimizer.lr=0.01", "task.optimizer.lr=0.0100001")])
def test_a_planted_experiment_without_effect_is_not_supported(one, other, dltrain):
    """The same settings under two names, and rates that differ by a hundred thousandth."""
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/nothing.yaml").write_text(NO_EFFECT % (one, other))
    code, out, err = dltrain("--config-dir", "conf", "experiment=nothing", "name=a")
    assert err == ""
    outcome = json.loads(Path("outputs/a/result.json").read_text())["claim, test/loss: one < other"]
    assert outcome in (UNDECIDED, NOT_SUPPORTED)
    assert code == {UNDECIDED: 10, NOT_SUPPORTED: 9}[outcome]
    assert f"  {outcome}  test/loss: one < other: " in out
    code, out, err = dltrain("--config-dir", "conf", "experiment=nothing", "name=a")  # once more
    assert (code, err) == ({UNDECIDED: 10, NOT_SUPPORTED: 9}[outcome], "")
