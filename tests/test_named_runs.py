"""Studies that train named runs and measure them in their own way: on changed images, by length, by gradients."""

import json
from typing import Any

import pytest
import torch

from dltrain.augment.colour import GaussianNoise
from dltrain.batches import ClassificationBatch
from dltrain.build import build_data, build_task
from dltrain.config.compose import compose
from dltrain.errors import UserError
from dltrain.models.googlenet import GoogLeNet
from dltrain.studies import auxiliary_losses, corruptions, translation_by_length
from dltrain.studies.claims import parse_claim, parse_claims
from dltrain.studies.named_runs import plan_runs
from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("without_figures")


def test_a_run_may_start_from_one_before_it():
    then = {"overrides": ["model.depth=8"], "pretrained_from": "first"}
    plans = plan_runs(None, ["model=resnet20"], {"first": ["data=patterns"], "then": then}, ["epochs=2"])
    assert {name: plan[:2] for name, plan in plans.items()} == {
        "first": (["model=resnet20", "data=patterns", "epochs=2"], None),
        "then": (["model=resnet20", "model.depth=8", "epochs=2"], "first")}
    assert plans["then"].composed.config.model.depth == 8


@pytest.mark.parametrize(("right", "excess"), [("-0.5", 1.5), ("1e-3", 0.999), (".5", 0.5), ("b - 1e-2", 0.51)])
def test_a_claim_has_numbers_of_any_form_and_metrics_with_blanks(right, excess):
    claim = parse_claim(f"heavy blur: a > {right}", ["a", "b"])
    assert claim.metric == "heavy blur"
    assert claim.excess(1.0, 0.5 if claim.right else 0.0) == pytest.approx(excess)


def test_a_run_that_does_not_compose_is_refused_before_any_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for experiment, run in (("blur", "sharp"), ("translation_by_length", "attention"), ("stride", "strided")):
        code, out, err = run_command(monkeypatch, capsys, f"experiment={experiment}", "name=x",
                                     f'study.runs.{run}=["model.widdth=3"]')
        assert (code, "epoch" in out) == (2, False)
        assert err.startswith(f"dltrain: error: study.runs.{run}: ")


@pytest.mark.parametrize(("words", "message"), [
    (["experiment=auxiliary_losses", 'study.more=["model.auxiliary_weight=0"]'],
     "study.common: must choose a GoogLeNet with auxiliary losses"),
    (["experiment=auxiliary_losses", 'study.common=["model=resnet20"]'],
     "study.common: must choose a GoogLeNet with auxiliary losses"),
    (["experiment=receptive_field", '+study.nets.mine=["model=resnet20"]'],
     "study.nets.mine: must be a model that labels pixels, but its data yield ClassificationBatch"),
    (["experiment=receptive_field", "+study.nets.mine=[]"], "study.nets.mine: must name a model"),
    (["experiment=receptive_field", '+study.nets.mine=["model=fcn32"]'], "study.nets.mine: unknown model 'fcn32'"),
    (["experiment=receptive_field", "+study.nets.mine=['run=nowhere']"], "nowhere"),
    (["experiment=batchnorm_effect", "study.lrs=[]"], "study.lrs: must not be empty"),
    (["experiment=input_normalisation", "study.normalizations=[raw,rwa]", "study.claims=[]"], "study.normalizations: "),
    (["experiment=blur", "+study.corruptions.none=null"], "study.corruptions.none: must be a list of transforms"),
    (["experiment=overfeat_reuse", "study.image_px=[]"], "study.image_px: must not be empty"),
    (["experiment=overfeat_reuse", "study.image_px=[64,32]", "study.window_px=48"],
     "study.image_px=32: must be at least study.window_px=48"),
    (["experiment=gates", "study.seeds=[0,0]"], "study.seeds: 0 is there twice")])
def test_what_does_not_fit_is_refused_before_anything_is_trained(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command(monkeypatch, capsys, *words, "name=x")
    assert (code, "seed" in out) == (2, False)
    assert err.startswith("dltrain: error: ")
    assert message in err


def test_a_model_that_takes_no_weights_of_a_run_is_refused_before_the_first_is_trained():
    with pytest.raises(UserError, match=r"study\.runs\.tuned\.pretrained_from: .*CharRNN takes no weights of a run"):
        plan_runs(None, ["model=char_rnn"], {"source": [], "tuned": {"pretrained_from": "source"}}, [])


def test_no_claims_and_nothing_in_common_may_be_null():
    assert plan_runs(None, None, {"a": ["model=resnet20"]}, None)["a"].overrides == ["model=resnet20"]
    assert parse_claims(None, ["a"], ["loss"]) == []


# images that were changed


def brightest_half(images: torch.Tensor) -> torch.Tensor:
    """Logits (B, 2): whether the left or the right half of each image is the brighter one."""
    columns = images.mean((1, 2))
    left = columns[:, : columns.shape[1] // 2].sum(1) > columns[:, columns.shape[1] // 2 :].sum(1)
    return torch.stack([left.float(), 1 - left.float()], 1)


def test_test_images_go_through_the_transforms_before_they_are_classified(monkeypatch):
    data = build_data(compose(["data=patterns", "data.num_train=8", "recipe=none"]).job_config())
    batch = next(data.read("test", [torch.arange(200)]))
    labels = brightest_half(batch.images.float()).argmax(1)
    monkeypatch.setattr(data, "read", lambda _, batches: (ClassificationBatch(batch.images[i], labels[i])
                                                          for i in batches))
    task: Any = brightest_half

    class Mirror:
        def __call__(self, batch, rng):
            assert batch.images.max() <= 1
            return batch._replace(images=batch.images.flip(3))

    assert corruptions.accuracy_of(task, data, [], 0) == 1
    assert corruptions.accuracy_of(task, data, [Mirror()], 0) == 0
    assert corruptions.accuracy_of(task, data, [Mirror(), Mirror()], 0) == 1


def test_noise_on_test_images_depends_on_the_seed_alone():
    data = build_data(compose(["data=patterns", "data.num_train=8", "recipe=none"]).job_config())
    noise = [GaussianNoise(0.2)]
    one, again, other = (corruptions.corrupted(data, torch.arange(4), noise, seed).images for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["blur", "scales"])
def test_an_experiment_on_changed_images_is_one_command(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"experiment={name}", "study.seeds=[0]", 'study.more=["trainer=smoke","data.num_train=64"]']
    code, out, err = run_command(monkeypatch, capsys, *words, "name=c")
    assert (code, err) == (10, "")
    result = json.loads((tmp_path / "outputs/c/result.json").read_text())
    assert sum(key.startswith("unchanged, ") for key in result) == out.count(", seed 0\n") >= 3
    assert (tmp_path / "outputs/c/results.png").stat().st_size > 5000
    other = ["study.claims=[]", 'study.common=["model=faster_rcnn"]']
    code, out, err = run_command(monkeypatch, capsys, *words[:-1], "name=e", *other)
    assert (code, "epoch" in out) == (2, False)
    assert err.endswith(": must classify images, but its data yield DetectionBatch\n")
    code, _, err = run_command(monkeypatch, capsys, *words, "name=d", 'study.claims=["dark: a > b"]')
    assert code == 2
    assert err.startswith("dltrain: error: study.claims: 'dark: a > b': no run 'a'")


# translation, by the length of the source


def test_pairs_are_grouped_by_the_length_of_their_source():
    groups = translation_by_length.group_by_length([(3, True), (5, False), (6, True), (9, False)], [5, 8])
    assert groups == {"all": [True, False, True, False], "to5": [True, False], "to8": [True], "longer": [False]}
    assert [translation_by_length.title_of(group, [5, 8]) for group in groups] == [
        "all", "up to 5", "6 to 8", "more than 8"]


def test_the_match_of_all_groups_is_the_metric_of_the_run(tmp_path, monkeypatch, capsys):
    """`longest` splits the test pairs; the share over all must be test/exact_match of the run itself."""
    monkeypatch.chdir(tmp_path)
    words = ["experiment=translation_by_length", "study.seeds=[0]", "study.claims=[]",
             "~study.runs.forwards", "~study.runs.backwards"]
    more = 'study.more=["data.num_train=2000","trainer.max_epochs=4","model.hidden=96","task.optimizer.lr=0.01"]'
    code, out, err = run_command(monkeypatch, capsys, *words, more, "name=t")
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "outputs/t/result.json").read_text())
    run = json.loads((tmp_path / "outputs/t/attention-seed0/result.json").read_text())
    assert result["all, attention"] == pytest.approx(run["test/exact_match"], abs=1e-6)
    assert "up to 12 (" in out
    smoke = 'study.more=["trainer=smoke","data.num_train=100"]'
    assert run_command(monkeypatch, capsys, *words, smoke, "name=v", "study.longest=[50]")[::2] == (
        2, "dltrain: error: study.longest=[50]: no test pair is in the group 'longer'\n")
    code, out, err = run_command(monkeypatch, capsys, *words, "name=u", 'study.common=["model=tagger"]',
                                 "study.more=[]", "study.runs.attention=[]")
    assert (code, "epoch" in out) == (2, False)
    assert err == ("dltrain: error: study.runs.attention: must be a model that translates, but its data yield "
                   "TaggedBatch\n")
    assert run_command(monkeypatch, capsys, *words, smoke, "name=w", "study.longest=[9,9]")[::2] == (
        2, "dltrain: error: study.longest=[9, 9]: must be rising\n")


# auxiliary losses


def test_without_auxiliary_losses_there_are_no_heads_for_them():
    images = torch.randn(2, 3, 32, 32)
    plain, usual = GoogLeNet(4, width=8, size="cifar", auxiliary_weight=0), GoogLeNet(4, width=8, size="cifar")
    assert plain.train()(images).shape == (2, 4)
    assert len(usual.train()(images)) == 3
    stems = [{name.split(".")[0] for name in net.state_dict()} for net in (usual, plain)]
    assert stems[0] - stems[1] == {"aux1", "aux2"}


def test_the_norms_of_each_stage_are_those_of_backward():
    words = ["model=googlenet_cifar", "model.width=8", "data=scene_digits", "data.image_px=32", "data.num_train=8",
             "recipe=none", "augment=none", "model.dropout=0"]
    config = compose(words).job_config()
    data = build_data(config)
    config.class_names = data.class_names
    task: Any = build_task(config)
    task.fit_statistics(data)
    batch = next(iter(data.train_dataloader()))
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # those of the heads
    norms = auxiliary_losses.measure(task, batch, 0)
    logits, *others = task.model.train()(task.augment.normalize(batch.images))
    cross_entropy = torch.nn.CrossEntropyLoss()
    (cross_entropy(logits, batch.labels) + 0.3 * sum(cross_entropy(other, batch.labels) for other in others)).backward()
    for stage, layers in task.model.stages().items():
        squares = sum(float(parameter.grad.square().sum()) for layer in layers for parameter in layer.parameters())
        assert norms[stage]["both"] == pytest.approx(squares**0.5, rel=1e-4)
    assert norms["inception5"]["auxiliary"] == 0 < norms["conv1"]["auxiliary"]


def test_the_experiment_measures_the_gradient_of_each_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command(monkeypatch, capsys, "experiment=auxiliary_losses", "name=a", "study.seeds=[0]",
                                 'study.more=["trainer=smoke","data.num_train=64","model.width=8"]')
    assert (code, err) == (10, "")
    result = json.loads((tmp_path / "outputs/a/result.json").read_text())
    assert result["ratio at the end, inception5"] == 1
    assert result["ratio at the start, conv1"] != 1
    assert "UNDECIDED  test/accuracy: with >= without" in out
