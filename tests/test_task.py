"""A task, trained by Lightning with all callbacks, against a training loop written by hand; metrics; schedules."""

import csv
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, confusion_matrix

from dltrain import optim, run
from dltrain.batches import ClassificationBatch, generator, seed_of
from dltrain.build import build, build_data, build_task
from dltrain.callbacks.step_seeds import StepSeeds
from dltrain.errors import DivergedError, UserError
from tests.conftest import TINY


def train_by_hand(config) -> tuple[torch.nn.Module, list[float]]:
    """Everything that a run does to the weights, in one loop without Lightning and callbacks. Returns the trained model
    and the loss of each step."""
    data = build_data(config)
    images, labels = data.splits["train"]
    torch.manual_seed(seed_of("init", config.seed))
    model = build(config.model, "model")
    model.to(memory_format=torch.channels_last)
    pixels = images.double() / 255
    mean, std = pixels.mean((0, 2, 3), keepdim=True).float(), pixels.std((0, 2, 3), keepdim=True, correction=0).float()
    keys = config.task.optimizer
    steps_per_epoch = math.ceil(len(labels) / config.data.batch_size)
    total_steps = steps_per_epoch * config.trainer.max_epochs
    sgd = torch.optim.SGD(model.parameters(), lr=keys.lr, momentum=keys.momentum, weight_decay=keys.weight_decay)
    losses = []
    for epoch in range(config.trainer.max_epochs):
        order = torch.randperm(len(labels), generator=generator("order", config.seed, epoch))
        for batch_idx, indices in enumerate(order.split(config.data.batch_size)):
            rng = generator("augment", config.seed, epoch, batch_idx, 0)
            offsets = torch.randint(0, 3, (len(indices), 2), generator=rng).tolist()
            padded = torch.zeros(len(indices), 1, 10, 10)
            padded[:, :, 1:9, 1:9] = (images[indices].float() / 255 - mean) / std
            crops = torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets, strict=True)])
            torch.manual_seed(seed_of("model", config.seed, epoch, batch_idx, 0))
            num_decays = sum(len(losses) >= round(milestone * total_steps) for milestone in (0.5, 0.75))
            sgd.param_groups[0]["lr"] = keys.lr * 0.1**num_decays
            loss = F.cross_entropy(model(crops), labels[indices], label_smoothing=config.task.label_smoothing)
            sgd.zero_grad()
            loss.backward()
            if config.trainer.gradient_clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.gradient_clip_norm)
            sgd.step()
            losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("more", [(), ("task.label_smoothing=0.1",), ("trainer.gradient_clip_norm=0.1",)])
def test_twenty_steps_equal_a_loop_by_hand(more, config, run_folder):
    """Order, crop, normalisation, stochastic depth, schedule, momentum, decay, label smoothing, clipping: the same bits
    after 20 steps."""
    overrides = (*TINY, "data.batch_size=20", "trainer.max_epochs=4", *more)
    model, losses = train_by_hand(config(*overrides))
    assert len(losses) == 20
    path = run_folder("run")
    run.train(config(*overrides), path)
    saved = torch.load(path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 20
    for name, value in model.state_dict().items():
        assert torch.equal(saved["state_dict"][f"model.{name}"], value), name
    sizes = [20, 20, 20, 20, 16]
    with open(path / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [(row["step"], row["epoch"]) for row in rows] == [("5", "1"), ("10", "2"), ("15", "3"), ("20", "4")]
    for row, start in zip(rows, range(0, 20, 5), strict=True):
        expected = np.average(losses[start : start + 5], weights=sizes)
        assert float(row["train/loss"]) == pytest.approx(expected, rel=1e-5)


def test_step_seeds_are_a_function_of_seed_epoch_batch_and_rank():
    """The task's position and all global generators; each of the four changes what is sampled."""
    samples = []
    positions = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)]
    for seed, epoch, batch_idx, rank in positions:
        task = SimpleNamespace(device=torch.device("cpu"))
        trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        StepSeeds(seed).on_train_batch_start(trainer, task, None, batch_idx)
        assert task.position == (seed, epoch, batch_idx, rank)
        samples.append((float(torch.rand(())), random.random(), float(np.random.rand())))
    assert samples[0] == samples[-1]
    assert all(len({sample[kind] for sample in samples}) == 5 for kind in range(3))


def test_metrics_equal_scikit_learns(config, run_folder):
    path = run_folder("run")
    composed = config(*TINY)
    result = run.train(composed, path)
    data, task = build_data(composed), build_task(composed)
    task.load_state_dict(torch.load(path / "checkpoints/best.ckpt", weights_only=True)["state_dict"])
    images, labels = data.splits["test"]
    with torch.no_grad():
        logits = task.eval()(images)
    predicted = logits.argmax(1)
    assert result["test/accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert result["test/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    task.evaluation_step(ClassificationBatch(images, labels))
    assert task.confusion.compute().tolist() == confusion_matrix(labels, predicted, labels=range(10)).tolist()


def test_a_loss_that_is_not_finite_ends_the_run(config, run_folder):
    path = run_folder("run")
    with pytest.raises(DivergedError, match=r"loss is (nan|inf) at step \d+ with lr") as caught:
        run.train(config(*TINY, "task.optimizer.lr=1e30", "model.norm=none"), path)
    assert "\n" not in str(caught.value)
    for file in (path / "checkpoints").glob("*.ckpt"):
        weights = torch.load(file, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())


def test_weights_that_are_not_finite_reach_no_checkpoint(config, run_folder, monkeypatch):
    """The loss is finite, but the optimizer step makes a weight nan: neither best nor last may store it."""
    path = run_folder("run")
    sgd_step = torch.optim.SGD.step

    def failing_step(self, closure=None):
        loss = sgd_step(self, closure)
        failing_step.count += 1
        if failing_step.count == 3:  # the last step of the first epoch
            self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return loss

    failing_step.count = 0
    monkeypatch.setattr(torch.optim.SGD, "step", failing_step)
    with pytest.raises(DivergedError, match="weights are not finite at step 3"):
        run.train(config(*TINY), path)
    assert not list((path / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize(("keys", "steps", "expected"), [
    ({"name": "step", "milestones": (0.5, 0.75)}, (0, 31999, 32000, 47999, 48000), (1, 1, 0.1, 0.1, 0.01)),
    ({"name": "constant"}, (0, 63999), (1, 1)),
    ({"name": "cosine"}, (0, 16000, 32000, 64000), (1, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0)),
    ({"name": "step", "warmup_steps": 400, "warmup": "constant"}, (0, 399, 400), (0.1, 0.1, 1)),
    ({"name": "cosine", "warmup_steps": 100, "warmup_factor": 0.0}, (0, 50, 100), (0, 0.5, 1)),
])
def test_schedules(keys, steps, expected):
    fractions = [optim.fraction_of_peak(step, 64000, **keys) for step in steps]
    assert fractions == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("name", "expected"), [
    ("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("rmsprop", torch.optim.RMSprop),
    ("torch.optim.Adagrad", torch.optim.Adagrad)])
def test_optimizers_by_name(name, expected):
    built = optim.optimizer(torch.nn.Linear(2, 2), name, lr=0.3, weight_decay=0.01, momentum=0.8)
    assert type(built) is expected
    assert built.param_groups[0]["weight_decay"] == 0.01
    if name == "adamw":
        assert built.param_groups[0]["betas"] == (0.8, 0.999)


def test_weight_decay_can_skip_biases_and_norms():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    decayed, others = optim.optimizer(net, "sgd", 0.1, 0.01, decay_all=False).param_groups
    assert [p.dim() for p in decayed["params"]] == [4]
    assert len(others["params"]) == 3
    assert others["weight_decay"] == 0


@pytest.mark.parametrize(("name", "message"), [("sdg", "did you mean 'sgd'"), ("torch.optim.Nothing", "Nothing"),
                                               ("no.such.Place", "No module")])
def test_an_unknown_optimizer_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        optim.optimizer(torch.nn.Linear(2, 2), name, lr=0.1, weight_decay=0)
