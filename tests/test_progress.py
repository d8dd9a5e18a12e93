"""What a run prints while it trains, outside a terminal."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from dltrain.callbacks.progress import ProgressDisplay


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def run(monkeypatch, caplog):
    """A run of 100 steps in 5 epochs that begins at step 20, with its clock, its display and what it has printed."""
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    caplog.set_level(logging.INFO, logger="dltrain")
    metrics: Any = SimpleNamespace(latest={"train/loss": 0.5, "train/accuracy": 0.25, "val/accuracy": 0.125,
                                           "images_per_second": 1234.5})
    display = ProgressDisplay(metrics, 100, 5, "val/accuracy", "images")
    trainer: Any = SimpleNamespace(global_step=20, is_global_zero=True, train_dataloader=FewBatches())
    display.on_train_start(trainer, None)  # type: ignore[arg-type]
    return SimpleNamespace(clock=clock, display=display, trainer=trainer, lines=lambda: caplog.messages)


class FewBatches:
    batches_done = 20

    def __len__(self) -> int:
        return 20


def step(run, count: int, seconds: float) -> None:
    for _ in range(count):
        run.clock.seconds += seconds
        run.trainer.global_step += 1
        run.trainer.train_dataloader.batches_done += 1
        run.display.on_train_batch_end(run.trainer, None)


def test_the_time_left_is_that_of_this_process_from_its_third_step_on(run):
    step(run, 2, 4.0)
    assert run.display.estimate_seconds_left(run.trainer) is None
    step(run, 1, 4.0)
    assert run.display.estimate_seconds_left(run.trainer) == pytest.approx(4 * 77)  # not of the 20 steps before
    assert run.lines() == []
    step(run, 1, 4.0)  # 16 s after the start: the first line
    assert run.lines() == ["epoch 2/5  step 24/100  loss 0.500  accuracy 0.250  val accuracy 0.125  1,234 images/s  "
                           "5:04 min left"]
    step(run, 3, 4.0)
    assert len(run.lines()) == 1
    step(run, 1, 4.0)
    assert len(run.lines()) == 2


def test_an_epoch_has_a_line_but_quick_epochs_do_not_all(run):
    step(run, 10, 0.1)
    run.display.on_train_epoch_end(run.trainer, None)
    assert run.lines() == []
    step(run, 10, 0.2)
    run.display.on_train_epoch_end(run.trainer, None)
    assert len(run.lines()) == 1
    run.trainer.global_step = 100
    run.display.on_train_epoch_end(run.trainer, None)
    assert run.lines()[-1].startswith("epoch 2/5  step 100/100")  # the last epoch always has one
