"""What a run writes for TensorBoard, and the norm of its gradients."""

import csv
from pathlib import Path
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY


class Norms(pl.Callback):
    """The norm of all gradients in each step, in double precision."""

    history: ClassVar[list[float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        squares = [float(weight.grad.double().square().sum()) for weight in pl_module.parameters()
                   if weight.grad is not None]
        Norms.history.append(sum(squares) ** 0.5)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_reading_has_the_norm_of_the_gradients_of_its_last_step(dltrain, without_figures):
    Norms.history = []
    assert dltrain("name=a", *TINY, "trainer.log_every_n_steps=2",
                   "trainer.callbacks=[{_target_: tests.test_board.Norms}]")[0] == 0
    readings = {int(row["step"]): float(row["train/gradient_norm"]) for row in rows(Path("outputs/a"))
                if row["train/gradient_norm"]}
    assert readings == {step: pytest.approx(Norms.history[step - 1], rel=1e-4) for step in (2, 3, 4, 6, 8, 9)}
    assert "train/clipped_fraction" not in rows(Path("outputs/a"))[0]


def test_what_tensorboard_shows_of_a_run(dltrain):
    assert dltrain("name=a", *TINY)[0] == 0
    board = EventAccumulator("outputs/a", size_guidance={"tensors": 0, "scalars": 0, "images": 0}).Reload()
    tags = board.Tags()
    assert {"train/augmented_batch", "val/truth_and_prediction", "test/truth_and_prediction", "test/confusion"} <= {
        *tags["images"]}
    validated = [row for row in rows(Path("outputs/a")) if row["val/accuracy"]]
    assert [(event.step, event.value) for event in board.Scalars("epochs/val/accuracy")] == [
        (int(row["epoch"]), pytest.approx(float(row["val/accuracy"]), rel=1e-5)) for row in validated]
    losses = {int(row["epoch"]): float(row["train/loss"]) for row in rows(Path("outputs/a")) if row["train/loss"]}
    assert {event.step: event.value for event in board.Scalars("epochs/train/loss")} == pytest.approx(losses, rel=1e-5)
    texts = {tag: board.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]
             if tag.startswith("run/")}
    assert "lr: 0.05" in texts["run/config/text_summary"]
    (row,) = [line.split() for line in texts["run/model/text_summary"].splitlines() if line.split()[:1] == ["all"]]
    assert row[1:] == ["CifarResNet", "75,002", "75,002"]


def test_pictures_of_predictions_say_which_are_right(config):
    """A right one has no grey line below it."""
    from dltrain.batches import ClassificationBatch
    from dltrain.build import build_data, build_task

    composed = config(*TINY)
    build_data(composed)
    task = build_task(composed)
    task.class_names = ["zero", "one"]
    batch = ClassificationBatch(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))
    right = task.figures(batch, torch.tensor([[9.0, 0.0], [0.0, 9.0]]))["truth_and_prediction"]
    wrong = task.figures(batch, torch.tensor([[0.0, 9.0], [9.0, 0.0]]))["truth_and_prediction"]
    assert isinstance(right, torch.Tensor)
    assert isinstance(wrong, torch.Tensor)
    assert wrong.shape[1] - right.shape[1] == 15  # one line more
    red = (wrong[0].int() - wrong[1].int() > 100).any(), (right[0].int() - right[1].int() > 100).any()
    assert tuple(map(bool, red)) == (True, False)
