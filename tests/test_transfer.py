"""Transfer learning: frozen stages, learning rates by stage, data sets like and unlike the source's, comparisons."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dltrain import checkpoints, optim, run
from dltrain.build import build_data, build_task
from dltrain.contracts import Model
from dltrain.data import patterns, scenes
from dltrain.data.classification import InMemoryImages
from dltrain.data.patterns import KINDS
from dltrain.data.scenes import SceneDigits
from dltrain.errors import UserError
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.faster_rcnn import FasterRCNN
from dltrain.models.fcn import FCN
from dltrain.models.vgg import CifarVGG
from dltrain.run_dir import RunDir
from dltrain.studies import comparison
from dltrain.tasks.freezing import Freezing
from tests.command_line import run_command
from tests.conftest import TINY

PLAIN = [*TINY, "model=resnet20", "model.depth=8"]


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_EVAL_IMAGES", 16)
    monkeypatch.setattr(patterns, "NUM_EVAL_IMAGES", 16)


def weights_of(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return checkpoints.load(folder / "checkpoints" / name)["state_dict"]


@pytest.fixture
def train_one_epoch(config, tmp_path):
    """train_one_epoch(*words) -> the names of the model's tensors that change, and of all of them."""

    def train(*words: str) -> tuple[set[str], set[str]]:
        words = (*PLAIN, "trainer.max_epochs=1", *words)
        before = {name: value.clone() for name, value in build_task(config(*words)).model.state_dict().items()}
        run.train(config(*words), RunDir.named(tmp_path, "run"))
        after = weights_of(tmp_path / "run")
        return {name for name, value in before.items() if not torch.equal(value, after[f"model.{name}"])}, {*before}

    return train


@pytest.mark.parametrize(("words", "trained"), [
    ([], ("stem", "blocks.0", "blocks.1", "blocks.2", "head")),
    (["task.freezing.until=stage2"], ("blocks.2", "head")),
    (["task.freezing.until=all"], ("head",)),
])
def test_frozen_stages_keep_their_weights_and_statistics(words, trained, train_one_epoch):
    changed, names = train_one_epoch(*words)
    assert changed == {name for name in names if name.startswith(trained)}


def test_frozen_batch_norm_can_update_its_statistics(train_one_epoch):
    changed, names = train_one_epoch("task.freezing.until=stage2", "task.freezing.batch_norm=update")
    statistics = {name for name in names if "running_" in name or "num_batches" in name}
    assert changed == statistics | {name for name in names if name.startswith(("blocks.2", "head"))}


def test_stages_are_unfrozen_from_the_top():
    model = CifarResNet(8)
    freezing = Freezing(model, "all", 2)

    def trained_stages():
        return [name for name, layers in model.stages().items()
                if all(p.requires_grad for layer in layers for p in layer.parameters())]

    assert trained_stages() == ["stem", "stage1", "stage2", "stage3"], "all of them must be in the optimizer"
    by_epoch = []
    for epoch in range(9):
        freezing.apply(epoch)
        by_epoch.append(trained_stages())
    assert by_epoch == [[], [], ["stage3"], ["stage3"], ["stage2", "stage3"], ["stage2", "stage3"],
                        ["stage1", "stage2", "stage3"], ["stage1", "stage2", "stage3"],
                        ["stem", "stage1", "stage2", "stage3"]]
    freezing.apply(2)
    assert [model.blocks[0].training, model.blocks[2].training] == [False, True]
    model.train()
    freezing.apply(2)
    assert [model.blocks[0].training, model.blocks[2].training] == [False, True]


def detector(backbone: CifarResNet) -> FasterRCNN:
    return FasterRCNN(backbone, 3, anchor_px=[16], ratios=[1.0], short_px=64, long_px=99, hidden=8)


def pixel_labeller(backbone: CifarVGG) -> FCN:
    return FCN(backbone, 3, 3, stride=8, hidden=4, kernel=3, dropout=0.0, upsampling="bilinear")


def frozen_parameters(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_the_backbone_of_a_larger_model_is_frozen():
    vgg, resnet = CifarVGG(11, width=4), CifarResNet(8)
    model = pixel_labeller(vgg)
    Freezing(model, "conv4")
    after_conv4 = len(list(vgg.features)) - 8
    assert frozen_parameters(model) == {f"backbone.{name}" for name, _ in vgg.named_parameters()
                                        if int(name.split(".")[1]) < after_conv4}
    faster_rcnn = detector(resnet)
    Freezing(faster_rcnn, "all")
    assert frozen_parameters(faster_rcnn) == {f"net.backbone.body.{name}" for name, _ in resnet.named_parameters()}
    assert len(frozen_parameters(faster_rcnn)) == 7 * 3, "a kernel, a scale and a shift of each layer"


@pytest.mark.parametrize("words", [
    ["model=faster_rcnn"], ["model=fast_rcnn"], ["model=rcnn"], ["model=localizer"], ["model=resnet20"],
    ["model=captioner", "data.vocab_size=9"], ["model=hypercolumn", "model/backbone=cifar"]])
def test_every_task_with_a_backbone_can_freeze_it(words, config):
    model = build_task(config(*words, "task.freezing.until=stem")).model
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert len(frozen) == 3, "a kernel, a scale and a shift"


def test_stages_that_cannot_be_frozen_are_refused(config):
    with pytest.raises(UserError, match=r"freezing.until=stage9: CifarResNet has no such stage; did you mean 'stage"):
        build_task(config(*PLAIN, "task.freezing.until=stage9"))
    with pytest.raises(UserError, match=r"until=x: CifarResNet has no such stage; there are: stem, .*, or all"):
        build_task(config(*PLAIN, "task.freezing.until=x"))
    with pytest.raises(UserError, match=r"freezing.until=all: must be null, for Linear has no backbone with stages"):
        Freezing(nn.Linear(3, 3), "all")


def rates_of(model: Model, *lr_factors: str) -> dict[nn.Parameter, float]:
    groups = optim.optimizer(model, "sgd", 1.0, 0.0, lr_factors=lr_factors).param_groups
    rates = {p: group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    return rates


def test_learning_rates_by_stage():
    vgg = CifarVGG(11, width=4)
    model = pixel_labeller(vgg)
    conv1 = {*vgg.features[0].parameters(), *vgg.features[1].parameters()}
    assert len(conv1) == 4
    expected = dict.fromkeys(model.parameters(), 1.0) | dict.fromkeys(vgg.parameters(), 0.5)
    expected |= dict.fromkeys(conv1, 0.1) | dict.fromkeys(model.head.parameters(), 2.0)
    assert {*expected.values()} == {0.1, 0.5, 1.0, 2.0}
    assert rates_of(model, "backbone:0.5", "conv1:0.1", "head:2") == expected
    assert rates_of(model, "conv1:0.1") == {p: 0.1 if p in conv1 else 1.0 for p in model.parameters()}
    biases = {p for name, p in model.named_parameters() if name.split(".")[-1] == "bias"}
    assert rates_of(model, "*.bias:64") == {p: 64.0 if p in biases else 1.0 for p in model.parameters()}
    with pytest.raises(UserError, match=r"lr_factors: 'conv9' is neither a stage of .*; did you mean 'conv"):
        optim.optimizer(model, "sgd", 1.0, 0.0, lr_factors=["conv9:1"])


def test_the_backbone_in_torchvisions_detector_has_its_learning_rate():
    resnet = CifarResNet(8)
    model = detector(resnet)
    backbone = {*resnet.parameters()}
    assert rates_of(model, "backbone:0.1") == {p: 0.1 if p in backbone else 1.0 for p in model.parameters()}


def test_scenes_of_some_digits(config):
    data = build_data(config("data=scene_digits", "data.digits=[7,5]", "data.num_train=20"))
    assert isinstance(data, SceneDigits)
    assert data.class_names == ["5", "7"]
    digits = [scene.digit for i in range(20) for scene in data.scenes.draw("train", i).objects]
    assert {*digits} == {5, 7}
    assert data.splits["train"].labels.tolist() == [data.class_names.index(str(digit)) for digit in digits]
    with pytest.raises(UserError, match=r"digits must be two or more of 0 to 9, each once, but are .3, 3."):
        build_data(config("data=scene_digits", "data.digits=[3,3]"))


def test_the_same_command_again_where_only_the_data_know_the_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["model=resnet20", "model.depth=8", "data=scene_digits", "data.num_train=16", "data.image_px=28", "name=a",
             "trainer=smoke"]
    code, out, err = run_command(monkeypatch, capsys, *words)
    assert (code, out.splitlines()[0], err) == (
        0, "resnet20 on scene_digits, no recipe for this pair, defaults; folder outputs/a", "")
    assert run_command(monkeypatch, capsys, *words) == (
        0, "outputs/a is finished after 1 step, nothing to do; dltrain extend run=outputs/a epochs= trains longer, "
        "another name= with model.pretrained.from_run=outputs/a begins anew with its weights\n", "")


def test_patterns_are_functions_of_split_and_index_and_of_all_kinds(config):
    words = ["data=patterns", "data.num_train=16"]
    data, again = build_data(config(*words)), build_data(config(*words))
    assert isinstance(data, InMemoryImages)
    assert isinstance(again, InMemoryImages)
    assert torch.equal(data.splits["train"].images, again.splits["train"].images)
    assert data.splits["train"].labels.bincount().tolist() == [2] * len(KINDS)
    assert not torch.equal(data.splits["train"].images[0], data.splits["test"].images[0])
    assert KINDS[data.splits["train"].labels[0]] == "rows"
    rows = data.splits["train"].images[0].float().mean(0)
    assert rows.mean(1).var() > 20 * rows.mean(0).var(), "rows change down, not across"


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


SIMILAR = ["data=scene_digits", "data.digits=[5,6,7,8,9]"]


def check_tuned(folder: Path, source: Path) -> None:
    """A run with two frozen stages that started from `source`, which has as many classes but others."""
    tuned, source_weights = weights_of(folder), weights_of(source, "best.ckpt")
    assert torch.equal(tuned["model.blocks.0.convs.0.0.weight"], source_weights["model.blocks.0.convs.0.0.weight"])
    assert not torch.equal(tuned["model.blocks.2.convs.0.0.weight"], source_weights["model.blocks.2.convs.0.0.weight"])
    assert tuned["model.head.weight"].shape == source_weights["model.head.weight"].shape == (5, 64)
    assert not torch.equal(tuned["model.head.weight"], source_weights["model.head.weight"])


def test_a_comparison_trains_from_another_of_its_runs(tmp_path):
    common = ["model=resnet20", "model.depth=8", "recipe=none", "data.num_train=8", "data.image_px=28", "trainer=cpu",
              "trainer.max_epochs=1"]
    runs = {"source": ["data=scene_digits", "data.digits=[0,1,2,3,4]"],
            "last stage": {"overrides": [*SIMILAR, "task.freezing.until=stage2"], "pretrained_from": "source"},
            "from scratch": SIMILAR}
    result = comparison.study(run.StudyContext(tmp_path, 0, None), common, runs, [], [0],
                              {"test/accuracy": "accuracy"}, [], ["test/accuracy: last stage >= from scratch - 0.01"])
    rows = {row["run"]: float(row["test/accuracy"]) for row in read_csv(tmp_path / "comparison.csv")}
    assert list(rows) == list(runs)
    assert result["claim, test/accuracy: last stage >= from scratch - 0.01"] == "UNDECIDED"
    check_tuned(tmp_path / "last_stage-seed0", tmp_path / "source-seed0")


@pytest.mark.slow
def test_the_advice_is_measured_in_every_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command(
        monkeypatch, capsys, "experiment=transfer_advice", "name=t", "study.seeds=[0]",
        'study.more=["model.depth=8","trainer=cpu","data.num_train=16","data.image_px=28","trainer.max_epochs=null","trainer.max_steps=2"]')
    assert (code, err) == (10, "")
    folder = tmp_path / "outputs/t"
    rows = {row["run"]: float(row["test/accuracy"]) for row in read_csv(folder / "comparison.csv")}
    assert list(rows) == ["source", *(f"{amount} {kind}, {what}" for kind in ("similar", "different") for amount in
                                      ("little", "much") for what in ("linear", "last stage", "all", "from scratch"))]
    result = json.loads((folder / "result.json").read_text())
    claims = {key: outcome for key, outcome in result.items() if key.startswith("claim, ")}
    assert len(claims) == 9
    for claim, outcome in claims.items():
        left, right = claim.removeprefix("claim, test/accuracy: ").removesuffix(" - 0.01").split(" >= ")
        by = "-" if rows[left] < rows[right] - 0.01 else "+"
        assert outcome == "UNDECIDED"
        assert f"UNDECIDED  {claim.removeprefix('claim, ')}: " in out
        assert f" of {right}; by {by}" in out
    check_tuned(folder / "little_similar_last_stage-seed0", folder / "source-seed0")
