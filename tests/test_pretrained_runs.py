"""Weights and architecture of another run, for detectors and classifiers; what does not fit is named by key."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from dltrain import build, checkpoints, evaluation, run
from dltrain.commands.stored import load_config
from dltrain.config.compose import compose
from dltrain.data import scenes
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from tests.command_line import run_command
from tests.conftest import TINY
from tests.test_resume import Crash, crash_at

DETECTOR = ["model=faster_rcnn", "data.num_train=8", "data.batch_size=4", "trainer=cpu", "trainer.max_epochs=2",
            "recipe=none", "model.hidden=16"]
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_EVAL_IMAGES", 4)


@pytest.fixture(scope="module")
def trained_classifier(tmp_path_factory):
    run_dir = RunDir.named(tmp_path_factory.mktemp("trained"), "digits")
    config = compose([*TINY, "data.channels=3", "model.survival=0.8", "trainer.max_epochs=1"]).job_config()
    run.train(config, run_dir)
    return run_dir.path


@pytest.fixture
def classifier(trained_classifier, tmp_path):
    """A copy of the folder of a finished run of a small stochastic-depth classifier of digits in three channels."""
    shutil.copytree(trained_classifier, tmp_path / "digits")
    return tmp_path / "digits"


def best_weights(path: Path) -> dict[str, Tensor]:
    return checkpoints.load(path / "checkpoints/best.ckpt")["state_dict"]


def restore_model(path: Path) -> Any:
    run_dir = RunDir(path)
    return evaluation.restore(load_config(run_dir, {}, ()), run_dir).model


def test_a_detector_takes_architecture_and_weights_of_a_classifier(classifier, config):
    composed = config(*DETECTOR, f"model.backbone.pretrained.from_run={classifier}")
    assert (composed.model.backbone.depth, composed.model.backbone.survival) == (8, 0.8)
    assert composed.model.backbone._target_ == "dltrain.models.cifar_resnet.CifarResNet"
    assert "head" not in composed.model.backbone
    assert composed.model.num_classes == 10
    backbone = build.build_task(composed).model.backbone
    saved = best_weights(classifier)
    expected = {name.removeprefix("model."): value for name, value in saved.items() if not name.startswith("model.head")
                and name.startswith("model.")}
    weights = backbone.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    resumed = build.build_task(composed, fresh=False).model.backbone
    assert not torch.equal(resumed.stem[0].weight, expected["stem.0.weight"]), "a resumed run reads its checkpoint"


def test_a_detector_needs_the_run_of_its_backbone_only_once(classifier, config, tmp_path, monkeypatch, capsys):
    run_dir = RunDir.named(tmp_path, "detector")
    words = [*DETECTOR, f"model.backbone.pretrained.from_run={classifier}", "trainer.checkpoint_every_steps=1"]
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 2)
        with pytest.raises(Crash):
            run.train(config(*words), run_dir)
    shutil.rmtree(classifier)
    code, out, err = run_command(monkeypatch, capsys, "resume", f"run={run_dir}")
    assert (code, err) == (0, "")
    assert f"resuming {run_dir} from step 2 of 4" in out.splitlines()
    assert restore_model(run_dir.path).backbone.survival_probabilities[-1] == pytest.approx(0.8)


def test_runs_that_do_not_fit_are_refused(classifier, config, tmp_path):
    with pytest.raises(UserError, match=r"model.backbone.pretrained.from_run=.*none: not a run folder"):
        config(*DETECTOR, f"model.backbone.pretrained.from_run={tmp_path}/none")
    words = [*DETECTOR, f"model.backbone.pretrained.from_run={classifier}"]
    with pytest.raises(UserError, match=r"trained on images of 3 channels, but data.channels=1; .* data.channels=1"):
        config(*words, "data.channels=1")
    with pytest.raises(UserError, match=r"pretrained.weights=w.pth: must be null where from_run is not"):
        config(*words, "model.backbone.pretrained.weights=w.pth")
    (classifier / "checkpoints/best.ckpt").unlink()
    with pytest.raises(UserError, match=r"from_run=.*digits: it has no best checkpoint yet; dltrain resume run="):
        config(*words)


def saved_run(composed, path, class_names=None):
    """The folder of a run of this config that has a best checkpoint, without its tensors."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints/best.ckpt").touch()
    if class_names is not None:
        composed.class_names = class_names
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    RunDir(path).write_config(plain, {})
    return path


def test_keys_that_only_a_backbone_has_stay_where_its_class_is_that_of_the_run(config, tmp_path):
    path = saved_run(config("model=resnet18", "data.num_classes=3", "data.image_px=64"), tmp_path / "a")
    backbone = config("model=faster_rcnn_resnet50", f"model.backbone.pretrained.from_run={path}").model.backbone
    assert (backbone.depth, backbone.norm) == (18, "frozen_batch")
    backbone = config("model=faster_rcnn_lite0", f"model.backbone.pretrained.from_run={path}").model.backbone
    assert "until" not in backbone


@pytest.mark.parametrize(("words", "class_names", "keeps_head"), [
    ([], DIGITS, True), ([], [f"no {digit}" for digit in DIGITS], False), (["data.num_classes=3"], DIGITS[:3], False)])
def test_a_classifier_starts_from_a_run_with_a_new_head_for_other_classes(words, class_names, keeps_head, classifier,
                                                                          config):
    """The head is new where the number of classes or their names are others."""
    composed = config("model=resnet20", f"model.pretrained.from_run={classifier}", "data=scene_digits",
                      "data.image_px=32", "data.num_classes=10", "recipe=none", *words)
    composed.class_names = class_names
    net, saved = build.build_task(composed).model, best_weights(classifier)
    assert net.survival_probabilities[-1] == pytest.approx(0.8)
    for name, value in net.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, saved[f"model.{name}"]), name
    assert net.head.weight.shape == (len(class_names), 64)
    assert torch.equal(net.head.weight, saved["model.head.weight"]) is keeps_head


def test_a_tuned_classifier_needs_the_run_it_started_from_only_once(classifier, config, tmp_path):
    run_dir = RunDir.named(tmp_path, "tuned")
    result = run.train(config("model=resnet20", f"model.pretrained.from_run={classifier}", "data=scene_digits",
                              "data.image_px=32", "data.num_train=32", "data.batch_size=16", "recipe=none",
                              "trainer.max_epochs=1", "trainer=cpu", "task.optimizer.lr=0.001"), run_dir)
    assert result["steps"] == 2
    shutil.rmtree(classifier)
    assert restore_model(run_dir.path).survival_probabilities[-1] == pytest.approx(0.8)


def test_the_number_of_classes_may_be_known_by_the_data_alone(classifier, config):
    """As for a folder of images: the config has no number until they are read."""
    composed = config("model=resnet20", "data=image_folder", f"model.pretrained.from_run={classifier}")
    assert (composed.model.depth, composed.model.num_classes) == (8, None)
    composed.data.num_classes = 7
    assert build.build_task(composed).model.head.weight.shape == (7, 64)


def test_hidden_layers_of_a_head_stay_when_its_classes_change(config, tmp_path, monkeypatch):
    """GoogLeNet's auxiliary classifiers: their last layers are new, the ones before are those of the run."""
    words = ["model=googlenet_cifar", "model.width=8", "data.num_classes=10"]
    torch.manual_seed(1)
    source = build.build_task(config(*words)).model
    path, names = saved_run(config(*words), tmp_path / "a", [*"abcdefghij"]), [*"abcdefghij"]
    monkeypatch.setattr(checkpoints, "load", lambda path: {
            "global_step": 0, "dltrain": {},
        "state_dict": {f"model.{name}": value for name, value in source.state_dict().items()}})
    composed = config("model=resnet20", "data=scene_digits", "data.num_classes=10", f"model.pretrained.from_run={path}")
    for class_names, same in ((names, True), ([*"klmnopqrst"], False)):
        composed.class_names, composed.seed = class_names, 5
        net = build.build_task(composed).model
        assert torch.equal(net.aux1.fc1.weight, source.aux1.fc1.weight)
        for layer in ("fc", "aux1.fc2", "aux2.fc2"):
            assert torch.equal(net.get_submodule(layer).weight, source.get_submodule(layer).weight) is same
