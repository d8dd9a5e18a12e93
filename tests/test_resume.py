"""Killed at any step, however often, a run ends in the same bits: weights, optimizer, sample order, records."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from dltrain import build, checkpoints, run
from dltrain.batches import generator
from dltrain.callbacks.checkpointing import Saving
from dltrain.callbacks.step_seeds import StepSeeds
from dltrain.data.loader import TrainLoader
from tests.conftest import TINY
from tests.tiny import FewDigits

STEPS = 9


class Crash(Exception):
    pass


def crash_at(monkeypatch, hook: str, when) -> None:
    """Makes Saving raise, after its own work in `hook`, where when(trainer) holds."""

    class Crashing(Saving):
        pass

    def after(self, trainer, *args, **kwargs):
        getattr(Saving, hook)(self, trainer, *args, **kwargs)
        if when(trainer):
            raise Crash

    setattr(Crashing, hook, after)
    monkeypatch.setattr(build, "Saving", Crashing)


def final(path: Path) -> dict:
    return torch.load(path / "checkpoints/last.ckpt", weights_only=True)


def assert_same(left: Path, right: Path) -> None:
    a, b = final(left), final(right)
    assert a["global_step"] == b["global_step"]
    assert_equal_tree(a["state_dict"], b["state_dict"], "weights")
    assert_equal_tree(a["optimizer_states"], b["optimizer_states"], "optimizer")
    assert_equal_tree(a["lr_schedulers"], b["lr_schedulers"], "schedule")
    assert_equal_tree(a["loops"], b["loops"], "loops")
    best_a, best_b = (torch.load(p / "checkpoints/best.ckpt", weights_only=True) for p in (left, right))
    assert_equal_tree(best_a["state_dict"], best_b["state_dict"], "best")


def assert_a_crash_changes_nothing(words: list[str], at: int, config, run_folder, monkeypatch) -> None:
    """A run that is crashed after step `at` and started again ends in the bits of one that was not."""
    straight, crashed = run_folder("straight"), run_folder("crashed")
    run.train(config(*words), straight)
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == at)
        with pytest.raises(Crash):
            run.train(config(*words, "trainer.checkpoint_every_steps=1"), crashed)
    run.train(config(*words, "trainer.checkpoint_every_steps=1"), crashed)
    assert_same(straight, crashed)


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
    """A run that nothing interrupted, and the samples it saw, batch by batch."""
    FewDigits.history.clear()
    path = run_folder("uninterrupted")
    result = run.train(config(*TINY), path)
    return path, list(FewDigits.history), result


def crashed_and_resumed(monkeypatch, config, path: Path, hook: str, steps: list[int], *words: str) -> list:
    """Runs until done, crashing once at each of `steps`; returns the batches seen, those of lost steps included."""
    FewDigits.history.clear()
    for step in steps:
        with monkeypatch.context() as patch:
            crash_at(patch, hook, lambda trainer, step=step: trainer.state.fn == "fit" and trainer.global_step == step)
            with pytest.raises(Crash):
                run.train(config(*TINY, "trainer.checkpoint_every_steps=1", *words), path)
    run.train(config(*TINY, "trainer.checkpoint_every_steps=1", *words), path)
    return list(FewDigits.history)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_crash_after_any_step(step, monkeypatch, config, run_folder, reference):
    path = run_folder("crashed")
    seen = crashed_and_resumed(monkeypatch, config, path, "on_train_batch_end", [step])
    assert_same(path, reference[0])
    assert seen == reference[1]


def test_crash_in_every_validation(monkeypatch, config, run_folder, reference):
    """The last step of an epoch is saved, its validation is not done: the resume validates, and skips nothing."""
    path = run_folder("crashed")
    seen = crashed_and_resumed(monkeypatch, config, path, "on_validation_batch_end", [3, 6, 9])
    assert_same(path, reference[0])
    assert seen == reference[1]
    assert rows(path) == rows(reference[0])


def test_crash_after_every_step_in_one_run(monkeypatch, config, run_folder, reference):
    path = run_folder("crashed")
    seen = crashed_and_resumed(monkeypatch, config, path, "on_train_batch_end", list(range(1, STEPS + 1)))
    assert_same(path, reference[0])
    assert seen == reference[1]


def test_metrics_file_reads_as_if_nothing_had_happened(monkeypatch, config, run_folder):
    """A row every step, a save every second one: at the crash the file has a row that the checkpoint has not."""
    words = (*TINY, "trainer.log_every_n_steps=1", "trainer.checkpoint_every_steps=2")
    whole, path = run_folder("whole"), run_folder("crashed")
    run.train(config(*words), whole)
    for step in (3, 5):
        with monkeypatch.context() as patch:
            crash_at(patch, "on_train_batch_end", lambda trainer, step=step: trainer.global_step == step)
            with pytest.raises(Crash):
                run.train(config(*words), path)
        assert len(rows(path)) > final(path)["dltrain"]["metrics_rows"]
    run.train(config(*words), path)
    assert rows(path) == rows(whole)


def rows(path: Path) -> list[dict]:
    with open(path / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "images_per_second"}
                for row in csv.DictReader(file)]


def test_crash_between_saves_repeats_the_lost_steps(monkeypatch, config, run_folder, reference):
    path = run_folder("crashed")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 5)
        with pytest.raises(Crash):
            run.train(config(*TINY, "trainer.checkpoint_every_steps=4"), path)
    assert final(path)["global_step"] == 4
    run.train(config(*TINY, "trainer.checkpoint_every_steps=4"), path)
    assert_same(path, reference[0])


def test_accumulated_steps_resume_too(monkeypatch, config, run_folder):
    words = (*TINY, "trainer.accumulate_batches=2")
    whole, path = run_folder("whole"), run_folder("crashed")
    run.train(config(*words), whole)
    crashed_and_resumed(monkeypatch, config, path, "on_train_batch_end", [1, 3], "trainer.accumulate_batches=2")
    assert_same(path, whole)


def test_steps_that_end_in_mid_epoch(monkeypatch, config, run_folder):
    words = ("trainer.max_steps=7",)
    whole, path = run_folder("whole"), run_folder("crashed")
    result = run.train(config(*TINY, *words), whole)
    assert final(whole)["global_step"] == 7
    assert result["steps"] == 7
    crashed_and_resumed(monkeypatch, config, path, "on_train_batch_end", [7], *words)
    assert_same(path, whole)


def test_a_finished_run_is_left_alone(config, reference, capsys):
    path, _, result = reference
    before = (path / "checkpoints/last.ckpt").stat().st_mtime_ns
    assert run.train(config(*TINY), path) == result
    assert "finished" in capsys.readouterr().out
    assert (path / "checkpoints/last.ckpt").stat().st_mtime_ns == before


def test_damaged_last_checkpoint_falls_back(monkeypatch, config, run_folder, reference, capsys):
    path = run_folder("crashed")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 5)
        with pytest.raises(Crash):
            run.train(config(*TINY, "trainer.checkpoint_every_steps=1"), path)
    last = path / "checkpoints" / checkpoints.LAST
    flipped = bytearray(last.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    last.write_bytes(bytes(flipped))
    run.train(config(*TINY), path)
    assert "continuing from previous.ckpt" in capsys.readouterr().out
    assert_same(path, reference[0])


# Controls: with a part of the machinery taken out, the same test must fail. They show that it can.


def test_control_without_step_seeds(monkeypatch, config, run_folder):
    monkeypatch.setattr(StepSeeds, "on_train_batch_start", lambda *_: None)
    torch.manual_seed(0)
    whole, path = run_folder("whole"), run_folder("crashed")
    run.train(config(*TINY), whole)
    crashed_and_resumed(monkeypatch, config, path, "on_train_batch_end", [4])
    with pytest.raises(AssertionError, match="weights"):
        assert_same(path, whole)


def test_control_without_position(monkeypatch, config, run_folder, reference):
    monkeypatch.setattr(TrainLoader, "load_state_dict", lambda *_: None)
    monkeypatch.setattr(FewDigits, "load_state_dict", lambda *_: None)
    path = run_folder("crashed")
    seen = crashed_and_resumed(monkeypatch, config, path, "on_train_batch_end", [4])
    assert seen != reference[1]
    with pytest.raises(AssertionError, match="weights"):
        assert_same(path, reference[0])


def test_control_without_canonical_counters(monkeypatch, config, run_folder, reference):
    """Lightning's own counters, saved on an epoch's last batch again and again, lose count of the epochs."""
    monkeypatch.setattr("dltrain.callbacks.checkpointing.set_position", lambda *_: None)
    path = run_folder("crashed")
    crashed_and_resumed(monkeypatch, config, path, "on_validation_batch_end", [3, 6, 9])
    with pytest.raises(AssertionError, match="weights"):
        assert_same(path, reference[0])


def test_any_number_of_workers_ends_in_the_same_weights_through_the_whole_pipeline(config, run_folder, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=generator(name, i))
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / name / f"{i}.png")
    ends = []
    for workers in (0, 2):
        path = run_folder(f"workers{workers}")
        run.train(config("model=resnet20", "model.depth=8", "data=image_folder", f"data.root={tmp_path / 'photos'}",
                         "data.image_px=32", "data.batch_size=4", "augment=strong", "trainer.max_epochs=2",
                         "trainer=cpu", f"data.num_workers={workers}"), path)
        ends.append(path)
    assert_same(*ends)
