"""A task, trained by Lightning with all callbacks, against a training loop written by hand; metrics; schedules."""

import math
import random
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from sklearn.metrics import accuracy_score, confusion_matrix

from dltrain import optim, run
from dltrain.batches import IGNORED_LABEL, ClassificationBatch, generator, seed_of
from dltrain.build import build, build_data, build_task, check_first_step
from dltrain.callbacks.step_seeds import StepSeeds
from dltrain.errors import DivergedError, UserError
from dltrain.run_dir import RunDir
from dltrain.tasks.classification import Classification
from dltrain.trainer import has_own_code
from tests.conftest import TINY
from tests.tiny import FewDigits

pytestmark = pytest.mark.usefixtures("without_figures")


def train_by_hand(config: DictConfig) -> tuple[torch.nn.Module, list[float], list[float]]:
    """What a run does to the weights, in one loop without Lightning and callbacks. Returns the trained model,
    the loss of each step and, where it is clipped, the norm of its gradient."""
    images, labels = cast(FewDigits, build_data(config)).splits["train"]
    torch.manual_seed(seed_of("init", config.seed))
    model = build(config.model, "model")
    model.to(memory_format=torch.channels_last)
    pixels = images.double() / 255
    mean, std = pixels.mean((0, 2, 3), keepdim=True).float(), pixels.std((0, 2, 3), keepdim=True, correction=0).float()
    keys = config.task.optimizer
    steps_per_epoch = math.ceil(len(labels) / config.data.batch_size)
    total_steps = steps_per_epoch * config.trainer.max_epochs
    sgd = torch.optim.SGD(model.parameters(), lr=keys.lr, momentum=keys.momentum, weight_decay=keys.weight_decay)
    losses: list[float] = []
    norms: list[float] = []
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
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.gradient_clip_norm)
                norms.append(float(norm))
            sgd.step()
            losses.append(loss.item())
    return model, losses, norms


@pytest.mark.parametrize("more", [(), ("task.label_smoothing=0.1",), ("trainer.gradient_clip_norm=2.0",)])
def test_twenty_steps_equal_a_loop_by_hand(more, config, run_folder):
    """Order, crop, normalisation, stochastic depth, schedule, momentum, decay, label smoothing, clipping: the same bits
    after 20 steps."""
    overrides = (*TINY, "data.batch_size=20", "trainer.max_epochs=4", *more)
    model, losses, norms = train_by_hand(config(*overrides))
    assert len(losses) == 20
    run_dir = RunDir(run_folder("run"))
    run.train(config(*overrides), run_dir)
    saved = torch.load(run_dir.path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 20
    for name, value in model.state_dict().items():
        assert torch.equal(saved["state_dict"][f"model.{name}"], value), name
    sizes = [20, 20, 20, 20, 16]
    rows = [row for row in run_dir.read_metrics() if row["train/loss"]]
    assert [(row["step"], row["epoch"]) for row in rows] == [("5", "1"), ("10", "2"), ("15", "3"), ("20", "4")]
    for row, start in zip(rows, range(0, 20, 5), strict=True):
        expected = np.average(losses[start : start + 5], weights=sizes)
        assert float(row["train/loss"]) == pytest.approx(expected, rel=1e-5)
        if norms:
            of_epoch = np.array(norms[start : start + 5])
            assert float(row["train/gradient_norm"]) == pytest.approx(of_epoch.mean(), rel=1e-5)
            assert float(row["train/clipped_fraction"]) == pytest.approx((of_epoch > 2).mean())


def test_step_seeds_are_a_function_of_seed_epoch_batch_and_rank():
    """The task's position and all global generators; each of the four changes what is sampled."""
    samples = []
    positions = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)]
    for seed, epoch, batch_idx, rank in positions:
        task: Any = SimpleNamespace(device=torch.device("cpu"))
        trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        StepSeeds(seed).on_train_batch_start(trainer, task, None, batch_idx)
        assert task.position == (seed, epoch, batch_idx, rank)
        samples.append((float(torch.rand(())), random.random(), float(np.random.rand())))
    assert samples[0] == samples[-1]
    assert all(len({sample[kind] for sample in samples}) == 5 for kind in range(3))


def test_metrics_equal_scikit_learns(config, run_folder):
    """Samples with the ignored label, which fill up a batch, do not count."""
    run_dir, composed = RunDir(run_folder("run")), config(*TINY)
    result = run.train(composed, run_dir)
    task = cast(Classification, build_task(composed))
    task.load_state_dict(torch.load(run_dir.best_checkpoint, weights_only=True)["state_dict"])
    images, labels = cast(FewDigits, build_data(composed)).splits["test"]
    with torch.no_grad():
        logits = task.eval()(images)
    predictions, loss = logits.argmax(1), float(F.cross_entropy(logits, labels))
    assert result["test/accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert result["test/loss"] == pytest.approx(loss, rel=1e-5)
    filled = ClassificationBatch(torch.cat([images, images[:3]]), torch.cat([labels, torch.full((3,), IGNORED_LABEL)]))
    torch.testing.assert_close(task.evaluation_step(filled)[:40], logits)
    assert task.evaluation_loss.tolist() == pytest.approx([40 * loss, 40], rel=1e-5)
    expected = confusion_matrix(labels, predictions, labels=range(10))
    assert task.metrics.compute(lambda counts: counts).tolist() == expected.tolist()
    task.evaluation_step(ClassificationBatch(images[:5], labels[:5]))
    assert task.metrics.compute(lambda counts: counts).sum() == 5  # the next evaluation starts anew


def test_a_loss_that_is_not_finite_ends_the_run(config, run_folder):
    run_dir = RunDir(run_folder("run"))
    with pytest.raises(DivergedError, match=r"^loss is (nan|inf) at step 1 with lr 1e\+30; ") as caught:
        run.train(config(*TINY, "task.optimizer.lr=1e30", "model.norm=none", "trainer.checkpoint_every_steps=1"),
                  run_dir)
    assert "\n" not in str(caught.value)
    assert [file.name for file in (run_dir.path / "checkpoints").iterdir()] == ["last.ckpt"]
    saved = torch.load(run_dir.path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_weights_that_are_not_finite_reach_no_checkpoint(config, run_folder, monkeypatch):
    """The loss is finite, but the optimizer step makes a weight nan: neither best nor last may store it."""
    run_dir, sgd_step, steps = RunDir(run_folder("run")), torch.optim.SGD.step, []

    def failing_step(self, closure=None):
        loss = sgd_step(self, closure)
        steps.append(loss)
        if len(steps) == 3:  # the last step of the first epoch
            self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", failing_step)
    with pytest.raises(DivergedError, match="weights are not finite at step 3"):
        run.train(config(*TINY), run_dir)
    assert all(loss.isfinite() for loss in steps)
    assert not list(run_dir.path.glob("checkpoints/*"))


@pytest.mark.parametrize(("keys", "steps", "expected"), [
    ({"name": "step", "milestones": (0.5, 0.75)}, (0, 31999, 32000, 47999, 48000), (1, 1, 0.1, 0.1, 0.01)),
    ({"name": "constant"}, (0, 63999), (1, 1)),
    ({"name": "cosine"}, (0, 16000, 32000, 64000), (1, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0)),
    ({"name": "step", "warmup_steps": 400, "warmup": "constant"}, (0, 399, 400), (0.1, 0.1, 1)),
    ({"name": "cosine", "warmup_steps": 100, "warmup_factor": 0.0}, (0, 50, 100), (0, 0.5, 1)),
    ({"name": "triangular", "warmup_factor": 0.2, "final_factor": 0.1}, (0, 8000, 16000, 40000, 64000, 64001),
     (0.2, 0.6, 1, 0.55, 0.1, 0.1)),
])
def test_schedules(keys, steps, expected):
    fractions = [optim.fraction_of_peak(step, 64000, **keys) for step in steps]
    assert fractions == pytest.approx(expected, abs=1e-9)


def test_a_triangular_schedule_has_no_other_warmup():
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=1.0)
    with pytest.raises(UserError, match=r"task\.schedule\.warmup_steps=5: must be 0 with name=triangular"):
        optim.schedule(optimizer, 100, {"name": "triangular", "warmup_steps": 5})


@pytest.mark.parametrize(("name", "expected"), [
    ("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW),
    ("rmsprop", torch.optim.RMSprop), ("torch.optim.Adagrad", torch.optim.Adagrad)])
def test_optimizers_by_name(name, expected):
    built = optim.optimizer(torch.nn.Linear(2, 2), name, lr=0.3, weight_decay=0.01, momentum=0.8)
    assert type(built) is expected
    (group,) = built.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.01)
    assert group.get("betas") == ((0.8, 0.999) if name.startswith("adam") else None)
    assert group.get("momentum") == (0.8 if name in ("sgd", "rmsprop") else None)


def test_weight_decay_can_skip_biases_and_norms():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    decayed, others = optim.optimizer(net, "sgd", 0.1, 0.01, decay_all=False).param_groups
    assert [parameter.dim() for parameter in decayed["params"]] == [4]
    assert decayed["weight_decay"] == 0.01
    assert [parameter.dim() for parameter in others["params"]] == [1, 1, 1]
    assert others["weight_decay"] == 0


@pytest.mark.parametrize(("name", "message"), [
    ("sdg", "unknown task.optimizer.name 'sdg'; did you mean 'sgd'?"),
    ("nothing", "unknown task.optimizer.name 'nothing'; there are: sgd, adam, adamw, rmsprop, or a dotted path"),
    ("torch.optim.Nothing", "task.optimizer.name=torch.optim.Nothing: torch.optim has no 'Nothing'"),
    ("no.such.Place", "task.optimizer.name=no.such.Place: No module named 'no'; a module of your own must lie in this "
                      "folder or beside --config-dir"),
])
def test_an_unknown_optimizer_is_refused(name, message):
    with pytest.raises(UserError) as caught:
        optim.optimizer(torch.nn.Linear(2, 2), name, lr=0.1, weight_decay=0)
    assert str(caught.value) == message


def test_nesterov_is_refused_for_other_optimizers_than_sgd():
    assert optim.optimizer(torch.nn.Linear(2, 2), "sgd", 0.1, 0, momentum=0.9, nesterov=True).defaults["nesterov"]
    with pytest.raises(UserError, match=r"^task\.optimizer\.nesterov=true: only sgd has it, but .* is adam$"):
        optim.optimizer(torch.nn.Linear(2, 2), "adam", 0.1, 0, nesterov=True)


@pytest.mark.parametrize(("many", "batch_size"), [(1, 96), (8, 96), (4, 32), (2, 32), (3, 32)])
def test_the_last_step_of_an_epoch_has_the_mean_gradient(many, batch_size, config, tmp_path, monkeypatch):
    """One step of `many` batches, of which the epoch has fewer, against the gradient of the mean loss of those."""
    norms, expected = [], []
    original = Classification.configure_gradient_clipping

    def note(self, optimizer, *arguments, **keys):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()]).item())
        losses = []
        epoch = self.trainer.current_epoch
        done = self.trainer.fit_loop.batch_idx + 1
        first = (done - 1) // many * many
        order = self.trainer.train_dataloader.order(epoch).split(batch_size)[first:done]
        for batch in self.trainer.datamodule.read("train", list(order)):
            images, labels = self.augment(batch, generator("augment", *self.position))
            losses.append(F.cross_entropy(self.model(images), labels))
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(self.model.parameters()))
        expected.append(torch.nn.utils.get_total_norm(gradients).item())
        original(self, optimizer, *arguments, **keys)

    monkeypatch.setattr(Classification, "configure_gradient_clipping", note)
    words = [word for word in TINY if "batch_size" not in word and "epochs" not in word and "model" not in word]
    run.train(config(*words, "model=resnet20", "model.depth=8", "model.norm=none", "recipe=none", "augment=none",
                     f"data.batch_size={batch_size}", f"trainer.accumulate_batches={many}", "trainer.max_epochs=2",
                     "task.optimizer.lr=0.001"), RunDir(tmp_path))
    assert norms == pytest.approx(expected, rel=1e-4)


def test_a_lone_last_sample_that_batch_norm_cannot_take_is_refused_before_the_first_step(config, tmp_path):
    """96 samples in batches of 19 leave one; a net whose last maps have one pixel cannot normalise it."""
    words = [word for word in TINY if "batch_size" not in word and "model" not in word]
    for model in ("model=resnet18", "model=lite0"):
        keys = config(*words, model, "data=digits", "recipe=none", "data.batch_size=19", "trainer.max_epochs=1",
                      *(["data.channels=3"] if model == "model=lite0" else []))
        with pytest.raises(UserError, match=r"data.batch_size=19: the last batch of 96 samples has one, .*"
                                            r"data.batch_size=20 leaves none alone"):
            run.train(keys, RunDir(tmp_path))
        keys.data.batch_size, few = 2, build_data(keys)
        few.num_samples = lambda split: 1  # type: ignore[method-assign]
        with pytest.raises(UserError, match=r"the last batch of 1 samples has one, .*no batch size leaves none alone"):
            check_first_step(keys, few, build_task(keys, few.vocabularies))
        keys.data.batch_size = 19
        keys.trainer.smoke_steps = 5  # the last of the six batches is not read
        check_first_step(keys, data := build_data(keys), build_task(keys, data.vocabularies))
    keys = config(*words, "model=resnet20", "model.depth=8", "recipe=none", "data.batch_size=19")
    data = build_data(keys)
    task = build_task(keys, data.vocabularies)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    check_first_step(keys, data, task)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert task.training


def test_sums_of_a_checkpoint_go_on_and_so_do_those_of_earlier_versions(config):
    """Norms 3 and 4 before the checkpoint, one of them clipped, and 5 after it."""
    task, resumed, from_earlier = (build_task(config(*TINY)) for _ in range(3))
    task.norm_sums += [(torch.tensor(3.0), torch.tensor(False), 1), (torch.tensor(4.0), torch.tensor(True), 1)]
    task.step_sums.append((torch.tensor(6.0), torch.tensor(2), 4))
    checkpoint: dict[str, Any] = {}
    task.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    earlier = {**task.state_dict(), "gradients": torch.tensor([7.0, 1.0, 2.0]), "sums": torch.tensor([6.0, 2.0, 4.0])}
    from_earlier.load_state_dict(earlier)
    for one in (resumed, from_earlier):
        one.clips = True
        one.norm_sums.append((torch.tensor(5.0), torch.tensor(False), 1))
        assert one.read_training_metrics() == pytest.approx({
            "train/loss": 1.5, "train/accuracy": 0.5, "train/gradient_norm": 4.0, "train/clipped_fraction": 1 / 3})
        assert one.read_training_metrics() == {}


@pytest.mark.parametrize(("words", "is_own"), [
    ([], False), (["model=timm"], False), (["trainer.callbacks=[LearningRateMonitor]"], False),
    (["task.optimizer.name=mine.Slow"], True), (["trainer.callbacks=[{_target_: mine.Stop}]"], True)])
def test_python_and_numpy_are_seeded_where_code_of_the_users_may_draw_from_them(words, is_own, config, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert has_own_code(config(*words)) is is_own
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    trainer: Any = SimpleNamespace(current_epoch=0, global_rank=0)
    task = build_task(config(*TINY))
    StepSeeds(0, is_own).on_train_batch_start(trainer, task, None, 0)
    after = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    assert (after[0] != before[0], after[1] != before[1]) == (is_own, is_own)
