"""Transfer learning: stages that rest and wake, learning rates by stage, probes, and what is alike or unlike."""

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
from dltrain.models.fcn import FCN
from dltrain.models.vgg import CifarVGG
from dltrain.studies import receptive_field
from dltrain.studies.linear_probe import features, probed
from dltrain.tasks.freezing import Resting
from tests.conftest import TINY

PLAIN = [*TINY, "model=resnet20", "model.depth=8"]


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_EVALUATION", 16)
    monkeypatch.setattr(patterns, "NUM_EVALUATION", 16)


def trained(path, config, *words):
    task = build_task(config(*PLAIN, *words))
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    run.train(config(*PLAIN, "trainer.max_epochs=1", *words), path)
    after = torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {name for name, value in before.items()
            if not torch.equal(value, after[f"model.{name}"])}, len(before)


@pytest.mark.parametrize(("words", "moving"), [
    ([], ("stem", "blocks.0", "blocks.1", "blocks.2", "head")),
    (["task.transfer.rest_until=stage2"], ("blocks.2", "head")),
    (["task.transfer.rest_until=all"], ("head",)),
])
def test_what_rests_is_not_changed_nor_its_statistics(words, moving, config, run_folder):
    changed, _ = trained(run_folder("a"), config, *words)
    assert changed
    assert all(name.startswith(moving) for name in changed), changed
    for start in moving:
        assert any(name.startswith(start) for name in changed), start


def test_renewed_statistics_are_gathered_where_weights_rest(config, run_folder):
    changed, _ = trained(run_folder("a"), config, "task.transfer.rest_until=stage2",
                         "task.transfer.statistics=renewed")
    resting = {name for name in changed if name.startswith(("stem", "blocks.0", "blocks.1"))}
    assert resting
    assert all("running_" in name or "num_batches" in name for name in resting)


def test_stages_wake_from_the_top_one_with_each_epoch():
    model = CifarResNet(8)
    resting = Resting(model, "all", 2)

    def awake():
        return [name for name, modules in model.stages().items()
                if all(p.requires_grad for module in modules for p in module.parameters())]

    assert awake() == ["stem", "stage1", "stage2", "stage3"], "all of them belong to the optimizer"
    seen = []
    for epoch in range(9):
        resting.begin(epoch)
        seen.append(awake())
    assert seen == [[], [], ["stage3"], ["stage3"], ["stage2", "stage3"], ["stage2", "stage3"],
                    ["stage1", "stage2", "stage3"], ["stage1", "stage2", "stage3"],
                    ["stem", "stage1", "stage2", "stage3"]]
    resting.begin(2)
    assert [model.blocks[0].training, model.blocks[2].training] == [False, True]
    model.train()
    resting.begin(2)
    assert [model.blocks[0].training, model.blocks[2].training] == [False, True]


def test_the_encoder_of_a_larger_model_rests():
    model = FCN(CifarVGG(11, width=4), 3, 3, stride=8, hidden=4, kernel=3, dropout=0.0, upsampling="bilinear")
    Resting(model, "conv4")
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {f"encoder.{name}" for name, _ in model.encoder.named_parameters()
                     if int(name.split(".")[1]) < len(model.encoder.features) - 8}


def test_what_cannot_rest_is_named(config):
    with pytest.raises(UserError, match=r"transfer.rest_until=stage9: CifarResNet has no such stage; did you mean"):
        build_task(config(*PLAIN, "task.transfer.rest_until=stage9"))
    with pytest.raises(UserError, match=r"rest_until=x: CifarResNet has no such stage; there are: stem, .*, or all"):
        build_task(config(*PLAIN, "task.transfer.rest_until=x"))
    with pytest.raises(UserError, match=r"rest_until=all: Linear has no stages that could rest"):
        Resting(nn.Linear(3, 3), "all")


def test_learning_rates_by_stage():
    model = FCN(CifarVGG(11, width=4), 3, 3, stride=8, hidden=4, kernel=3, dropout=0.0, upsampling="bilinear")
    found = optim.optimizer(model, "sgd", 1.0, 0.0, lr_factors=["encoder:0.5", "conv1:0.1", "head:2"])
    rates = {id(p): group["lr"] for group in found.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(model.encoder.features[0].weight)] == 0.5, "encoder is the longer name"
    found = optim.optimizer(model, "sgd", 1.0, 0.0, lr_factors=["conv1:0.1", "pool5:0", "head:2"][:1])
    rates = {id(p): group["lr"] for group in found.param_groups for p in group["params"]}
    conv1 = {id(p) for module in model.encoder.stages()["conv1"] for p in module.parameters()}
    assert {rates[key] for key in conv1} == {0.1}
    assert {rate for key, rate in rates.items() if key not in conv1} == {1.0}
    with pytest.raises(UserError, match=r"lr_factors.conv9: no parameter that is trained begins so; did you mean"):
        optim.optimizer(model, "sgd", 1.0, 0.0, lr_factors=["conv9:1"])


def test_a_linear_probe_is_logistic_regression_on_the_mean_of_the_map(config):
    words = [*PLAIN, "task.transfer.rest_until=all"]
    found = probed(words)
    cfg = config(*words)
    data, task = build_data(cfg), build_task(cfg)
    task.fit_statistics(data)
    task.eval()
    xs = {}
    for part in ("train", "test"):
        images, labels = data.splits[part]
        with torch.no_grad():
            xs[part] = (task.model.features(task.augment.normalize(images)).mean((2, 3)), labels)
        torch.testing.assert_close(features(task, data, part)[0], xs[part][0])
    mean, std = xs["train"][0].mean(0), xs["train"][0].std(0, unbiased=False)
    std[std == 0] = 1
    model = LogisticRegression(C=found["C"], max_iter=1000).fit((xs["train"][0] - mean) / std, xs["train"][1])
    assert model.score((xs["test"][0] - mean) / std, xs["test"][1]) == pytest.approx(found["test/accuracy"], abs=0.03)
    assert found["test/accuracy"] > 0.3, "ten classes, random features"
    with pytest.raises(UserError, match="a linear probe needs a classifier of images, but char_rnn takes TokenBatch"):
        probed(["model=char_rnn"])


def test_scenes_of_some_digits(config):
    data = build_data(config("data=scene_digits", "data.digits=[7,5]", "data.num_train=20"))
    assert data.class_names == ["5", "7"]
    assert {one.digit for i in range(20) for one in data.scenes.draw("train", i).objects} == {5, 7}
    assert set(data.splits["train"].labels.tolist()) == {0, 1}
    with pytest.raises(UserError, match=r"digits must be two or more of 0 to 9, each once, but are .3, 3."):
        build_data(config("data=scene_digits", "data.digits=[3,3]"))


def test_the_same_words_again_where_only_the_data_know_the_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["model=resnet20", "model.depth=8", "data=scene_digits", "data.num_train=16", "data.image_px=28", "name=a",
             "trainer=smoke"]
    typed(monkeypatch, capsys, *words)
    assert "is finished, nothing to do" in typed(monkeypatch, capsys, *words)


def test_patterns_are_functions_of_part_and_index_and_of_all_kinds(config):
    words = ["data=patterns", "data.num_train=16"]
    one, other = build_data(config(*words)), build_data(config(*words))
    assert torch.equal(one.splits["train"].images, other.splits["train"].images)
    assert one.splits["train"].labels.bincount().tolist() == [2] * len(KINDS)
    assert not torch.equal(one.splits["train"].images[0], one.splits["test"].images[0])
    rows = one.splits["train"].images[0].float().mean(0)
    assert rows.mean(1).var() > 20 * rows.mean(0).var(), "rows change down, not across"


def test_a_receptive_field_is_what_the_kernels_reach(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=4, dilation=2), nn.Conv2d(4, 2, 1))
    found = receptive_field.field(net, 33, 2, 3, seed=0)
    row = receptive_field.measured(found)
    assert row["reach_px"] == 3 + 4 * 2
    assert 0 < row["half_px"] <= 5.5 * 2**0.5
    assert row["effective_px"] <= 11
    point = torch.zeros(9, 9)
    point[4, 4] = 1
    assert receptive_field.measured(point) == {"reach_px": 1, "effective_px": 1.0, "half_px": 0.0}


def typed(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["dltrain", *words])
    code = cli.main()
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    return said.out


def test_the_advice_is_measured_in_every_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = typed(monkeypatch, capsys, "experiment=transfer_advice", "name=t", "study.steps=2", "study.source_epochs=1",
                "study.sizes={little:8,much:16}",
                'study.common=["model=resnet20","model.depth=8","data.image_px=28","trainer=cpu"]')
    with open(tmp_path / "outputs/t/advice.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["alike, little", "alike, much", "unlike, little", "unlike, much"]
    found = json.loads((tmp_path / "outputs/t/result.json").read_text())
    for row in rows:
        best = max(float(row[way]) for way in ("linear probe", "last stage", "all stages", "from scratch"))
        if row["advised"]:
            assert found[f"advice holds, {row['setting']}"] == (float(row[row["advised"]]) >= best - 0.01)
    assert "you're in trouble" in out
    head = torch.load(tmp_path / "outputs/t/alike_little-last_stage/checkpoints/last.ckpt", weights_only=True)
    source = torch.load(tmp_path / "outputs/t/source/checkpoints/best.ckpt", weights_only=True)
    name = "model.blocks.0.convs.0.0.weight"
    assert torch.equal(head["state_dict"][name], source["state_dict"][name]), "what rests is the source's"
    assert head["state_dict"]["model.head.weight"].shape == (5, 64)


def test_fields_and_probes_are_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = typed(monkeypatch, capsys, "experiment=receptive_field", "name=r", "study.image_px=96", "study.images=1",
                'study.nets={strided:["model=fcn32s","model.encoder.width=2"],dilated:["model=dilated","model.encoder.width=2"]}')
    assert "reach" in out
    assert (tmp_path / "outputs/r/results.png").stat().st_size > 5000
    out = typed(monkeypatch, capsys, "experiment=linear_probe", "name=p",
                'study.words=["model=resnet20","model.depth=8","data=scene_digits","data.num_train=64","data.image_px=28"]')
    assert "chosen in validation" in out
    assert json.loads((tmp_path / "outputs/p/result.json").read_text())["values"] == 64
