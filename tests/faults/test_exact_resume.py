"""Row 1 for every model: each yaml below configs/model is trained on a few small samples, killed inside a step, and
continued to the bits of a run that nothing stopped. A model that has no line in SMALLER is tested as it is."""

import copy
import os
import random
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytorch_lightning as pl

from dltrain import run, trainer
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.callbacks.step_seeds import StepSeeds
from dltrain.config import groups
from dltrain.config.compose import compose
from dltrain.data import scenes
from dltrain.data.loader import SplitLoaders, TrainLoader
from dltrain.errors import MachineError
from dltrain.run_dir import RunDir
from tests.test_resume import Crash, assert_same, read_metrics

pytestmark = pytest.mark.usefixtures("without_figures")

# Two epochs of three steps, each of them saved.
SHORT = ("trainer=cpu", "trainer.max_epochs=2", "trainer.max_steps=null", "data.batch_size=2", "recipe=none",
         "trainer.checkpoint_every_steps=1", "trainer.log_every_n_steps=1")

# A few samples of each batch type. FOLDER is that with the files of `write_texts`.
SAMPLES = {
    "ClassificationBatch": ("data=scene_digits", "data.num_train=6", "data.image_px=32", "data.digits=[3,5]"),
    "DetectionBatch": ("data=scenes", "data.num_train=6"),
    "SegmentationBatch": ("data=scene_masks", "data.num_train=6", "data.image_px=64", "data.sizes_px=[20,40]"),
    "CaptionBatch": ("data=scene_captions", "data.num_train=6"),
    "TokenBatch": ("data=text", "data.root=FOLDER/story.txt", "data.window=64"),
    "LabelledBatch": ("data=labelled_text", "data.root=FOLDER/labelled"),
    "TaggedBatch": ("data=conll", "data.root=FOLDER/tagged"),
    "PairBatch": ("data=pairs", "data.root=FOLDER/pairs"),
}

DEEP_CIFAR = ("plain32", "plain44", "plain56", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
              "sdresnet56", "sdresnet110")
# What makes a model small enough, beside its samples; and what is random or changes with the epoch: dropout, words and
# pixels that are chosen, stages that are frozen.
SMALLER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(DEEP_CIFAR, ("model.depth=14",)),
    **dict.fromkeys(("plain20", "resnet20"), ("model.depth=8",)),
    **dict.fromkeys(("vgg16", "vgg19"), ("model.depth=11",)),
    **dict.fromkeys(("vgg11_cifar", "vgg16_cifar", "vgg19_cifar"), ("model.width=4",)),
    **dict.fromkeys(("resnet101", "resnet152"), ("model.depth=50",)),
    **dict.fromkeys(("faster_rcnn", "fast_rcnn", "rcnn"), ("model.backbone.depth=8", "model.hidden=16",
                                                           "data.image_px=32", "data.sizes_px=[10,20]")),
    "localizer": ("model.backbone.depth=8", "data.max_objects=1", "data.image_px=32", "data.sizes_px=[10,20]"),
    "overfeat": ("model.width=4", "model.hidden=16"),
    **dict.fromkeys(("fcn8s", "fcn16s", "fcn32s", "dilated"), ("model.backbone.width=4", "model.hidden=8")),
    "hypercolumn": ("model.backbone.width=4", "model.hidden=8", "task.pixels=32", "augment=segmentation",
                    "task.freezing.until=conv4", "task.freezing.unfreeze_every_epochs=1"),
    "alexnet": ("data.image_px=64", "task.optimizer.lr=0.001"),
    "lite0": ("data.image_px=64", "task.optimizer.lr=0.001"),
    "resnet164": ("model.depth=11",),
    "captioner": ("model.backbone.depth=8", "model.dropout=0.3", "task.sampled_share=0.5", "task.freezing.until=all",
                  "task.freezing.unfreeze_every_epochs=1"),
    "char_rnn": ("model.hidden=16", "model.dropout=0.3"),
    "seq2seq": ("model.hidden=16", "model.dropout=0.3"),
    "seq_classifier": ("model.hidden=16", "model.layers=2", "model.dropout=0.3"),
    "tagger": ("model.hidden=16", "model.dropout=0.3"),
    "airbench94": ("model.widths=[8,8,8]",),
    "faster_rcnn_lite0": ("model.hidden=16",),
    "faster_rcnn_vgg16": ("model.hidden=16", "model.short_px=64", "model.anchor_px=[16,32]"),
    "faster_rcnn_resnet50": ("model.hidden=16", "model.short_px=64", "model.anchor_px=[8,16,32,64,128]"),
}

# Of each family one model is in plain pytest, the others are slow.
QUICK = ("resnet20", "captioner", "char_rnn", "faster_rcnn", "hypercolumn", "seq2seq", "seq_classifier", "tagger")
TWO_PROCESSES = ("fcn8s", "vgg11_cifar", "localizer", "overfeat",
                 *(model for model in QUICK if model != "hypercolumn"))


def write_texts(folder: Path) -> None:
    """Texts with as many samples as the scenes: six for training, a few for validation and test."""
    (folder / "story.txt").write_text("".join(f"day {number} of the year\n" for number in range(30)))
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for kind, line in (("labelled", "{label}\tday {number}\n"), ("pairs", "day {number}\tTag {number}\n"),
                           ("tagged", "1\tday\tx\tA\n2\t{number}\tx\tB\n\n")):
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / f"{split}.txt").write_text("".join(
                line.format(label="ab"[number % 2], number=number) for number in range(count)))


def words_of(model: str, folder: Path) -> list[str]:
    batch_type = compose([f"model={model}"]).config.task.batch_type
    words = (*SAMPLES[batch_type], *SHORT, *SMALLER.get(model, ()))
    return [f"model={model}", *(word.replace("FOLDER", str(folder)) for word in words)]


@pytest.fixture
def few_scenes(monkeypatch, tmp_path):
    monkeypatch.setattr(scenes, "NUM_EVAL_IMAGES", 2)
    write_texts(tmp_path)


def crash_inside(monkeypatch, step: int) -> None:
    """Makes a run raise Crash in the step after `step`, between the gradients and the optimizer."""

    class Crashing(Checkpointing):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.global_step == step:
                raise Crash

    monkeypatch.setattr(trainer, "Checkpointing", Crashing)


def row_01(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(model, folder)
    straight, killed = (RunDir(folder / name) for name in ("straight", "killed"))
    for run_dir in (straight, killed):
        run_dir.path.mkdir()
    config = compose(words).job_config()
    steps = run.train(copy.deepcopy(config), straight)["steps"]
    assert steps >= 4
    step = random.Random(model).randrange(1, steps)
    with monkeypatch.context() as patch:
        crash_inside(patch, step)
        with pytest.raises(Crash):
            run.train(copy.deepcopy(config), killed)
    run.train(copy.deepcopy(config), killed)
    assert f"resuming {killed} from step {step} of {steps}" in (killed.path / "log.txt").read_text()
    assert_same(killed.path, straight.path)
    assert without_speed(killed) == without_speed(straight)


def without_speed(run_dir: RunDir) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if not key.endswith("_per_second")}
            for row in read_metrics(run_dir.path)]


@pytest.mark.parametrize("model", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
                                   for name in groups.names("model")])
def test_row_01_d_every_model_continues_to_the_same_bits(model, few_scenes, tmp_path, monkeypatch):
    """Every model that dltrain has, killed inside a random step, ends in the same bits: weights, optimizer, schedule,
    best weights and metrics."""
    if model == "timm" and find_spec("timm") is None:
        pytest.skip("timm is not installed")
    row_01(model, tmp_path, monkeypatch)


def test_row_01_d_control(few_scenes, tmp_path, monkeypatch):
    """Without the seed of each step, a new process draws other random numbers for dropout."""
    monkeypatch.setattr(StepSeeds, "on_train_batch_start", lambda *_: None)
    with pytest.raises(AssertionError, match="weights"):
        row_01("char_rnn", tmp_path, monkeypatch)


def test_row_01_d_control_without_position(few_scenes, tmp_path, monkeypatch):
    """Without its place in the order of the samples, a run begins its epoch anew."""
    for owner in (TrainLoader, SplitLoaders):
        monkeypatch.setattr(owner, "load_state_dict", lambda *_: None)
    with pytest.raises(AssertionError, match="weights"):
        row_01("tagger", tmp_path, monkeypatch)


def test_what_is_stated_about_models_is_about_models_that_there_are():
    assert {*SMALLER, *QUICK} <= {*groups.names("model")}


# two processes


class KillAtStep(pl.Callback):
    """Kills its process inside the step after DLTRAIN_TEST_KILL_AT, as each process of a run does."""

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == int(os.environ.get("DLTRAIN_TEST_KILL_AT", "-1")):
            os.kill(os.getpid(), signal.SIGKILL)


def start(words: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dltrain", *words], cwd=cwd, timeout=300, text=True,
                          capture_output=True, env={**os.environ, **environment, "PYTHONPATH": os.getcwd(),
                                                    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.slow
@pytest.mark.parametrize("model", TWO_PROCESSES)
def test_row_01_e_two_processes_continue_to_the_same_bits(model, tmp_path):
    """A run of two processes, both killed inside a random step, ends in the same bits by the same command. Inside the
    second step the first save may still be under way."""
    write_texts(tmp_path)
    words = [*words_of(model, tmp_path), "trainer.devices=2", "data.batch_size=1",
             "trust=[tests]", "trainer.callbacks=[{_target_: tests.faults.test_exact_resume.KillAtStep}]"]
    straight = start([*words, "name=straight"], tmp_path)
    assert straight.returncode == 0, straight.stderr
    step = random.Random(model).randrange(2, 6)
    killed = start([*words, "name=killed"], tmp_path, DLTRAIN_TEST_KILL_AT=str(step))
    assert (killed.returncode, "killed by SIGKILL" in killed.stderr) == (MachineError.exit_code, True)
    again = start([*words, "name=killed"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming outputs/killed from step " in again.stdout
    assert_same(tmp_path / "outputs/killed", tmp_path / "outputs/straight")
