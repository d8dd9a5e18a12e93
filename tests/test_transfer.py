"""Transfer learning: frozen stages, learning rates by stage, linear probes, data sets like and unlike the source's."""

import csv
import json

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from dltrain import cli, optim, run
from dltrain.build import build_data, build_task
from dltrain.data import patterns, scenes
from dltrain.data.patterns import KINDS
from dltrain.errors import UserError
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.faster_rcnn import FasterRCNN
from dltrain.models.fcn import FCN
from dltrain.models.vgg import CifarVGG
from dltrain.studies import receptive_field
from dltrain.studies.linear_probe import features, probed
from dltrain.tasks.freezing import Freezing
from tests.conftest import TINY

PLAIN = [*TINY, "model=resnet20", "model.depth=8"]


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_EVALUATION", 16)
    monkeypatch.setattr(patterns, "NUM_EVALUATION", 16)


def changed_tensors(path, config, *words) -> set[str]:
    """The names of the tensors of the model that one epoch of training changes."""
    before = {name: value.clone() for name, value in build_task(config(*PLAIN, *words)).model.state_dict().items()}
    run.train(config(*PLAIN, "trainer.max_epochs=1", *words), path)
    after = torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {name for name, value in before.items() if not torch.equal(value, after[f"model.{name}"])}


@pytest.mark.parametrize(("words", "trained"), [
    ([], ("stem", "blocks.0", "blocks.1", "blocks.2", "head")),
    (["task.freezing.until=stage2"], ("blocks.2", "head")),
    (["task.freezing.until=all"], ("head",)),
])
def test_frozen_stages_keep_their_weights_and_statistics(words, trained, config, run_folder):
    changed = changed_tensors(run_folder("a"), config, *words)
    assert changed
    assert all(name.startswith(trained) for name in changed), changed
    for prefix in trained:
        assert any(name.startswith(prefix) for name in changed), prefix


def test_frozen_batch_norm_can_update_its_statistics(config, run_folder):
    changed = changed_tensors(run_folder("a"), config, "task.freezing.until=stage2", "task.freezing.batch_norm=update")
    frozen = {name for name in changed if name.startswith(("stem", "blocks.0", "blocks.1"))}
    assert frozen
    assert all("running_" in name or "num_batches" in name for name in frozen)


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


def pixel_labeller() -> FCN:
    return FCN(CifarVGG(11, width=4), 3, 3, stride=8, hidden=4, kernel=3, dropout=0.0, upsampling="bilinear")


def test_the_backbone_of_a_larger_model_is_frozen():
    model = pixel_labeller()
    Freezing(model, "conv4")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"backbone.{name}" for name, _ in model.backbone.named_parameters()
                      if int(name.split(".")[1]) < len(model.backbone.features) - 8}
    detector = FasterRCNN(CifarResNet(8), 3, anchor_px=[16], ratios=[1.0], short_px=64, long_px=99, hidden=8)
    Freezing(detector, "all")
    frozen = {name for name, p in detector.named_parameters() if not p.requires_grad}
    assert frozen == {f"net.backbone.body.{name}" for name, _ in detector.backbone.named_parameters()}
    assert frozen


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


def rates_of(model: nn.Module, *lr_factors: str) -> dict[nn.Parameter, float]:
    groups = optim.optimizer(model, "sgd", 1.0, 0.0, lr_factors=lr_factors).param_groups
    rates = {p: group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    return rates


def test_learning_rates_by_stage():
    model = pixel_labeller()
    stages = {name: {p for layer in layers for p in layer.parameters()} for name, layers in
              model.backbone.stages().items()}
    rates = rates_of(model, "backbone:0.5", "conv1:0.1", "head:2")
    for parameter, rate in rates.items():
        of_backbone = any(parameter in stage for stage in stages.values())
        expected = 0.1 if parameter in stages["conv1"] else 0.5 if of_backbone else None
        assert rate == expected or (expected is None and rate in (1.0, 2.0))
    assert {rates[p] for p in model.head.parameters()} == {2.0}
    rates = rates_of(model, "conv1:0.1")
    assert {rates[p] for p in stages["conv1"]} == {0.1}
    assert {rate for p, rate in rates.items() if p not in stages["conv1"]} == {1.0}
    with pytest.raises(UserError, match=r"lr_factors: 'conv9' is neither a stage of .*; did you mean 'conv"):
        optim.optimizer(model, "sgd", 1.0, 0.0, lr_factors=["conv9:1"])


def test_the_backbone_in_torchvisions_detector_has_its_learning_rate():
    model = FasterRCNN(CifarResNet(8), 3, anchor_px=[16], ratios=[1.0], short_px=64, long_px=99, hidden=8)
    rates = rates_of(model, "backbone:0.1")
    assert {p for p, rate in rates.items() if rate == 0.1} == {*model.backbone.parameters()}
    assert {*rates.values()} == {0.1, 1.0}


def test_a_linear_probe_is_logistic_regression_on_the_mean_of_the_map(config):
    words = [*PLAIN, "task.freezing.until=all"]
    result = probed(words)
    cfg = config(*words)
    data, task = build_data(cfg), build_task(cfg)
    task.fit_statistics(data)
    task.eval()
    xs = {}
    for split in ("train", "test"):
        images, labels = data.splits[split]
        with torch.no_grad():
            xs[split] = (task.model.features(task.augment.normalize(images)).mean((2, 3)), labels)
        torch.testing.assert_close(features(task, data, split)[0], xs[split][0])
    mean, std = xs["train"][0].mean(0), xs["train"][0].std(0, unbiased=False)
    std[std == 0] = 1
    model = LogisticRegression(C=result["C"], max_iter=1000).fit((xs["train"][0] - mean) / std, xs["train"][1])
    assert model.score((xs["test"][0] - mean) / std, xs["test"][1]) == pytest.approx(result["test/accuracy"], abs=0.03)
    assert result["test/accuracy"] > 0.3, "ten classes, random features"
    with pytest.raises(UserError, match="a linear probe needs a classifier of images, but char_rnn takes TokenBatch"):
        probed(["model=char_rnn"])


def test_scenes_of_some_digits(config):
    data = build_data(config("data=scene_digits", "data.digits=[7,5]", "data.num_train=20"))
    assert data.class_names == ["5", "7"]
    assert {one.digit for i in range(20) for one in data.scenes.draw("train", i).objects} == {5, 7}
    assert set(data.splits["train"].labels.tolist()) == {0, 1}
    with pytest.raises(UserError, match=r"digits must be two or more of 0 to 9, each once, but are .3, 3."):
        build_data(config("data=scene_digits", "data.digits=[3,3]"))


def test_the_same_command_again_where_only_the_data_know_the_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["model=resnet20", "model.depth=8", "data=scene_digits", "data.num_train=16", "data.image_px=28", "name=a",
             "trainer=smoke"]
    typed(monkeypatch, capsys, *words)
    assert "is finished, nothing to do" in typed(monkeypatch, capsys, *words)


def test_patterns_are_functions_of_split_and_index_and_of_all_kinds(config):
    words = ["data=patterns", "data.num_train=16"]
    data, again = build_data(config(*words)), build_data(config(*words))
    assert torch.equal(data.splits["train"].images, again.splits["train"].images)
    assert data.splits["train"].labels.bincount().tolist() == [2] * len(KINDS)
    assert not torch.equal(data.splits["train"].images[0], data.splits["test"].images[0])
    rows = data.splits["train"].images[0].float().mean(0)
    assert rows.mean(1).var() > 20 * rows.mean(0).var(), "rows change down, not across"


def test_a_receptive_field_is_what_the_kernels_reach(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=4, dilation=2), nn.Conv2d(4, 2, 1))
    row = receptive_field.measured(receptive_field.field(net, 33, 2, 3, seed=0))
    assert row["reach_px"] == 3 + 4 * 2
    assert 0 < row["half_px"] <= 5.5 * 2**0.5
    assert row["effective_px"] <= 11
    point = torch.zeros(9, 9)
    point[4, 4] = 1
    assert receptive_field.measured(point) == {"reach_px": 1, "effective_px": 1.0, "half_px": 0.0}


def typed(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["dltrain", *words])
    code = cli.main()
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    return output.out


def test_the_advice_is_measured_in_every_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = typed(monkeypatch, capsys, "experiment=transfer_advice", "name=t", "study.steps=2", "study.source_epochs=1",
                "study.sizes={little:8,much:16}",
                'study.common=["model=resnet20","model.depth=8","data.image_px=28","trainer=cpu"]')
    with open(tmp_path / "outputs/t/advice.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["alike, little", "alike, much", "unlike, little", "unlike, much"]
    result = json.loads((tmp_path / "outputs/t/result.json").read_text())
    for row in rows:
        best = max(float(row[way]) for way in ("linear probe", "last stage", "all stages", "from scratch"))
        if row["advised"]:
            assert result[f"advice holds, {row['setting']}"] == (float(row[row["advised"]]) >= best - 0.01)
    assert "you're in trouble" in out
    head = torch.load(tmp_path / "outputs/t/alike_little-last_stage/checkpoints/last.ckpt", weights_only=True)
    source = torch.load(tmp_path / "outputs/t/source/checkpoints/best.ckpt", weights_only=True)
    name = "model.blocks.0.convs.0.0.weight"
    assert torch.equal(head["state_dict"][name], source["state_dict"][name]), "frozen stages do not change"
    assert head["state_dict"]["model.head.weight"].shape == (5, 64)


def test_fields_and_probes_are_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = typed(monkeypatch, capsys, "experiment=receptive_field", "name=r", "study.image_px=96", "study.images=1",
                'study.nets={strided:["model=fcn32s","model.backbone.width=2"],'
                'dilated:["model=dilated","model.backbone.width=2"]}')
    assert "reach" in out
    assert (tmp_path / "outputs/r/results.png").stat().st_size > 5000
    out = typed(monkeypatch, capsys, "experiment=linear_probe", "name=p",
                'study.words=["model=resnet20","model.depth=8","data=scene_digits","data.num_train=64",'
                '"data.image_px=28"]')
    assert "chosen in validation" in out
    assert json.loads((tmp_path / "outputs/p/result.json").read_text())["values"] == 64
