"""A run that is killed at any step, however often, ends in the same bits: weights, optimizer, sample order, metrics."""

import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import pytorch_lightning as pl
import torch

from dltrain import checkpoints, run, run_pause, trainer
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.config.compose import compose
from dltrain.data.loader import TrainLoader
from dltrain.run_dir import RunDir
from tests.conftest import TINY
from tests.tiny import FewDigits

pytestmark = pytest.mark.usefixtures("without_figures")

STEPS = 9

Batches = list[tuple[int, ...]]  # the sample indices of each training batch


class Crash(Exception):
    pass


class Reference(NamedTuple):
    """An uninterrupted run."""

    path: Path
    batches: Batches
    result: dict[str, Any]


@cache
def compose_once(words: tuple[str, ...]) -> bytes:
    return pickle.dumps(compose([*words]).job_config())


def train(path: Path, *words: str) -> dict[str, Any]:
    """Trains the tiny run, with more words, in a folder: from the start, or from where it crashed."""
    path.mkdir(exist_ok=True)
    return run.train(pickle.loads(compose_once((*TINY, *words))), RunDir(path))


def crash_at(monkeypatch, hook: str, is_due: Callable[[pl.Trainer], bool]) -> None:
    """Makes Checkpointing raise Crash at the end of `hook` if is_due(trainer)."""

    class Crashing(Checkpointing):
        pass

    def crash_after(self, trainer, *args, **kwargs):
        getattr(Checkpointing, hook)(self, trainer, *args, **kwargs)
        if is_due(trainer):
            raise Crash

    setattr(Crashing, hook, crash_after)
    monkeypatch.setattr(trainer, "Checkpointing", Crashing)


def load_last(path: Path) -> dict[str, Any]:
    return torch.load(path / "checkpoints/last.ckpt", weights_only=True)


def assert_same(left: Path, right: Path) -> None:
    a, b = load_last(left), load_last(right)
    assert a["global_step"] == b["global_step"]
    assert_equal_tree(a["state_dict"], b["state_dict"], "weights")
    assert_equal_tree(a["optimizer_states"], b["optimizer_states"], "optimizer")
    assert_equal_tree(a["lr_schedulers"], b["lr_schedulers"], "schedule")
    assert_equal_tree(a["loops"], b["loops"], "loops")
    best_a, best_b = (torch.load(p / "checkpoints/best.ckpt", weights_only=True) for p in (left, right))
    assert_equal_tree(best_a["state_dict"], best_b["state_dict"], "best")


def assert_a_crash_changes_nothing(overrides: list[str], step: int, config, run_folder, monkeypatch) -> None:
    """A run that crashes after `step` and is started again ends in the same bits as one that does not crash."""
    uninterrupted, crashed = RunDir(run_folder("uninterrupted")), RunDir(run_folder("crashed"))
    run.train(config(*overrides), uninterrupted)
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == step)
        with pytest.raises(Crash):
            run.train(config(*overrides, "trainer.checkpoint_every_steps=1"), crashed)
    assert load_last(crashed.path)["global_step"] == step
    run.train(config(*overrides, "trainer.checkpoint_every_steps=1"), crashed)
    assert_same(uninterrupted.path, crashed.path)


def assert_equal_tree(a: Any, b: Any, name: str) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_equal_tree(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_tree(x, y, f"{name}[{number}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    else:
        assert a == b, name


def crash(monkeypatch, path: Path, hook: str, step: int, *words: str) -> None:
    """Trains until it crashes at the end of `hook` after `step`."""
    with monkeypatch.context() as patch:
        crash_at(patch, hook, lambda trainer: trainer.state.fn == "fit" and trainer.global_step == step)
        with pytest.raises(Crash):
            train(path, *words)


def crash_and_resume(monkeypatch, path: Path, hook: str, steps: list[int], *words: str) -> Batches:
    """Trains to the end with one crash at each of `steps`; every step is saved. Returns the sample indices of all
    batches, repeated steps included."""
    FewDigits.history.clear()
    words = ("trainer.checkpoint_every_steps=1", *words)
    for step in steps:
        crash(monkeypatch, path, hook, step, *words)
        assert load_last(path)["global_step"] == step
    train(path, *words)
    return list(FewDigits.history)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
    FewDigits.history.clear()
    path = tmp_path_factory.mktemp("reference") / "uninterrupted"
    result = train(path)
    batches = list(FewDigits.history)
    assert len(batches) == STEPS
    return Reference(path, batches, result)


def test_metrics_file_looks_as_if_the_run_had_never_stopped(monkeypatch, tmp_path):
    """One row per step, one save per two steps: at the crash the file has a row that the checkpoint does not count."""
    words = ("trainer.log_every_n_steps=1", "trainer.checkpoint_every_steps=2")
    uninterrupted, path = tmp_path / "uninterrupted", tmp_path / "crashed"
    train(uninterrupted, *words)
    for step in (3, 5):
        crash(monkeypatch, path, "on_train_batch_end", step, *words)
        assert len(read_metrics(path)) > load_last(path)["dltrain"]["metrics_rows"]
    train(path, *words)
    rows = read_metrics(path)
    assert [row["step"] for row in rows if row["train/loss"]] == [str(step) for step in range(1, STEPS + 1)]
    assert rows == read_metrics(uninterrupted)


def read_metrics(path: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "images_per_second"}
            for row in RunDir(path).read_metrics()]


def test_crash_between_saves_repeats_the_lost_steps(monkeypatch, tmp_path, reference):
    path, words = tmp_path / "crashed", ("trainer.checkpoint_every_steps=4",)
    FewDigits.history.clear()
    crash(monkeypatch, path, "on_train_batch_end", 5, *words)
    assert load_last(path)["global_step"] == 4
    train(path, *words)
    assert FewDigits.history == reference.batches[:5] + reference.batches[4:]
    assert_same(path, reference.path)


def test_steps_of_accumulated_batches_resume(monkeypatch, tmp_path):
    """Two steps in each epoch: of two batches and of one. No half step is saved: after the crash behind batch 4, the
    first of step 3, the run resumes behind step 2."""
    uninterrupted, path, words = tmp_path / "uninterrupted", tmp_path / "crashed", ("trainer.accumulate_batches=2",)
    assert train(uninterrupted, *words)["steps"] == 6
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end",
                 lambda trainer: cast(TrainLoader, trainer.train_dataloader).batches_done == 4)
        with pytest.raises(Crash):
            train(path, *words, "trainer.checkpoint_every_steps=1")
    assert load_last(path)["global_step"] == 2
    crash_and_resume(monkeypatch, path, "on_train_batch_end", [3], *words)
    assert_same(path, uninterrupted)


def test_a_run_that_ends_inside_an_epoch_resumes(monkeypatch, tmp_path):
    uninterrupted, path, words = tmp_path / "uninterrupted", tmp_path / "crashed", ("trainer.max_steps=7",)
    assert train(uninterrupted, *words)["steps"] == 7
    assert load_last(uninterrupted)["global_step"] == 7
    crash_and_resume(monkeypatch, path, "on_train_batch_end", [7], *words)
    assert_same(path, uninterrupted)


def test_a_finished_run_is_not_changed(reference, capsys):
    before = {file: file.stat().st_mtime_ns for file in reference.path.rglob("*")}
    assert train(reference.path) == reference.result
    assert capsys.readouterr().out == (
        f"{reference.path} is finished after 9 steps, nothing to do; dltrain extend run={reference.path} epochs= "
        f"trains longer, another name= with model.pretrained.from_run={reference.path} begins anew with its weights\n")
    assert {file: file.stat().st_mtime_ns for file in reference.path.rglob("*")} == before


def test_a_damaged_last_checkpoint_is_replaced_by_the_previous(monkeypatch, tmp_path, reference, capsys):
    path = tmp_path / "crashed"
    crash(monkeypatch, path, "on_train_batch_end", 5, "trainer.checkpoint_every_steps=1")
    last = path / "checkpoints" / checkpoints.LAST
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(bytes(content))
    train(path)
    assert f"using previous.ckpt instead; resuming {path} from step 4 of 9\n" in capsys.readouterr().out
    assert_same(path, reference.path)


def test_a_training_that_is_paused_after_any_epoch_ends_in_the_same_bits(monkeypatch, tmp_path, reference):
    """Paused by its number of epochs, killed after the save and before the pause is noted, and pruned."""
    folder = RunDir(tmp_path / "paused")
    folder.path.mkdir()
    composed = pickle.loads(compose_once((*TINY,)))
    assert run.train(composed, folder, until_epoch=1) == {}
    assert run_pause.read(folder.path) == (1, 3, 3, False, "val/accuracy", "max", pytest.approx(float(
        read_metrics(reference.path)[1]["val/accuracy"])))
    assert load_last(folder.path)["global_step"] == 3
    crash(monkeypatch, folder.path, "on_train_epoch_end", 6)
    assert run_pause.read(folder.path) is None
    questions: list[int] = []

    def prunes(epoch: int, best: float) -> bool:
        questions.append(epoch)
        return True

    assert run.train(composed, folder, prunes=prunes) == {}
    assert (load_last(folder.path)["global_step"], questions) == (6, [2])
    assert "pruned at epoch 2 of 3" in str(run_pause.read(folder.path))
    result = run.train(composed, folder, until_epoch=3)
    assert (result["val/accuracy"], result["steps"]) == (reference.result["val/accuracy"], STEPS)
    assert_same(folder.path, reference.path)
    assert read_metrics(folder.path) == read_metrics(reference.path)
