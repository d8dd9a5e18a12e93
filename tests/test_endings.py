"""Early stopping, a limit of time, and how often a run is validated."""

import csv
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dltrain.callbacks import ending
from dltrain.run_dir import RunDir
from tests.conftest import TINY
from tests.test_resume import assert_same, crash_at, load_last

pytestmark = pytest.mark.usefixtures("without_figures")

STUCK = [*TINY, "trainer.max_epochs=12", "task.optimizer.lr=1e-12", "task.optimizer.weight_decay=0",
         "trainer.stop_when.patience_epochs=2", "trainer.stop_when.min_delta=0.5"]  # nothing improves by so much


def readings(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def validated(folder: Path) -> list[int]:
    """The steps after which there was a validation."""
    return [int(row["step"]) for row in readings(folder) if row["val/accuracy"]]


def test_a_run_ends_where_its_metric_no_longer_improves(dltrain):
    code, out, err = dltrain("name=a", *STUCK)
    assert (code, err) == (0, "")
    reason = "val/accuracy has not improved by more than 0.5 for 2 epochs, since epoch 1 ("
    assert f"; ended early: {reason}" in out
    result = RunDir(Path("outputs/a")).read_result()
    assert result["steps"] == 9  # three of twelve epochs
    assert result["ended_early"].startswith(reason)
    assert validated(Path("outputs/a")) == [3, 6, 9]
    assert "finished after 9 steps" in dltrain("resume", "run=outputs/a")[1]


def test_the_epoch_at_which_it_ends_is_that_of_a_loop_over_the_readings(dltrain):
    assert dltrain("name=a", *TINY, "trainer.max_epochs=15")[0] == 0
    values = [float(row["val/loss"]) for row in readings(Path("outputs/a")) if row["val/loss"]]
    best, best_epoch, expected = float("inf"), 0, 15
    for epoch, value in enumerate(values, start=1):
        if best - value > 0.01:
            best, best_epoch = value, epoch
        elif epoch - best_epoch >= 2:
            expected = epoch
            break
    assert expected < 15
    assert dltrain("name=b", *TINY, "trainer.max_epochs=15", "trainer.stop_when.metric=val/loss",
                   "trainer.stop_when.patience_epochs=2", "trainer.stop_when.min_delta=0.01")[0] == 0
    assert RunDir(Path("outputs/b")).read_result()["steps"] == 3 * expected


@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_end", 5), ("on_validation_end", 9),
                                            ("on_train_epoch_end", 9), ("on_train_end", 9)])
def test_a_run_that_is_killed_ends_at_the_same_epoch(hook, step, dltrain, monkeypatch):
    words = [*STUCK, "trainer.checkpoint_every_steps=1"]
    assert dltrain("name=whole", *words)[0] == 0
    with monkeypatch.context() as patch:
        crash_at(patch, hook, lambda trainer: trainer.state.fn == "fit" and trainer.global_step == step)
        assert dltrain("name=killed", *words)[0] == 8
    assert dltrain("name=killed", *words)[0] == 0
    assert_same(Path("outputs/whole"), Path("outputs/killed"))
    whole, killed = (RunDir(Path("outputs", name)).read_result() for name in ("whole", "killed"))
    assert whole["ended_early"] == killed["ended_early"]
    assert validated(Path("outputs/whole")) == validated(Path("outputs/killed"))


def test_a_metric_that_there_is_not_is_refused_before_the_first_step(dltrain):
    code, _, err = dltrain("name=a", *STUCK, "trainer.stop_when.metric=val/acuracy")
    assert code == 2
    assert "trainer.stop_when.metric: no metric 'val/acuracy'; did you mean 'val/accuracy'?" in err


def test_the_same_command_continues_a_run_without_validations_by_epochs(dltrain, monkeypatch):
    words = ["name=a", *TINY, "trainer.validate_every_epochs=null", "trainer.checkpoint_every_steps=1"]
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 4)
        assert dltrain(*words)[0] == 8
    assert dltrain(*words)[0] == 0
    assert validated(Path("outputs/a")) == [9]


def epochs_until_the_end(values: list[float], patience_epochs: int) -> tuple[int, str]:
    """How many epochs a run takes whose metric has these values, and why it ends."""
    when = ending.StopWhen("val/f1", "max", patience_epochs, 0.0)
    for epoch, value in enumerate(values, start=1):
        trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), callback_metrics={"val/f1": value},
                                  train_dataloader=BatchesDone(4 * epoch), should_stop=False)
        when.on_validation_end(cast(Any, trainer), cast(Any, None))
        if trainer.should_stop:
            return epoch, when.reason
    return len(values), ""


class BatchesDone:
    def __init__(self, batches_done: int):
        self.batches_done = batches_done

    def __len__(self) -> int:
        return 4


def test_a_metric_that_is_nan_is_no_best_one():
    nan = float("nan")
    assert epochs_until_the_end([nan, 0.1, 0.2, 0.3, 0.2, 0.2], 2)[0] == 6
    assert epochs_until_the_end([0.1, nan, 0.2, nan, nan], 2)[0] == 5
    assert epochs_until_the_end([nan, nan, nan], 2) == (2, "val/f1 has not improved for 2 epochs: it is nan")


def test_a_run_that_ended_early_can_be_extended(dltrain):
    """Its schedule is that of its whole length, of which only a few steps were taken."""
    assert dltrain("name=a", *STUCK, "task.schedule.name=cosine")[0] == 0
    code, out, _ = dltrain("extend", "run=outputs/a", "epochs=14", "schedule=continue")
    assert code == 0
    assert "begins after epoch 3, step 9 of outputs/a" in out
    rates = [float(row["lr"]) for row in readings(Path("outputs/a_epochs14_continue")) if row["lr"]]
    assert rates[3:] == pytest.approx([rates[3]] * len(rates[3:]))
    assert RunDir(Path("outputs/a_epochs14_continue")).read_result()["steps"] == 18  # its own patience


def test_a_run_ends_after_its_minutes_with_a_validation(dltrain, monkeypatch):
    """The clock jumps by ten minutes in the fifth step."""
    seconds = [0.0]
    monkeypatch.setattr(ending.time, "monotonic", lambda: time.perf_counter() + seconds[0])
    crossed = ending.TimeLimit.on_train_batch_end

    def jump(self, trainer, *arguments):
        seconds[0] += 600 * (trainer.global_step == 5)
        crossed(self, trainer, *arguments)

    monkeypatch.setattr(ending.TimeLimit, "on_train_batch_end", jump)
    code, out, err = dltrain("name=a", *TINY, "trainer.max_minutes=9")
    assert (code, err) == (0, "")
    assert "; ended early: it has trained for trainer.max_minutes=9" in out
    assert RunDir(Path("outputs/a")).read_result()["steps"] == 5
    assert validated(Path("outputs/a")) == [3, 5]


@pytest.mark.slow
def test_several_processes_look_at_the_clock_in_each_epoch_however_short_it_is(dltrain):
    words = [*TINY, "trainer.devices=2", "trainer.accelerator=cpu", "trainer.log_every_n_steps=50"]
    assert dltrain("name=a", *words, "trainer.max_epochs=1")[0] == 0
    assert dltrain("name=b", *words, "trainer.max_minutes=0.0001")[0] == 0
    one_epoch, ended = (RunDir(Path("outputs", name)).read_result() for name in "ab")
    assert ended["steps"] == one_epoch["steps"]
    assert ended["ended_early"] == "it has trained for trainer.max_minutes=0.0001"


def test_the_minutes_of_earlier_starts_count(dltrain, monkeypatch):
    words = ["name=a", *TINY, "trainer.max_minutes=9", "trainer.checkpoint_every_steps=1"]
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 4)
        assert dltrain(*words)[0] == 8
    seconds = load_last(Path("outputs/a"))["callbacks"]["TimeLimit"]["seconds"]
    assert 0 < seconds < 60
    monkeypatch.setattr(ending.TimeLimit, "load_state_dict",
                        lambda self, state: setattr(self, "seconds_before", state["seconds"] + 3600))
    assert dltrain(*words)[0] == 0
    assert RunDir(Path("outputs/a")).read_result()["steps"] == 5


@pytest.mark.parametrize(("words", "expected"), [
    (["trainer.validate_every_epochs=2", "trainer.max_epochs=5"], [6, 12, 15]),
    (["trainer.validate_every_steps=2"], [2, 3, 4, 6, 8, 9]),
    (["trainer.validate_every_steps=2", "trainer.validate_every_epochs=null"], [2, 4, 6, 8, 9]),
    (["trainer.validate_every_steps=1", "trainer.validate_every_epochs=null", "trainer.accumulate_batches=2"],
     [1, 2, 3, 4, 5, 6]),
    (["trainer.validate_every_epochs=7"], [9])])
def test_when_a_run_is_validated(words, expected, dltrain):
    assert dltrain("name=a", *TINY, *words)[0] == 0
    assert validated(Path("outputs/a")) == expected


@pytest.mark.parametrize("step", range(2, 10, 2))
@pytest.mark.parametrize("words", [("trainer.validate_every_steps=2", "trainer.validate_every_epochs=2",
                                    "trainer.keep_checkpoints.best=1")])
def test_it_is_validated_so_too_when_it_is_killed_after_any_step(step, words, dltrain, monkeypatch):
    words = ["name=killed", *TINY, "trainer.checkpoint_every_steps=1", *words]
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == step)
        assert dltrain(*words)[0] == 8
    assert dltrain(*words)[0] == 0
    assert dltrain("name=whole", *words[1:])[0] == 0
    assert_same(Path("outputs/whole"), Path("outputs/killed"))
    assert validated(Path("outputs/whole")) == validated(Path("outputs/killed")) == [2, 4, 6, 8, 9]
