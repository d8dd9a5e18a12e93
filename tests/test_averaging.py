"""trainer.average=ema and swa: the average, what is evaluated and saved with it, and a resume to the bit."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim.swa_utils import update_bn

from dltrain import build, evaluation, load, trainer
from dltrain.callbacks.averaging import TRAINED, WeightAverage
from dltrain.callbacks.stochastic_average import StochasticAverage
from dltrain.run_dir import RunDir
from tests.conftest import MODELS
from tests.test_resume import assert_equal_tree, assert_same, crash, load_last, train

pytestmark = pytest.mark.usefixtures("without_figures")

EMA = ("trainer.average=ema", "trainer.average_decay=0.8")


class Recorder(WeightAverage):
    """Computes the average in double precision, from the weights after each step."""

    history: ClassVar[list[dict[str, torch.Tensor]]] = []

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        Recorder.history = [copy.deepcopy(pl_module.model.state_dict())]

    def on_train_batch_end(self, trainer, pl_module, *arguments):
        super().on_train_batch_end(trainer, pl_module, *arguments)
        Recorder.history.append(copy.deepcopy(pl_module.model.state_dict()))


@pytest.mark.parametrize("every", [1, 2])
def test_the_average_is_that_of_a_loop_in_double_precision(every, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "WeightAverage", Recorder)
    train(tmp_path / "run", *EMA, f"trainer.average_every_n_steps={every}")
    last, history = load_last(tmp_path / "run"), Recorder.history
    assert len(history) == 10  # the initial weights, and those after each of nine steps
    for name, value in history[0].items():
        expected = value.double()
        for step in range(every, 10, every):
            decay = min(0.8, (1 + step) / (10 + step)) ** every
            expected = decay * expected + (1 - decay) * history[step][name].double()
        if not value.is_floating_point():
            expected = history[9 if every == 1 else 8][name]
        torch.testing.assert_close(last["state_dict"][f"model.{name}"].double(), expected.double(), rtol=1e-5,
                                   atol=1e-6)
        assert torch.equal(last[TRAINED][f"model.{name}"], history[9][name]), name


def test_the_same_steps_are_trained_with_an_average(tmp_path):
    train(tmp_path / "plain")
    train(tmp_path / "average", *EMA)
    plain, average = load_last(tmp_path / "plain"), load_last(tmp_path / "average")
    assert TRAINED not in plain
    weights = {name: value for name, value in plain["state_dict"].items() if name.startswith("model.")}
    assert_equal_tree(weights, average[TRAINED], "weights")
    assert_equal_tree(plain["optimizer_states"], average["optimizer_states"], "optimizer")
    assert not torch.equal(average["state_dict"]["model.head.weight"], average[TRAINED]["model.head.weight"])


EVERY_OTHER = (*EMA, "trainer.checkpoint_every_steps=1", "trainer.average_every_n_steps=2")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("averaging") / "uninterrupted"
    train(path, *EVERY_OTHER)
    return path


@pytest.mark.parametrize(("hook", "steps"), [("on_train_batch_end", [4]), ("on_validation_batch_end", [3])])
def test_a_killed_run_ends_in_the_same_bits(hook, steps, monkeypatch, tmp_path, uninterrupted):
    path = tmp_path / "crashed"
    for step in steps:
        crash(monkeypatch, path, hook, step, *EVERY_OTHER)
    train(path, *EVERY_OTHER)
    assert_same(path, uninterrupted)
    assert_equal_tree(load_last(path)[TRAINED], load_last(uninterrupted)[TRAINED], "trained")


def test_control_without_the_trained_weights(monkeypatch, tmp_path, uninterrupted):
    """A run that resumed from the average would end elsewhere."""
    crash(monkeypatch, tmp_path / "crashed", "on_train_batch_end", 4, *EVERY_OTHER)
    monkeypatch.setattr(WeightAverage, "on_load_checkpoint", lambda *_: None)
    train(tmp_path / "crashed", *EVERY_OTHER)
    with pytest.raises(AssertionError, match="weights"):
        assert_same(tmp_path / "crashed", uninterrupted)


def test_best_and_last_have_the_average_that_the_validation_measured(tmp_path):
    result = train(tmp_path / "run", *EMA)
    loaded = load(tmp_path / "run")
    assert loaded.evaluate("val")["val/accuracy"] == pytest.approx(result["val/accuracy"])
    assert loaded.evaluate("test")["test/loss"] == pytest.approx(result["test/loss"])
    assert loaded.evaluate("val", checkpoint="last") == pytest.approx(read_validation(tmp_path / "run", step=9))


def read_validation(path: Path, step: int) -> dict[str, float]:
    row = next(row for row in RunDir(path).read_metrics() if row["step"] == str(step) and row["val/loss"])
    return {key: float(row[key]) for key in ("val/accuracy", "val/loss")}


class Tied(pl.LightningModule):
    """Two layers with one weight, and a bias that has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.model = nn.ModuleList([self.first, second])


def test_tied_weights_and_weights_without_a_gradient_are_exchanged_once():
    task, average, trainer = Tied(), WeightAverage(0.5, 1), cast(pl.Trainer, SimpleNamespace(global_step=0))
    weight, before = task.first.weight, task.first.weight.detach().clone()
    average.on_train_start(trainer, task)
    with torch.no_grad():
        weight += 1
    trained = before + 1
    cast(SimpleNamespace, trainer).global_step = 1
    average.on_train_batch_end(trainer, task)
    average.exchange()
    torch.testing.assert_close(weight.detach(), before + 9 / 11)  # (1 + s) / (10 + s) = 2 / 11 at step 1, below 0.5
    checkpoint = {"state_dict": task.state_dict()}
    average.on_save_checkpoint(trainer, task, checkpoint)
    torch.testing.assert_close(checkpoint[TRAINED]["model.1.weight"], trained)
    average.exchange()
    torch.testing.assert_close(weight.detach(), trained)


@pytest.mark.parametrize("model", MODELS.values())
def test_every_kind_of_model_can_be_averaged(model, config):
    composed = config(f"model={model}")
    sizes = {key: 7 for key in composed.data if composed.data[key] is None
             and composed.data.get("features") is None}
    composed.data = OmegaConf.merge(composed.data, sizes)
    task, average = build.build_task(composed), WeightAverage(0.5, 1)
    before = copy.deepcopy(task.state_dict())
    trainer = cast(pl.Trainer, SimpleNamespace(global_step=0))
    average.on_train_start(trainer, task)
    average.update(1)
    average.exchange()
    checkpoint = {"state_dict": task.state_dict()}
    average.on_save_checkpoint(trainer, task, checkpoint)
    assert checkpoint[TRAINED].keys() == {name for name in before if name.startswith("model.")}
    assert_equal_tree(checkpoint["state_dict"], before, "average of equal weights")


# trainer.average=swa

SWA = ("trainer.average=swa", "trainer.average_from=0.4", "trainer.average_every_n_steps=2",
       "trainer.checkpoint_every_steps=1")


class SwaRecorder(StochasticAverage):
    history: ClassVar[list[dict[str, torch.Tensor]]] = []

    def on_train_batch_end(self, trainer, pl_module, *arguments):
        super().on_train_batch_end(trainer, pl_module, *arguments)
        SwaRecorder.history.append(copy.deepcopy(pl_module.model.state_dict()))


def test_the_stochastic_average_is_the_mean_of_the_last_weights(monkeypatch, tmp_path):
    """Of nine steps those after 4, 6 and 8 count; batch normalisation is as torch's update_bn measures it."""
    monkeypatch.setattr(trainer, "StochasticAverage", SwaRecorder)
    SwaRecorder.history = []
    words = [word for word in SWA if "checkpoint" not in word]
    train(tmp_path / "run", *words, "model.survival=1.0", "augment=none")
    last, history = load_last(tmp_path / "run"), SwaRecorder.history
    names = [name for name, value in history[0].items() if value.is_floating_point() and "running" not in name]
    for name in names:
        expected = torch.stack([history[step - 1][name].double() for step in (4, 6, 8)]).mean(0)
        torch.testing.assert_close(last["state_dict"][f"model.{name}"].double(), expected, rtol=1e-5, atol=1e-6)
    config = OmegaConf.create(RunDir(tmp_path / "run").read_config())
    task: Any
    task, data = evaluation.restore(config, RunDir(tmp_path / "run"), "last"), build.build_data(config)
    measured = {name: value.clone() for name, value in task.model.state_dict().items() if "running" in name}
    batches = list(data.read("train", [torch.arange(start, start + 32) for start in (0, 32, 64)]))
    update_bn([task.augment.normalize(batch.images) for batch in batches], task.model)
    for name, value in measured.items():
        torch.testing.assert_close(task.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", range(1, 10))
def test_a_killed_run_with_a_stochastic_average_ends_in_the_same_bits(step, monkeypatch, tmp_path):
    train(tmp_path / "whole", *SWA)
    crash(monkeypatch, tmp_path / "killed", "on_train_batch_end", step, *SWA)
    train(tmp_path / "killed", *SWA)
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert_equal_tree(load_last(tmp_path / "whole")[TRAINED], load_last(tmp_path / "killed")[TRAINED], "trained")


def test_the_metrics_of_training_do_not_see_that_batch_norm_is_measured(tmp_path):
    train(tmp_path / "plain")
    train(tmp_path / "average", *SWA)
    plain, average = (RunDir(tmp_path / name).read_metrics() for name in ("plain", "average"))
    assert [row["train/loss"] for row in plain] == [row["train/loss"] for row in average]
    assert_equal_tree({name: value for name, value in load_last(tmp_path / "plain")["state_dict"].items()
                       if name.startswith("model.")}, load_last(tmp_path / "average")[TRAINED], "weights")


def test_what_is_saved_with_a_stochastic_average_is_what_was_validated(tmp_path):
    result = train(tmp_path / "run", *SWA)
    loaded = load(tmp_path / "run")
    assert loaded.evaluate("val")["val/accuracy"] == pytest.approx(result["val/accuracy"])
    assert loaded.evaluate("val", checkpoint="last") == pytest.approx(read_validation(tmp_path / "run", step=9))
