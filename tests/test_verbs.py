"""A run as its user drives it: train, the same again, resume, eval, predict, sweeps; a model and data of one's own."""

import csv
import json
import math
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from dltrain import __version__ as dltrain_version
from dltrain import cli, evaluation, reporting, run
from dltrain.build import build_data
from dltrain.commands.stored import load_config
from dltrain.run_dir import RunDir
from tests.conftest import TINY
from tests.tiny import FewDigits

SMALL = [word for word in TINY if not word.startswith("data._target_")]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_what_was_promised(dltrain, tmp_path):
    code, out, err = dltrain(*TINY)
    assert (code, err) == (0, "")
    folder = next((tmp_path / "outputs/sdresnet56-on-digits").iterdir())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "command.txt", "environment.json", "metrics.csv", "checkpoints", "log.txt", "result.json",
            "samples"} <= names
    assert not {"error.txt", ".hydra"} & names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    for path in folder.rglob("*"):
        assert not {"=", ":", " "} & set(path.name), path
    text = (folder / "config.yaml").read_text()
    assert "  batch_size: 32  # int >= 1: images" in text, "each key with its rule"
    config = yaml.safe_load(text)
    assert config["version"] == dltrain_version
    assert config["model"]["num_classes"] == 10, "interpolations are resolved"
    assert config["choices"]["model"] == "sdresnet56"
    result = json.loads((folder / "result.json").read_text())
    assert all(not isinstance(value, dict | list) for value in result.values()), "one flat object"
    assert {"test/accuracy", "test/loss", "val/accuracy", "seconds", "steps", "folder"} <= result.keys()
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["torch"], environment["dltrain"]) == (torch.__version__, dltrain_version)
    rows = table(folder / "metrics.csv")
    assert {"step", "epoch", "train/loss", "train/accuracy", "lr", "images_per_second"} <= rows[0].keys()
    assert [row["step"] for row in rows if row["val/accuracy"]] == ["3", "6", "9"]
    ending = out.strip().splitlines()[-6:]
    assert ending[0].startswith("test/accuracy")
    assert "dltrain predict run=" in ending[-2]
    assert "tensorboard --logdir" in ending[-1]


def test_tensorboard_shows_scalars_pictures_and_hparams(dltrain, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    dltrain("name=a", "trainer.log_every_n_steps=1", *TINY)
    board = EventAccumulator(str(tmp_path / "outputs/a"), size_guidance={"images": 0})
    board.Reload()
    tags = board.Tags()
    assert {"train/loss", "train/accuracy", "lr", "images_per_second", "val/accuracy", "val/loss"} <= {*tags["scalars"]}
    assert {"train/augmented_batch", "val/confusion", "test/confusion"} <= {*tags["images"]}
    assert len(board.Scalars("train/loss")) == 9
    assert [event.step for event in board.Scalars("val/accuracy")] == [3, 6, 9]
    result = json.loads((tmp_path / "outputs/a/result.json").read_text())
    for tag, value in (("test/accuracy", result["test/accuracy"]), ("best/accuracy", result["val/accuracy"])):
        assert [(event.step, event.value) for event in board.Scalars(tag)] == [(9, pytest.approx(value))]


def test_tensorboard_compares_runs_by_numbers_and_shows_the_loss_first(dltrain, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    dltrain("name=a", *TINY, "trainer.log_every_n_steps=2", "task.schedule.warmup_steps=1")
    board = EventAccumulator(str(tmp_path / "outputs/a"), size_guidance={"tensors": 0})
    board.Reload()
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    numbers = {key: value.number_value for key, value in values.items() if value.WhichOneof("kind") == "number_value"}
    assert numbers == {"seed": 0, "data.batch_size": 32, "task.optimizer.lr": 0.05, "task.optimizer.weight_decay": 1e-4,
                       "trainer.max_epochs": 3, "model.depth": 8, "task.schedule.warmup_steps": 1,
                       "trainer.log_every_n_steps": 2}
    assert values["model"].string_value == "sdresnet56"
    (layout,) = board.Tensors("custom_scalars__config__")
    charts = Layout.FromString(layout.tensor_proto.string_val[0]).category[0].chart
    assert [chart.title for chart in charts[:2]] == ["loss", "accuracy"]
    tags, shown = board.Tags()["scalars"], [[*chart.multiline.tag] for chart in charts]
    matches = [[tag for tag in tags if any(re.fullmatch(pattern, tag) for pattern in patterns)] for patterns in shown]
    assert matches == [["train/loss", "val/loss"], ["train/accuracy", "val/accuracy"], ["lr"], ["train/gradient_norm"],
                       ["images_per_second"]]


def test_same_name_again_changed_or_not(dltrain, finished_run):
    code, out, _ = dltrain("name=a", *TINY)
    assert code == 0
    assert "outputs/a is finished" in out
    code, _, err = dltrain("name=a", "task.optimizer.momentum=0.5", *TINY)
    assert code == 2
    assert "outputs/a began with another config: task.optimizer.momentum (0.9, now 0.5)" in err
    code, _, err = dltrain("resume", "run=outputs/a", "trainer.max_epochs=9")
    assert (code, err.count("trainer.max_epochs cannot change in a run that has started")) == (2, 1)
    assert err.endswith("; a new run with model.pretrained.from_run=outputs/a begins with its weights\n")


def test_resume_eval_and_predict_need_the_folder_alone(dltrain, finished_run):
    folder = finished_run
    accuracy = json.loads((folder / "result.json").read_text())["test/accuracy"]
    code, out, _ = dltrain("eval", "run=outputs/a", "data.batch_size=7")
    assert code == 0
    assert f"test/accuracy {accuracy:.4f}" in out
    assert json.loads((folder / "eval.json").read_text())["test/accuracy"] == pytest.approx(accuracy)
    code, out, _ = dltrain("predict", "run=outputs/a", "input=outputs/a/samples")
    assert code == 0
    records = json.loads((folder / "predictions.json").read_text())
    assert len(records) == 10
    assert all(len(record["top"]) == 5 for record in records)
    third, fifth = (str(folder / "samples" / Path(records[number]["file"]).name) for number in (3, 5))
    code, out, _ = dltrain("predict", "run=outputs/a", f"input={third},{fifth}")
    assert code == 0
    again = json.loads((folder / "predictions_2.json").read_text())
    assert [record["top"] for record in again] == [records[3]["top"], records[5]["top"]]
    (folder / "result.json").unlink()
    code, out, _ = dltrain("resume", "run=outputs/a")
    assert code == 0
    assert json.loads((folder / "result.json").read_text())["test/accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(("words", "code", "message"), [
    (["predict", "run=outputs/a"], 2, "predict needs input="),
    (["predict", "run=outputs/a", "input=none.png"], 3, "input=none.png: no such file"),
    (["predict", "run=outputs/a", "input=outputs/a/checkpoints"], 3, "no images in this folder"),
    (["predict", "run=outputs/a", "input=outputs/a/config.yaml"], 3, "config.yaml: not an image"),
    (["eval", "run=outputs/a", "data.batchsize=3"], 2, "unknown key 'data.batchsize'; did you mean 'data.batch_size'"),
    (["eval", "run=outputs/a", "model.depth=14"], 2, "model.depth cannot change"),
    (["resume", "run=outputs/a", "task.optimizer.lr=1"], 2, "task.optimizer.lr cannot change"),
    (["eval", "run=outputs/a", "split=dev"], 2, "split=dev: must be test or val or train"),
    (["trainer=gpu"], 6, "trainer.accelerator=gpu: torch sees no GPU"),
    (["data=cifar10", "data.download=false"], 3, "CIFAR10 is not in data"),
    (["trainer.max_epochs=null", "recipe=none"], 2, "one must say how long to train"),
    (["task.optimizer.name=sdg", "recipe=none"], 2, "task.optimizer.name='sdg': must be one of sgd, adam"),
    (["model._target_=dltrain.models.nothing.Net", "recipe=none"], 2, "dltrain.models.nothing"),
    (["+model.width=3", "recipe=none"], 2, "model (CifarResNet): got an unexpected keyword argument 'width'"),
    (["augment=strong"], 2, "augment (Augment): on_pixels.0 (ColorJitter): hue and saturation must be 0 for grey"),
    (["augment.on_normalized=[{_target_:dltrain.augment.erasing.Cutout,px:9}]"], 2,
     "on_normalized.0 (Cutout): px must be at most the image's 8, but is 9"),
    (["augment.on_normalized=[{_target_:dltrain.augment.geometry.HorizontalFlip,p:1.5}]"], 2,
     "augment.on_normalized.0 (HorizontalFlip): p must be in [0, 1], but is 1.5"),
])
def test_mistakes_are_one_line_with_their_exit_code(words, code, message, dltrain, tmp_path, tiny_run):
    if "run=outputs/a" in words:
        shutil.copytree(tiny_run, tmp_path / "outputs/a")
    actual, _, err = dltrain(*words)
    assert (actual, err.count("\n")) == (code, 1), err
    assert err.startswith("dltrain: error: ")
    assert message in err
    assert not list((tmp_path / "outputs").glob("*-on-*/*")), "the run did not start, so nothing is left"


def test_sweep_ends_with_a_table_of_all_jobs(dltrain, tmp_path, without_figures):
    code, out, err = dltrain("-m", "model=plain20,resnet20", "trainer=smoke", "recipe=none", "model.depth=8")
    assert (code, err) == (0, "")
    sweep = next((tmp_path / "outputs/sweeps").iterdir())
    assert sorted(p.name.partition("-")[0] for p in sweep.iterdir() if p.is_dir()) == ["plain20", "resnet20"]
    rows = table(sweep / "results.csv")
    assert {row["model"] for row in rows} == {"plain20", "resnet20"}
    values = [float(row["val/accuracy"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert "2 of 2 jobs done" in out


def test_a_folder_with_other_files_is_not_removed(dltrain, tmp_path):
    (tmp_path / "outputs/photos").mkdir(parents=True)
    (tmp_path / "outputs/photos/a.txt").write_text("mine")
    code, _, _ = dltrain("name=photos", "data=cifar10", "data.download=false")
    assert code == 3
    assert (tmp_path / "outputs/photos/a.txt").read_text() == "mine"


def test_the_best_job_of_a_sweep_is_that_of_the_validation(dltrain, tmp_path, without_figures):
    dltrain("-m", "name=s", "seed=0,1", "model.depth=8", "trainer=smoke", "recipe=none")
    for file, (val, test) in zip(tmp_path.glob("outputs/s/*/result.json"), ((0.9, 0.1), (0.8, 0.7)), strict=True):
        file.write_text(json.dumps({**json.loads(file.read_text()), "val/accuracy": val, "test/accuracy": test}))
    from dltrain.sweeps.finish import finish

    finish(tmp_path / "outputs/s", "s")
    assert [row["val/accuracy"] for row in table(tmp_path / "outputs/s/results.csv")] == ["0.9000", "0.8000"]


def test_experiment_may_be_a_sweep(dltrain, tmp_path, without_figures, real_pictures):
    own = tmp_path / "own/experiment"
    own.mkdir(parents=True)
    (own / "seeds.yaml").write_text("# @package _global_\n# Two seeds\nhydra:\n  mode: MULTIRUN\n  sweeper:\n"
                                    "    params:\n      seed: 3,4\n")
    mine = ("--config-dir", str(tmp_path / "own"), "experiment=seeds", "trainer=smoke", "recipe=none", "model.depth=8")
    code, out, _ = dltrain(*mine, "name=a")
    assert code == 0
    assert "2 of 2 jobs done" in out
    picture = Image.open(tmp_path / "outputs/a/results.png")
    assert picture.width > 800
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    code, out, _ = dltrain(*mine, "name=b", "seed=5", "model.depth=8,14")  # the command line says what is swept over
    assert "2 of 2 jobs done" in out
    rows = table(tmp_path / "outputs/b/results.csv")
    assert {row["model.depth"] for row in rows} == {"8", "14"}
    code, out, _ = dltrain("why", "seed", *mine[:3])
    assert "the experiment's sweep, first job 3" in " ".join(out.split())


MODEL = '''
import torch

class TwoLayers(torch.nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(width), torch.nn.ReLU(),
                                       torch.nn.LazyLinear(num_classes))
        self.net(torch.zeros(1, 1, 8, 8))

    def forward(self, images):
        return self.net(images)
'''
MODEL_YAML = """# @package _global_
# Two linear layers
defaults:
  - /task: classification
model:
  _target_: mine.TwoLayers
  width: 32  # int >= 1: hidden units
  num_classes: ${data.num_classes}
"""
DATA = '''
import torch
from dltrain.data.classification import InMemoryImages, Split

class Stripes(InMemoryImages):
    """Bright rows or bright columns."""

    def load(self):
        draws = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 2, (300,), generator=draws)
        images = torch.randint(0, 90, (300, 1, 8, 8), generator=draws, dtype=torch.uint8)
        images[labels == 0, :, ::2] += 150
        images[labels == 1, :, :, ::2] += 150
        self.splits = {"train": Split(images[:200], labels[:200]), "val": Split(images[200:250], labels[200:250]),
                      "test": Split(images[250:], labels[250:])}
        self.class_names = ["rows", "columns"]
'''
DATA_YAML = """# @package _global_
# Rows or columns
data:
  _target_: mine.Stripes
  batch_type: ClassificationBatch
  channels: 1
  num_classes: 2
  image_px: 8
  batch_size: 50  # int >= 1: images a step
"""


def test_an_own_model_and_own_data_train(dltrain, tmp_path, monkeypatch):
    """The README's claim: a file and a few lines each, outside the package, and they train."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MODEL + DATA)
    recipe = "# @package _global_\n# Mine\ntrainer:\n  max_epochs: 8\n"
    for name, text in {"model/two_layers": MODEL_YAML, "data/stripes": DATA_YAML,
                       "recipe/two_layers-on-stripes": recipe}.items():
        path = tmp_path / f"conf/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(MODEL_YAML.splitlines()) <= 9
    code, out, err = dltrain("--config-dir", "conf", "model=two_layers", "data=stripes", "name=mine")
    assert (code, err) == (0, "")
    assert "recipe two_layers-on-stripes" in out
    result = json.loads((tmp_path / "outputs/mine/result.json").read_text())
    assert result["test/accuracy"] > 0.9
    assert dltrain("predict", "run=outputs/mine", "input=outputs/mine/samples")[0] == 0


def test_show_draws_a_row_for_the_whole_and_for_each_transform(dltrain, tmp_path):
    from PIL import Image

    from dltrain.drawing.pipeline import LABEL_PX, SIDE_PX

    code, out, _ = dltrain("show", "augment.on_pixels=[{_target_:dltrain.augment.colour.GaussianNoise,"
                           "std:0.1},{_target_:dltrain.augment.mixing.Mixup,alpha:1,num_classes:10}]")
    assert (code, out) == (0, "outputs/show/digits-on-digits.png\noutputs/show/augmented_batch-of-digits.png\n")
    with Image.open(tmp_path / "outputs/show/digits-on-digits.png") as picture:
        assert picture.height == 26 + 2 * (1 + 3) * (SIDE_PX + 6)
        tops = [26 + row * (SIDE_PX + 6) for row in range(8)]
        originals = [picture.crop((LABEL_PX, top, LABEL_PX + SIDE_PX, top + SIDE_PX)) for top in tops]
    assert all(one.tobytes() == originals[0].tobytes() for one in originals[:4])
    assert originals[4].tobytes() != originals[0].tobytes()
    code, _, err = dltrain("show", "augment=strog")
    assert code == 2
    assert "did you mean 'strong'" in err


def test_eval_measures_any_split_with_the_best_or_the_last_weights(dltrain, finished_run):
    folder = finished_run
    result, rows = json.loads((folder / "result.json").read_text()), RunDir(folder).read_metrics()
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    for name in ("model.head.weight", "model.head.bias"):
        last["state_dict"][name].zero_()  # every class is as likely as the others
    torch.save({**last, "global_step": 6}, folder / "checkpoints/last.ckpt")
    best = next(row for row in rows if row["val/loss"] and int(row["epoch"]) == result["best_epoch"])
    for checkpoint, loss, step in (("best", float(best["val/loss"]), int(best["step"])), ("last", math.log(10), 6)):
        code, out, _ = dltrain("eval", "run=outputs/a", "split=val", f"checkpoint={checkpoint}")
        where = f"checkpoint {checkpoint}, epoch {step // 3}, step {step}"
        assert (code, out.splitlines()[-1]) == (0, f"40 samples of the val split, {where}; outputs/a/eval.json")
        stored = json.loads((folder / "eval.json").read_text())
        assert stored["val/loss"] == pytest.approx(loss, rel=1e-4)
        assert [stored[key] for key in ("split", "samples", "checkpoint", "epoch", "step")] == [
            "val", 40, checkpoint, step // 3, step]
    code, out, _ = dltrain("eval", "run=outputs/a", "split=train", "data.batch_size=7")
    assert "96 samples of the train split" in out
    config = load_config(RunDir(folder), {}, ())
    images, labels = cast(FewDigits, build_data(config)).splits["train"]
    with torch.no_grad():
        logits = evaluation.restore(config, RunDir(folder))(images)
    stored = json.loads((folder / "eval.json").read_text())
    assert stored["train/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    assert stored["train/accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert dltrain("eval", "run=outputs/a", "checkpoint=lst")[2].endswith("checkpoint=lst: must be best or last\n")
    assert dltrain("eval", "run=outputs/a", "split=tests")[2].endswith("split=tests: must be test or val or train\n")
    (folder / "checkpoints/last.ckpt").unlink()
    code, _, err = dltrain("eval", "run=outputs/a", "checkpoint=last")
    assert (code, "no last checkpoint yet; dltrain resume run=outputs/a" in err) == (2, True)


def test_a_reader_that_closes_the_output_ends_nothing(finished_run, config, tmp_path, monkeypatch, without_figures):
    commands = [partial(cli.dispatch, ["eval", "run=outputs/a"]),
                partial(cli.dispatch, ["predict", "run=outputs/a", "input=outputs/a/samples"]),
                partial(reporting.report, RunDir(finished_run),
                        partial(run.train, config(*TINY), RunDir.named(tmp_path, "b")))]
    for command in commands:
        reading, writing = os.pipe()
        os.close(reading)  # as `| true` does
        with open(writing, "w", buffering=1) as output, monkeypatch.context() as patch:
            patch.setattr("sys.stdout", output)
            assert command() == 0
    assert {"eval.json", "predictions.json"} <= {file.name for file in finished_run.iterdir()}
    assert (tmp_path / "b/result.json").is_file()


def test_eval_changes_the_regime_and_nothing_else(dltrain, finished_run):
    folder = finished_run
    before = {path: path.read_bytes() for path in (folder / "config.yaml", folder / "checkpoints/best.ckpt")}
    _, single, _ = dltrain("eval", "run=outputs/a")
    for regime in ("flip", "ten_crop", "scales_max"):
        code, out, _ = dltrain("eval", "run=outputs/a", f"augment.test={regime}", "augment.test_scales=[1.5]")
        assert code == 0
        assert out != single
    assert json.loads((folder / "eval.json").read_text())["augment.test"] == "scales_max"
    assert all(path.read_bytes() == content for path, content in before.items())
    code, _, err = dltrain("eval", "run=outputs/a", "augment.test=ten_crops")
    assert code == 2
    assert "augment.test=ten_crops: must be one of single, flip, ten_crop, scales_mean, scales_max" in err


def test_mixed_labels_train(dltrain, tmp_path):
    code, _, err = dltrain("name=a", "augment.on_normalized=[{_target_:dltrain.augment.mixing.CutMix,alpha:1,"
                           "num_classes:10}]", "augment.normalize=whiten", *TINY)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "outputs/a/result.json").read_text())["test/accuracy"] > 0


def test_ls_runs_compares(dltrain, finished_run):
    _, out, _ = dltrain("ls", "runs")
    assert re.search(r"run +model on data +state +test/accuracy +val/accuracy +time\n"
                     r" +outputs/a +sdresnet56 on digits +done( +0\.\d{4}){2} +\d+ s\n1 run: 1 done\n", out)


def test_smoke_takes_two_steps_of_everything(dltrain, tmp_path):
    code, _, _ = dltrain("trainer=smoke", "name=a")
    assert code == 0
    assert json.loads((tmp_path / "outputs/a/result.json").read_text())["steps"] == 2


def test_predictions_are_printed_line_by_line(dltrain, monkeypatch, without_figures):
    """Only a language model prints as it writes; the others write each prediction at once."""
    import builtins

    dltrain("name=a", "trainer=smoke", "model.depth=8", "recipe=none")
    written: list[str] = []
    monkeypatch.setattr(builtins, "print", lambda *words, **keys: written.append(" ".join(map(str, words))))
    assert dltrain("predict", "run=outputs/a", "input=outputs/a/samples")[0] == 0
    assert len([text for text in written if "%" in text]) == 10, "one write per image"
