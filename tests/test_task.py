"""The task, through Lightning and all callbacks, against a training loop written by hand; metrics; schedules."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, confusion_matrix

from dltrain import optim, run
from dltrain.batches import generator, seed_of
from dltrain.build import build, build_data, build_task
from dltrain.errors import DivergedError, UserError
from tests.conftest import TINY


def by_hand(config) -> tuple[torch.nn.Module, list[float]]:
    """Everything that a run does to the weights, in one loop: no Lightning, no callback."""
    data = build_data(config)
    images, labels = data.splits["train"]
    torch.manual_seed(seed_of("init", config.seed))
    model = build(config.model, "model")
    model.to(memory_format=torch.channels_last)
    pixels = images.double() / 255
    mean, std = pixels.mean((0, 2, 3), keepdim=True).float(), pixels.std((0, 2, 3), keepdim=True, correction=0).float()
    keys = config.task.optimizer
    per_epoch = math.ceil(len(labels) / config.data.batch_size)
    total = per_epoch * config.trainer.max_epochs
    sgd = torch.optim.SGD(model.parameters(), lr=keys.lr, momentum=keys.momentum, weight_decay=keys.weight_decay)
    step, losses = 0, []
    for epoch in range(config.trainer.max_epochs):
        order = torch.randperm(len(labels), generator=generator("order", config.seed, epoch))
        for number in range(per_epoch):
            chosen = order[number * config.data.batch_size : (number + 1) * config.data.batch_size]
            draws = generator("augment", config.seed, epoch, number, 0)
            offsets = torch.randint(0, 3, (len(chosen), 2), generator=draws)
            x = torch.zeros(len(chosen), 1, 10, 10)
            x[:, :, 1:9, 1:9] = (images[chosen].float() / 255 - mean) / std
            x = torch.stack([one[:, y : y + 8, z : z + 8] for one, (y, z) in zip(x, offsets.tolist(), strict=True)])
            torch.manual_seed(seed_of("model", config.seed, epoch, number, 0))
            passed = sum(step >= round(share * total) for share in (0.5, 0.75))
            sgd.param_groups[0]["lr"] = keys.lr * 0.1**passed
            loss = F.cross_entropy(model(x), labels[chosen])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(float(loss))
            step += 1
    return model, losses


def test_twenty_steps_equal_a_loop_by_hand(config, run_folder):
    """Order, crop, normalisation, coins of stochastic depth, schedule, momentum, decay: the same bits in the end."""
    words = (*TINY, "data.batch_size=20", "trainer.max_epochs=4")
    model, losses = by_hand(config(*words))
    assert len(losses) == 20
    path = run_folder("run")
    run.train(config(*words), path)
    saved = torch.load(path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 20
    for name, value in model.state_dict().items():
        assert torch.equal(saved["state_dict"][f"model.{name}"], value), name


def test_metrics_equal_scikit_learns(config, run_folder):
    path = run_folder("run")
    found = config(*TINY)
    result = run.train(found, path)
    data, task = build_data(found), build_task(found)
    task.load_state_dict(torch.load(path / "checkpoints/best.ckpt", weights_only=True)["state_dict"])
    images, labels = data.splits["test"]
    with torch.no_grad():
        logits = task.eval()(images)
    predicted = logits.argmax(1)
    assert result["test/accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert result["test/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    from dltrain.batches import ClassificationBatch

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
    """The loss is finite, the step after it is not: neither best nor last may take the weights in."""
    path = run_folder("run")
    step = torch.optim.SGD.step

    def spoiling(self, closure=None):
        loss = step(self, closure)
        spoiling.count += 1
        if spoiling.count == 3:  # the last step of the first epoch
            self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return loss

    spoiling.count = 0
    monkeypatch.setattr(torch.optim.SGD, "step", spoiling)
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


@pytest.mark.parametrize(("name", "kind"), [
    ("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("rmsprop", torch.optim.RMSprop),
    ("torch.optim.Adagrad", torch.optim.Adagrad)])
def test_optimizers_by_name(name, kind):
    built = optim.optimizer(torch.nn.Linear(2, 2), name, lr=0.3, weight_decay=0.01, momentum=0.8)
    assert type(built) is kind
    assert built.param_groups[0]["weight_decay"] == 0.01
    if name == "adamw":
        assert built.param_groups[0]["betas"] == (0.8, 0.999)


def test_decay_may_leave_out_biases_and_norms():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    decayed, rest = optim.optimizer(net, "sgd", 0.1, 0.01, decay_all=False).param_groups
    assert [p.dim() for p in decayed["params"]] == [4]
    assert len(rest["params"]) == 3
    assert rest["weight_decay"] == 0


@pytest.mark.parametrize(("name", "said"), [("sdg", "did you mean 'sgd'"), ("torch.optim.Nothing", "Nothing"),
                                            ("no.such.Place", "No module")])
def test_unknown_optimizer(name, said):
    with pytest.raises(UserError, match=said):
        optim.optimizer(torch.nn.Linear(2, 2), name, lr=0.1, weight_decay=0)


def test_label_smoothing_and_clipping_reach_the_step(config, run_folder):
    plain, changed = run_folder("plain"), run_folder("changed")
    run.train(config(*TINY), plain)
    run.train(config(*TINY, "task.label_smoothing=0.1", "trainer.gradient_clip_norm=0.1"), changed)
    a, b = (torch.load(p / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for p in (plain, changed))
    assert not torch.equal(a["model.head.weight"], b["model.head.weight"])
