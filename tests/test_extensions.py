"""A user's own parts by config alone: callbacks, loggers, metrics, figures, transforms, a schedule, an optimizer; and
what is refused."""

import csv
import re
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_recall

from dltrain.errors import UserError
from tests.conftest import TINY

CODE = '''\
import pytorch_lightning as pl
import torch

class Count(pl.Callback):
    def __init__(self, word):
        self.word, self.steps = word, 0

    def on_train_batch_end(self, *arguments):
        self.steps += 1

    def on_train_end(self, trainer, task):
        print(self.word, self.steps)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

class Darken:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, batch, rng):
        return batch._replace(images=batch.images * self.factor)

def halve(step, total_steps, period=10):
    return 0.5 ** (step // period)

def mean_image(task, batch, outputs):
    mean = batch.images.float().mean((0, 1)).to(torch.uint8)
    return {"mean": mean.expand(3, -1, -1), "count": f"{len(outputs)} images"}
'''
SMALL = ["model.depth=8", "data.batch_size=32", "data._target_=tests.tiny.FewDigits", "trainer=cpu", "name=a",
         "recipe=none"]
F1 = "+task.metrics.f1={_target_: torchmetrics.F1Score, task: multiclass, num_classes: 10, average: macro}"
RECALL = "+task.metrics.recall={_target_: torchmetrics.Recall, task: multiclass, num_classes: 10, average: none}"


@pytest.fixture(autouse=True)
def own_code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(CODE)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_callbacks_loggers_and_figures_see_the_run(dltrain, tmp_path):
    code, out, err = dltrain(*SMALL, "epochs=2", "trainer.loggers=[CSVLogger]", "task.figures=[mine.mean_image]",
                             "trainer.callbacks=[{_target_: mine.Count, word: counted}, LearningRateMonitor]")
    assert (code, err) == (0, "")
    assert "counted 6\n" in out
    (own,) = (tmp_path / "outputs/a/lightning_logs").glob("*/metrics.csv")
    (last,) = [row for row in rows_of(own.parent) if row["step"] == "6" and row["val/accuracy"]]
    (same,) = [row for row in rows_of(tmp_path / "outputs/a") if row["step"] == "6" and row["val/accuracy"]]
    assert float(last["val/accuracy"]) == pytest.approx(float(same["val/accuracy"]), abs=1e-5)
    events = EventAccumulator(str(tmp_path / "outputs/a"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert {"val/mean", "test/mean"} <= {*events.Tags()["images"]}
    assert {"val/count/text_summary"} <= {*events.Tags()["tensors"]}
    (tmp_path / "outputs/a/result.json").unlink()  # as if it had been stopped in the test
    assert dltrain("resume", "run=outputs/a")[0] == 0
    assert {event.step for event in events.Reload().Images("test/mean")} == {6}


def test_a_callback_keeps_its_state_when_a_run_is_resumed(dltrain, monkeypatch):
    words = (*SMALL, "epochs=3", "trainer.callbacks=[{_target_: mine.Count, word: counted}]")
    with monkeypatch.context() as patch:
        patch.setattr("dltrain.callbacks.progress.ProgressDisplay.on_train_epoch_start", stop_in_the_last_epoch)
        code, _, err = dltrain(*words)
        assert code == 8, "the line that raises is of the tests"
    assert "Stopped" in err
    code, out, err = dltrain("resume", "run=outputs/a")
    assert (code, err) == (0, "")
    assert "counted 9\n" in out


class Stopped(Exception):
    pass


def stop_in_the_last_epoch(self, trainer, task):
    if trainer.current_epoch == 2:
        raise Stopped("in epoch 3")


def test_early_stopping_ends_a_run(dltrain, tmp_path):
    callback = "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 100}"
    code, _, err = dltrain(*SMALL, "epochs=9", f"trainer.callbacks=[{callback}]")
    assert (code, err) == (0, "")
    assert '"steps": 6,' in (tmp_path / "outputs/a/result.json").read_text()


def test_metrics_stand_beside_the_headline_in_validation_and_test(dltrain, tmp_path, monkeypatch):
    seen: dict[str, list[torch.Tensor]] = {"logits": [], "labels": []}
    from dltrain.tasks.classification import Classification

    original = Classification.evaluation_step

    def note(self, batch, batch_idx=0):
        logits = original(self, batch, batch_idx)
        if self.trainer.testing:
            seen["logits"].append(logits)
            seen["labels"].append(batch.labels)
        return logits

    monkeypatch.setattr(Classification, "evaluation_step", note)
    code, _, err = dltrain(*SMALL, "epochs=1", F1, RECALL)
    assert (code, err) == (0, "")
    import json

    result = json.loads((tmp_path / "outputs/a/result.json").read_text())
    logits, labels = torch.cat(seen["logits"]), torch.cat(seen["labels"])
    assert result["test/f1"] == pytest.approx(float(multiclass_f1_score(logits, labels, 10)))
    recall = multiclass_recall(logits, labels, 10, average="none")
    assert [result[f"test/recall/{name}"] for name in range(10)] == pytest.approx(recall.tolist())
    (row,) = [row for row in rows_of(tmp_path / "outputs/a") if row["val/accuracy"]]
    assert row["val/f1"]
    assert dltrain("eval", "run=outputs/a", "split=val")[1].count("val/f1") == 1


def test_a_schedule_an_optimizer_and_a_transform_by_path(dltrain, tmp_path):
    code, _, err = dltrain(*SMALL, "epochs=2", "task.schedule.name=mine.halve", "+task.schedule.period=2", "lr=0.01",
                           "task.optimizer.name=torch.optim.NAdam", "+task.optimizer.momentum_decay=0.003",
                           "trainer.log_every_n_steps=1", "augment.on_pixels=[{_target_: mine.Darken, factor: 0.5}]")
    assert (code, err) == (0, "")
    rates = [float(row["lr"]) for row in rows_of(tmp_path / "outputs/a") if row["lr"]]
    assert rates == pytest.approx([0.01 * 0.5 ** (step // 2) for step in range(1, 7)])


def test_a_scheduler_of_torch_by_path(config):
    from dltrain import build

    composed = config(*TINY, "task.schedule.name=torch.optim.lr_scheduler.OneCycleLR", "+task.schedule.max_lr=0.4")
    data = build.build_data(composed)
    composed.class_names = data.class_names
    task = build.build_task(composed)
    task.total_steps = 10
    built = task.configure_optimizers()
    rates = []
    for _ in range(10):
        rates.append(built["lr_scheduler"]["scheduler"].get_last_lr()[0])
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step() if len(rates) < 10 else None
    assert max(rates) == pytest.approx(0.4)
    assert rates[0] < rates[2] > rates[-1]


@pytest.mark.parametrize(("words", "message"), [
    (["trainer.callbacks=[EarlyStoping]"], "pytorch_lightning.callbacks has no 'EarlyStoping'; did you mean "
                                           "'EarlyStopping'?"),
    (["trainer.callbacks=[{_target_: mine.Darken, factor: 1}]"], "must be a pytorch_lightning Callback"),
    (["trainer.callbacks=[{monitor: x}]"], "trainer.callbacks.0: must be a name or have _target_"),
    (["trainer.callbacks=[{_target_: mine.Count, wrd: x}]"], "trainer.callbacks.0 (Count): missing a required"),
    (["trainer.callbacks=3"], "trainer.callbacks=3: must be a list"),
    (["task.schedule.name=mine.halv"], "task.schedule.name=mine.halv: mine has no 'halv'; did you mean 'halve'?"),
    (["task.schedule.name=mine.halve", "+task.schedule.perod=3"], "unexpected keyword argument 'perod'"),
    (["task.schedule.name=cosin"], "task.schedule.name='cosin': must be one of step, cosine, triangular, constant, "
                                      "dotted.path"),
    (["task.optimizer.name=torch.optim.Adm"], "torch.optim has no 'Adm'; did you mean 'Adam'?"),
    (["task.figures=[mine.mean_imag]"], "mine has no 'mean_imag'; did you mean 'mean_image'?"),
    ([F1.replace("f1", "loss")], "task.metrics.loss: Classification has a metric of this name; choose another"),
    (["+task.metrics.mean={_target_: torchmetrics.MeanMetric}"], "task.metrics.mean (MeanMetric): "),
    (["+task.metrics.f1={_target_: torchmetrics.F1Scor}"], "torchmetrics has no 'F1Scor'; did you mean 'F1Score'?"),
    (["+task.optimizer.amsgrad=true"], "unknown key 'task.optimizer.amsgrad'"),
    (["+trainer.early_stopping=3"], "unknown key 'trainer.early_stopping'"),
    (["++trainer.max_epoch=1"], "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
    (["+foo=1"], "unknown key 'foo'; nothing reads it"),
    (["+model.widht=3"], "model (CifarResNet): got an unexpected keyword argument 'widht'"),
])
def test_refused_in_one_line(words, message, dltrain, tmp_path):
    code, _, err = dltrain(*SMALL, "epochs=1", *words)
    assert code == 2
    assert message in err
    assert err.count("dltrain: error: ") == 1


def test_a_yaml_without_its_package_line_is_named(dltrain, tmp_path):
    (tmp_path / "conf/model").mkdir(parents=True)
    text = "# Mine\ndefaults:\n  - /model/base/cifar_resnet\nmodel: {depth: 8}\n"
    (tmp_path / "conf/model/bare.yaml").write_text(text)
    code, _, err = dltrain("--config-dir", "conf", "model=bare")
    assert (code, err) == (2, "dltrain: error: conf/model/bare.yaml: must begin with the line '# @package _global_', "
                              "since it sets model.*\n")


@pytest.mark.parametrize("text", ["? [a]\n: 1", "a: !!int b", "a: !!bool b", "<<: 3", "a: 2001-99-99",
                                  "a: &x [1]\n*x : 2", "a: !!map [1]", 'a: !!float ""', f"a: {'9' * 6000}", "a: ${b"])
@pytest.mark.parametrize("words", [["experiment=mine", "--cfg", "job"], ["-m", "experiment=mine", "seed=1,2"],
                                   ["why", "seed", "experiment=mine"]])
def test_a_yaml_whose_values_cannot_be_built_is_named(words, text, dltrain, tmp_path):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    code, _, err = dltrain("--config-dir", "conf", *words)
    assert code == 2
    assert re.fullmatch(r"dltrain: error: \S*conf/experiment/mine\.yaml: .+\n", err)


def test_own_choices_are_known_before_and_after_every_verb(dltrain, tmp_path):
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine8.yaml").write_text(
        "# @package _global_\n# Eight layers\ndefaults:\n  - /model/base/cifar_resnet\nmodel: {depth: 8}\n")
    for words in (["ls", "models", "--config-dir", "conf"], ["--config-dir", "conf", "ls", "models"],
                  ["--config-dir=conf", "ls", "models"], ["ls", "models", "hydra.searchpath=[conf]"]):
        code, out, _ = dltrain(*words)
        assert code == 0
        assert "mine8" in out
        assert "Eight layers (conf/model/mine8.yaml)" in out
    assert dltrain("--config-dir", "conf", "why", "model.depth", "model=mine8")[1].startswith("model.depth = 8\n")
    assert "did you mean 'mine8'?" in dltrain("--config-dir", "conf", "model=mine9")[2]
    assert dltrain("--config-dir", "conf", "train", *SMALL[1:], "model=mine8", "epochs=1")[0] == 0
    assert dltrain("--config-dir", "conf", "eval", "run=outputs/a")[0] == 0
    assert dltrain("ls", "--config-dir", "none")[0] == 2


def test_a_metric_that_gets_nothing_is_named(config, run_folder):
    from dltrain import run
    from dltrain.run_dir import RunDir
    from dltrain.tasks.classification import Classification

    composed = config(*TINY, F1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classification, "update_own_metrics", lambda *_: None)
        with pytest.raises(UserError, match=r"task\.metrics\.f1: Classification has nothing for it to compare"):
            run.train(composed, RunDir(run_folder("b")))
