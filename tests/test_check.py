"""`dltrain check`: each planted fault is named by the check that is responsible, and what is sound by none."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dltrain.batches import TokenBatch, generator
from dltrain.commands.check import prepare
from dltrain.errors import CHECK_FAILED
from dltrain.preflight.contents import Contents
from dltrain.preflight.features import Association, image_features, one_hot
from dltrain.preflight.fitting import fit
from dltrain.preflight.kinds import KINDS
from dltrain.preflight.leaking import count_near, passages
from dltrain.preflight.pair import rows, without_dropout
from dltrain.preflight.probing import measure_gain, shuffle

SMALL = ["model=resnet20", "model.depth=8", "trainer=cpu"]
FAULTS = {
    "labels shuffled": (["data._target_=tests.planted.ShuffledDigits"], "labels", "labels shuffled"),
    "frozen in code": (["model._target_=tests.planted.FrozenNet"], "gradients", "requires_grad is False"),
    "not connected": (["model._target_=tests.planted.UnconnectedNet"], "gradients", "forgotten; connect these layers"),
    "leak": (["data._target_=tests.planted.LeakingDigits"], "leaks", "45 of 180 val samples are in train too"),
    "leak in another brightness": (["data._target_=tests.planted.LeakingDigits", "+data.brighter=true"], "leaks",
                                   "nearly"),
    "wrong normalisation": (["augment=none", "augment.on_normalized=[{_target_: tests.planted.StatisticsOfUnitRange}]"],
                            "normalisation", "pixels in [0, 255]"),
    "mixed samples": (["model._target_=tests.planted.MixingNet"], "samples alone", "over the batch"),
    "answers of others": (["model._target_=tests.planted.ShufflingNet"], "overfits a batch", "the order of the batch"),
    "no rate": (["task.optimizer.lr=1e-30"], "overfits a batch", "task.optimizer.lr=1e-30"),
    "loud": (["model._target_=tests.planted.LoudNet"], "loss at the start", "smaller weights"),
}


def statuses(out: str) -> dict[str, str]:
    """The status of each check, by its name."""
    lines = [line for line in out.splitlines() if line.startswith(("ok ", "warning ", "fault ", "- "))]
    return {line[9:29].strip(): line.split()[0] for line in lines}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_named_by_the_check_that_is_responsible(fault, dltrain, tmp_path):
    words, check, message = FAULTS[fault]
    code, out, err = dltrain("check", *SMALL, *words)
    assert (code, err) == (CHECK_FAILED, "")
    assert statuses(out)[check] == "fault"
    assert message in next(line for line in out.splitlines() if line[9:29].strip() == check)
    others = {name for name, status in statuses(out).items() if status == "fault"} - {check}
    assert others <= {"overfits a batch"} if fault == "loud" else not others, out
    assert not list(tmp_path.iterdir())


def test_future_of_a_language_model_is_seen(dltrain):
    small = ["model.hidden=64", "model.embedding=16", "trainer=cpu"]
    code, out, _ = dltrain("check", "model=char_rnn", *small)
    assert (code, statuses(out)["no future"]) == (0, "ok")
    code, out, _ = dltrain("check", "model=char_rnn", *small, "model._target_=tests.planted.LookingAheadRNN")
    assert code == CHECK_FAILED
    assert {name for name, status in statuses(out).items() if status == "fault"} == {"no future"}


@pytest.mark.parametrize("words", [
    SMALL, ["model=seq_classifier", "trainer=cpu"], ["model=seq2seq", "data.num_train=500", "trainer=cpu"],
    [*SMALL, "augment=cifar", "data.image_px=8", "task.label_smoothing=0.2", "trainer.precision=64-true"],
    ["model=faster_rcnn", "data.num_train=150", "trainer=cpu"]])
def test_sound_pair_has_no_alarm_and_leaves_nothing(words, dltrain, tmp_path):
    code, out, err = dltrain("check", *words)
    assert (code, err) == (0, ""), out
    assert not {"fault", "warning"} & {*statuses(out).values()}, out
    assert "no fault and no warning" in out
    for fact in ("batch", "data in memory", "parameters", "multiply-adds", "a step", "peak memory", "an epoch"):
        assert f"\n  {fact} " in out
    assert not list(tmp_path.iterdir())


def test_frozen_stages_are_listed_and_rare_classes_are_a_warning(dltrain):
    code, out, _ = dltrain("check", *SMALL, "task.freezing.until=stage1", "data._target_=tests.planted.FewOfOneClass")
    assert code == 0
    assert statuses(out) | {"gradients": "ok", "class counts": "warning"} == statuses(out)
    assert "frozen by task.freezing: " in out
    assert "2 to 128 training samples a class, 10 classes: 3 has fewest" in out


def test_imagenet_statistics_do_not_fit_the_scenes(dltrain):
    words = ["data=scene_digits", "data.num_train=300", "data.image_px=32", "augment.normalize=imagenet"]
    assert statuses(dltrain("check", *SMALL, *words)[1])["normalisation"] in ("warning", "fault")


def test_a_study_and_a_sweep_are_refused(dltrain):
    code, _, err = dltrain("check", "experiment=gradient_flow")
    assert code == 2
    assert "check examines one model and its data" in err


def test_gain_of_a_probe_is_that_of_a_ridge_regression():
    """By scikit-learn, and by luck alone seldom as large as what is needed."""
    from sklearn.linear_model import Ridge

    rng = generator("test", "probe")
    x = torch.randn(200, 5, generator=rng, dtype=torch.double)
    y = x[:, :2] + torch.randn(200, 2, generator=rng, dtype=torch.double)
    gain = measure_gain(Association(x[:, None], y[:, None]), 0)
    order = torch.randperm(200, generator=generator("check", "probe", 0))
    first, second = order[:100], order[100:]
    mean, std = x[first].mean(0), x[first].std(0, correction=0)
    model = Ridge(alpha=0.1 * 100).fit((x[first] - mean) / std, y[first])
    predicted = torch.from_numpy(model.predict((x[second] - mean) / std))
    residual, spread = y[second] - predicted, y[second] - y[first].mean(0)
    assert gain.gain == pytest.approx(float(1 - residual.square().sum() / spread.square().sum()))
    assert gain.deviations > 10
    deviations = [measure_gain(Association(x[:, None], shuffle(y[:, None], False, rng)), seed).deviations
                  for seed in range(50)]
    assert max(deviations) < 5
    assert -1 < sum(deviations) / 50 < 1


def test_patches_tell_shapes_apart_wherever_they_are():
    """Stripes across and stripes upright, at random places: small copies of both are alike."""
    rng = generator("test", "patches")
    images, labels = torch.zeros(400, 1, 32, 32), torch.randint(2, (400,), generator=rng)
    stripes = (torch.arange(8) % 2).expand(8, 8)
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = torch.randint(24, (2,), generator=rng).tolist()
        image[0, y : y + 8, x : x + 8] = stripes.T if label else stripes
    features = image_features((images * 255).to(torch.uint8))
    assert measure_gain(Association(features[:, None], one_hot(labels)[:, None]), 0).gain > 0.9
    small = features[:, :64]  # of the pixels alone
    assert measure_gain(Association(small[:, None], one_hot(labels)[:, None]), 0).gain < 0.5


def test_equal_passages_have_equal_numbers_and_others_do_not():
    text = torch.randint(9, (500,), generator=generator("test", "text")).numpy()
    numbers = passages(text)
    assert len({*numbers.tolist()}) == len(numbers) == 451
    assert passages(text[100:]).tolist() == numbers[100:].tolist()


def test_copies_are_equal_up_to_brightness_and_contrast_only():
    from dltrain.preflight.contents import grey_copy

    images = torch.randint(256, (20, 3, 32, 32), generator=generator("test", "copies"), dtype=torch.uint8)
    train = Contents(20, copies=torch.stack([grey_copy(image) for image in images]))
    paler = Contents(10, copies=torch.stack([grey_copy(image // 3 + 50) for image in images[:10]]))
    others = Contents(10, copies=torch.stack([grey_copy(255 - image) for image in images[:10]]))
    assert (count_near(paler, train), count_near(others, train)) == (10, 0)


def test_best_loss_of_a_blind_model_is_the_entropy():
    batch = TokenBatch(torch.zeros(1, 4, dtype=torch.long), torch.tensor([[5, 5, 6, -100]]))
    expected = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert KINDS[TokenBatch].blind_loss(batch) == pytest.approx(expected)
    assert rows(batch, [0, 0]).tokens.shape == (2, 4)


@pytest.mark.parametrize("words", [SMALL, ["model=char_rnn", "model.hidden=16", "trainer=cpu"]])
def test_what_was_trained_is_undone(words, config):
    pair = prepare(config(*words))
    pair.task.eval()
    before = {name: value.clone() for name, value in pair.task.state_dict().items()}
    batch = pair.samples(pair.kind.samples_fitted)
    with pair.kept(batch.size):
        fit(pair, batch)
        assert any(not torch.equal(before[name], value) for name, value in pair.task.model.state_dict(
            prefix="model.").items())
        assert pair.task.training
    after = pair.task.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not pair.task.training
    assert pair.augment is None or len(pair.augment.on_normalized) == 1


def test_dropout_is_switched_off_and_on_again():
    model = nn.Sequential(nn.Dropout(0.9), nn.LSTM(3, 3, 2, dropout=0.5), nn.LeakyReLU(0.1))
    with without_dropout(model):
        assert (model[0].p, model[1].dropout, model[2].negative_slope) == (0.0, 0.0, 0.1)
    assert (model[0].p, model[1].dropout) == (0.9, 0.5)


def test_the_script_lists_pairs_that_are_there():
    from dltrain.config import groups

    text = (Path(__file__).parents[1] / "scripts/preflight_table").read_text()
    names = text.partition("PAIRS = (")[2].partition(")")[0].replace('"', "").replace("\n", "").split(",")
    models, data = {*groups.names("model")}, {*groups.names("data")}
    for name in names:
        model, _, source = name.strip().partition("+")
        assert model in models
        assert not source or source in data
