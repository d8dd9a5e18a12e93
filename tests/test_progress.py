"""What a run prints while it trains, on terminals of several widths and outside one."""

import io
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from dltrain.callbacks.progress import ProgressDisplay
from dltrain.sweeps.running import Course


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


def on_terminal(run, width: int) -> io.StringIO:
    """The display draws on a terminal of so many columns from here on."""
    text = io.StringIO()
    run.display.console = Console(file=text, width=width, force_terminal=True, highlight=False)
    run.display.on_train_start(run.trainer, None)
    return text


@pytest.mark.parametrize(("width", "shown", "hidden"), [
    (60, ["epoch 2/5", "━", "val accuracy 0.125", "min left"], ["images/s", "loss"]),
    (80, ["epoch 2/5", "━", "loss 0.500", "val accuracy 0.125", "min left"], ["images/s"]),
    (120, ["epoch 2/5", "━", "loss 0.500  accuracy 0.250  val accuracy 0.125  1,234 images/s", "min left"], []),
    (34, ["epoch 2/5", "━", "min left"], ["val accuracy"])])
def test_the_epoch_the_bar_and_the_time_left_survive_on_a_narrow_terminal(width, shown, hidden, run):
    on_terminal(run, width)
    step(run, 10, 5.0)
    text = io.StringIO()
    Console(file=text, width=width).print(run.display.bar)
    run.display.close()
    (line,) = text.getvalue().rstrip("\n").split("\n")
    assert len(line) <= width
    assert all(words in line for words in shown), line
    assert not any(words in line for words in hidden), line


@pytest.mark.parametrize("width", [40, 60, 120])
def test_past_epochs_stay_as_lines_on_a_terminal(width, run):
    on_terminal(run, width)
    for _ in range(3):
        step(run, 10, 0.5)
        run.display.on_train_epoch_end(run.trainer, None)
    run.display.close()
    lines = run.lines()
    assert len(lines) == 3
    assert all(line.startswith("epoch") and "val accuracy 0.125" in line and len(line) <= width for line in lines)


def test_a_sweep_says_which_job_it_is_at_and_how_long_it_takes(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    course = Course(4)
    assert course.begin_job() == "job 1 of 4: "
    clock.seconds += 60
    assert course.begin_job() == "job 2 of 4, 3:00 min left: "
    clock.seconds += 120
    assert course.begin_job() == "job 3 of 4, 3:00 min left: "  # two jobs of 90 seconds
    course.process = -1
    assert course.begin_job() == ""
