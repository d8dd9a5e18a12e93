"""Shared by the tests: a config as the command line would compose it, and runs that take less than a second."""

import gc
import os
import shutil
import sys
import tempfile

os.environ["DLTRAIN_CACHE"] = tempfile.mkdtemp(prefix="dltrain-tests-")  # not the user's
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # plain tests run on the CPU everywhere
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker per core: more threads wait for one another

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from omegaconf import DictConfig

from dltrain import cli, own_modules, trust
from dltrain.config.compose import compose
from dltrain.late_imports import collect_after_imports, import_plots_late, leave_out_imports
from tests.command_line import run_command

if TYPE_CHECKING:
    import pytorch_lightning as pl

# 96 digits in batches of 32 through a net of 8 layers that drops blocks: 3 batches an epoch, 9 steps in all
TINY = ["model=sdresnet56", "model.depth=8", "data.batch_size=32", "trainer.max_epochs=3", "trainer=cpu",
        "data._target_=tests.tiny.FewDigits", "trust=tests", "task.optimizer.lr=0.05"]

trust.trusted.add("tests")  # configs may name classes of the tests, wherever the current folder is

# a model for each batch type
MODELS = {"ClassificationBatch": "resnet20", "TokenBatch": "char_rnn", "LabelledBatch": "seq_classifier",
          "TaggedBatch": "tagger", "PairBatch": "seq2seq", "DetectionBatch": "faster_rcnn",
          "CaptionBatch": "captioner", "SegmentationBatch": "fcn8s"}


# The process that starts the workers imports no torch, and the others import it as the command does.
import_plots_late()
collect_after_imports()


def pytest_collection_finish() -> None:
    leave_out_imports()
    gc.set_threshold(50_000, 20, 20)  # a twentieth of the time of all tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="store the loss curves of this run as the golden ones")


@pytest.fixture(autouse=True)
def trust_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test trusts, or puts on the search path, the next one does not."""
    monkeypatch.setattr(trust, "trusted", {"tests"})
    monkeypatch.setattr(own_modules, "config_folders", [])
    monkeypatch.setattr(own_modules, "run_folders", set())
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(autouse=True)
def quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures by matplotlib take as long as a run of nine steps: confusion matrices are blank, and sweeps and
    comparisons draw none, but where a test takes the fixture `real_pictures`."""
    import torch

    monkeypatch.setattr("dltrain.tasks.multiclass.draw_confusion",
                        lambda matrix, names: torch.zeros(3, 8, 8, dtype=torch.uint8))
    if "real_pictures" not in request.fixturenames:
        monkeypatch.setattr("dltrain.sweeps.finish.draw", lambda *_: None)
        monkeypatch.setattr("dltrain.studies.comparison.draw_comparison", lambda *_: None)


@pytest.fixture
def real_pictures() -> None:
    """The pictures of sweeps and comparisons are drawn."""


@pytest.fixture
def config():
    """config("model=plain20", ...) -> the composed DictConfig, with its choices, as run.train takes it."""

    def composed(*words: str, config_dir: str | None = None) -> DictConfig:
        return compose(list(words), config_dir).job_config()

    return composed


@pytest.fixture
def dltrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """dltrain("train", ...) -> (exit code, standard output, standard error), in a new folder."""
    monkeypatch.chdir(tmp_path)
    return partial(run_command, monkeypatch, capsys)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """outputs/a: the tiny run, finished, as a command in this folder has made it. It is not to be changed."""
    folder = tmp_path_factory.mktemp("tiny_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["dltrain", "name=a", *TINY])
        patch.setattr("dltrain.trainer.Figures", no_figures)
        assert cli.main() == 0
    return folder / "outputs/a"


@pytest.fixture
def finished_run(tiny_run: Path, dltrain, tmp_path: Path) -> Path:
    """A copy of that run, as outputs/a of the current folder."""
    return Path(shutil.copytree(tiny_run, tmp_path / "outputs/a"))


@pytest.fixture
def run_folder(tmp_path: Path):
    """run_folder("a") -> a new folder for a run."""

    def create(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    return create


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing for TensorBoard, which takes half the time of a run of a few steps."""
    monkeypatch.setattr("dltrain.trainer.Figures", no_figures)


def no_figures(*_: object) -> "pl.Callback":
    import pytorch_lightning as pl

    return pl.Callback()
