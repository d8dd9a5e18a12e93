"""A run that is killed at any step, however often, ends in the same bits: weights, optimizer, sample order, metrics."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from dltrain import build, checkpoints, run
from dltrain.batches import generator
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.callbacks.step_seeds import StepSeeds
from dltrain.data.loader import TrainLoader
from tests.conftest import TINY
from tests.tiny import FewDigits

STEPS = 9


class Crash(Exception):
    pass


def crash_at(monkeypatch, hook: str, is_due) -> None:
    """Makes Checkpointing raise Crash at the end of `hook` if is_due(trainer)."""

    class Crashing(Checkpointing):
        pass

    def crash_after(self, trainer, *args, **kwargs):
        getattr(Checkpointing, hook)(self, trainer, *args, **kwargs)
        if is_due(trainer):
            raise Crash

    setattr(Crashing, hook, crash_after)
    monkeypatch.setattr(build, "Checkpointing", Crashing)


def load_last(path: Path) -> dict:
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
    uninterrupted, crashed = run_folder("uninterrupted"), run_folder("crashed")
    run.train(config(*overrides), uninterrupted)
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == step)
        with pytest.raises(Crash):
            run.train(config(*overrides, "trainer.checkpoint_every_steps=1"), crashed)
    run.train(config(*overrides, "trainer.checkpoint_every_steps=1"), crashed)
    assert_same(uninterrupted, crashed)


def assert_equal_tree(a, b, name: str) -> None:
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


@pytest.fixture
def reference(config, run_folder):
    """An uninterrupted run: its folder, the sample indices of its batches, and its result."""
    FewDigits.history.clear()
    path = run_folder("uninterrupted")
    result = run.train(config(*TINY), path)
    return path, list(FewDigits.history), result


def crash_and_resume(monkeypatch, config, path: Path, hook: str, steps: list[int], *overrides: str) -> list:
    """Runs to the end with one crash at each of `steps`. Returns the sample indices of all batches, including repeated
    steps."""
    FewDigits.history.clear()
    for step in steps:
        with monkeypatch.context() as patch:
            crash_at(patch, hook, lambda trainer, step=step: trainer.state.fn == "fit" and trainer.global_step == step)
            with pytest.raises(Crash):
                run.train(config(*TINY, "trainer.checkpoint_every_steps=1", *overrides), path)
    run.train(config(*TINY, "trainer.checkpoint_every_steps=1", *overrides), path)
    return list(FewDigits.history)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_crash_after_any_step(step, monkeypatch, config, run_folder, reference):
    path = run_folder("crashed")
    batches = crash_and_resume(monkeypatch, config, path, "on_train_batch_end", [step])
    assert_same(path, reference[0])
    assert batches == reference[1]


def test_crash_in_every_validation(monkeypatch, config, run_folder, reference):
    """The last step of an epoch is saved, but its validation is not: the resumed run validates and skips nothing."""
    path = run_folder("crashed")
    batches = crash_and_resume(monkeypatch, config, path, "on_validation_batch_end", [3, 6, 9])
    assert_same(path, reference[0])
    assert batches == reference[1]
    assert read_metrics(path) == read_metrics(reference[0])


def test_crash_after_every_step_in_one_run(monkeypatch, config, run_folder, reference):
    path = run_folder("crashed")
    batches = crash_and_resume(monkeypatch, config, path, "on_train_batch_end", list(range(1, STEPS + 1)))
    assert_same(path, reference[0])
    assert batches == reference[1]


def test_metrics_file_looks_as_if_the_run_had_never_stopped(monkeypatch, config, run_folder):
    """One row per step, one save per two steps: at the crash the file has a row that the checkpoint does not count."""
    overrides = (*TINY, "trainer.log_every_n_steps=1", "trainer.checkpoint_every_steps=2")
    uninterrupted, path = run_folder("uninterrupted"), run_folder("crashed")
    run.train(config(*overrides), uninterrupted)
    for step in (3, 5):
        with monkeypatch.context() as patch:
            crash_at(patch, "on_train_batch_end", lambda trainer, step=step: trainer.global_step == step)
            with pytest.raises(Crash):
                run.train(config(*overrides), path)
        assert len(read_metrics(path)) > load_last(path)["dltrain"]["metrics_rows"]
    run.train(config(*overrides), path)
    assert read_metrics(path) == read_metrics(uninterrupted)


def read_metrics(path: Path) -> list[dict]:
    with open(path / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "images_per_second"}
                for row in csv.DictReader(file)]


def test_crash_between_saves_repeats_the_lost_steps(monkeypatch, config, run_folder, reference):
    path = run_folder("crashed")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 5)
        with pytest.raises(Crash):
            run.train(config(*TINY, "trainer.checkpoint_every_steps=4"), path)
    assert load_last(path)["global_step"] == 4
    run.train(config(*TINY, "trainer.checkpoint_every_steps=4"), path)
    assert_same(path, reference[0])


def test_steps_of_accumulated_batches_resume(monkeypatch, config, run_folder):
    overrides = (*TINY, "trainer.accumulate_batches=2")
    uninterrupted, path = run_folder("uninterrupted"), run_folder("crashed")
    run.train(config(*overrides), uninterrupted)
    crash_and_resume(monkeypatch, config, path, "on_train_batch_end", [1, 3], "trainer.accumulate_batches=2")
    assert_same(path, uninterrupted)


def test_a_run_that_ends_inside_an_epoch_resumes(monkeypatch, config, run_folder):
    overrides = ("trainer.max_steps=7",)
    uninterrupted, path = run_folder("uninterrupted"), run_folder("crashed")
    result = run.train(config(*TINY, *overrides), uninterrupted)
    assert load_last(uninterrupted)["global_step"] == 7
    assert result["steps"] == 7
    crash_and_resume(monkeypatch, config, path, "on_train_batch_end", [7], *overrides)
    assert_same(path, uninterrupted)


def test_a_finished_run_is_not_changed(config, reference, capsys):
    path, _, result = reference
    before = (path / "checkpoints/last.ckpt").stat().st_mtime_ns
    assert run.train(config(*TINY), path) == result
    assert "finished" in capsys.readouterr().out
    assert (path / "checkpoints/last.ckpt").stat().st_mtime_ns == before


def test_a_damaged_last_checkpoint_is_replaced_by_the_previous(monkeypatch, config, run_folder, reference, capsys):
    path = run_folder("crashed")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 5)
        with pytest.raises(Crash):
            run.train(config(*TINY, "trainer.checkpoint_every_steps=1"), path)
    last = path / "checkpoints" / checkpoints.LAST
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(bytes(content))
    run.train(config(*TINY), path)
    assert "using previous.ckpt instead" in capsys.readouterr().out
    assert_same(path, reference[0])


# Negative controls: without one component, the same comparison must fail. They show that the tests above can fail.


def test_control_without_step_seeds(monkeypatch, config, run_folder):
    monkeypatch.setattr(StepSeeds, "on_train_batch_start", lambda *_: None)
    torch.manual_seed(0)
    uninterrupted, path = run_folder("uninterrupted"), run_folder("crashed")
    run.train(config(*TINY), uninterrupted)
    crash_and_resume(monkeypatch, config, path, "on_train_batch_end", [4])
    with pytest.raises(AssertionError, match="weights"):
        assert_same(path, uninterrupted)


def test_control_without_position(monkeypatch, config, run_folder, reference):
    monkeypatch.setattr(TrainLoader, "load_state_dict", lambda *_: None)
    monkeypatch.setattr(FewDigits, "load_state_dict", lambda *_: None)
    path = run_folder("crashed")
    batches = crash_and_resume(monkeypatch, config, path, "on_train_batch_end", [4])
    assert batches != reference[1]
    with pytest.raises(AssertionError, match="weights"):
        assert_same(path, reference[0])


def test_control_without_canonical_counters(monkeypatch, config, run_folder, reference):
    """Lightning's own counters, saved at the last batch of several epochs, count the epochs wrongly."""
    monkeypatch.setattr("dltrain.callbacks.checkpointing.set_position", lambda *_: None)
    path = run_folder("crashed")
    crash_and_resume(monkeypatch, config, path, "on_validation_batch_end", [3, 6, 9])
    with pytest.raises(AssertionError, match="weights"):
        assert_same(path, reference[0])


def test_the_number_of_workers_changes_no_weight(config, run_folder, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=generator(name, i))
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / name / f"{i}.png")
    paths = []
    for workers in (0, 2):
        path = run_folder(f"workers{workers}")
        run.train(config("model=resnet20", "model.depth=8", "data=image_folder", f"data.root={tmp_path / 'photos'}",
                         "data.image_px=32", "data.batch_size=4", "augment=strong", "trainer.max_epochs=2",
                         "trainer=cpu", f"data.num_workers={workers}"), path)
        paths.append(path)
    assert_same(*paths)
