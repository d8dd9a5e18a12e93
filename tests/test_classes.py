"""What tasks of classes share: weighted classes, smoothed labels, accuracy among the k best, metrics of each class."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import precision_recall_fscore_support, top_k_accuracy_score

from dltrain.batches import IGNORED_LABEL
from dltrain.build import build_data, build_task
from dltrain.contracts import ClassLossOf, class_heads
from dltrain.errors import UserError
from dltrain.models.localizer import Localizer
from dltrain.tasks.classification import ClassLoss
from dltrain.tasks.multiclass import ConfusionMatrix, TopAccuracies, of_each_class
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("without_figures")


def read_labels(batch: Any) -> torch.Tensor:
    labels: torch.Tensor = batch.labels
    return labels


def data_of(counts: dict[str, int]) -> Any:
    return SimpleNamespace(class_names=[*counts], class_counts=lambda: counts)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 60 + [1] * 30 + [2] * 10
    loss = ClassLoss(3, balanced=True)
    loss.fit(data_of({"a": 60, "b": 30, "c": 10}), read_labels)
    expected = compute_class_weight("balanced", classes=torch.arange(3).numpy(), y=labels)
    torch.testing.assert_close(cast(torch.Tensor, loss.weights).double(), torch.from_numpy(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_the_loss_is_that_of_a_loop(smoothing, shape):
    torch.manual_seed(0)
    logits, targets = torch.randn(shape[0], 3, *shape[1:], dtype=torch.double), torch.randint(0, 3, shape)
    targets.view(-1)[1] = IGNORED_LABEL
    loss = ClassLoss(3, smoothing, by_name={"b": 2.5, "c": 0})
    loss.fit(data_of({"a": 1, "b": 1, "c": 1}), read_labels)
    loss.double()
    weights, total, count = [1, 2.5, 0], 0.0, 0
    for place in (targets != IGNORED_LABEL).nonzero():
        sample, *inner = place.tolist()
        log_probabilities = logits[(sample, slice(None), *inner)].log_softmax(0)
        label = int(targets[tuple(place)])
        shares = [smoothing / 3 + (1 - smoothing) * (index == label) for index in range(3)]
        total -= sum(share * weight * float(value)
                     for share, weight, value in zip(shares, weights, log_probabilities, strict=True))
        count += 1
    assert float(loss.mean(logits, targets)) == pytest.approx(total / count, rel=1e-12)


def test_without_weights_it_is_torchs():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), torch.tensor([0, 2, IGNORED_LABEL, 1, 1])
    assert torch.equal(ClassLoss(3, 0.2).mean(logits, targets), F.cross_entropy(logits, targets, label_smoothing=0.2))
    mixed = torch.rand(5, 3).softmax(1)
    assert torch.equal(ClassLoss(3, 0.2).mean(logits, mixed), F.cross_entropy(logits, mixed, label_smoothing=0.2))
    weighted = ClassLoss(3, by_name={"a": 1.0})
    torch.testing.assert_close(weighted.mean(logits, mixed), F.cross_entropy(logits, mixed))


def test_a_class_may_be_named_by_a_number():
    loss = ClassLoss(2, by_name=cast(dict[str, float], {7: 2}))
    loss.fit(data_of({"3": 1, "7": 1}), read_labels)
    assert cast(torch.Tensor, loss.weights).tolist() == [1, 2]


def test_a_name_that_no_class_has_is_refused():
    loss = ClassLoss(2, by_name={"cta": 2})
    with pytest.raises(UserError, match=r"task.class_weights.cta: no class has this name; did you mean 'cat'\?"):
        loss.fit(data_of({"cat": 1, "dog": 1}), read_labels)
    with pytest.raises(ValueError, match="class_weights must be numbers of at least 0"):
        ClassLoss(2, by_name={"cat": -1})


DETECTORS = ["faster_rcnn", "fast_rcnn", "rcnn", "overfeat", "localizer"]


@pytest.mark.parametrize("model", DETECTORS)
def test_the_classes_of_a_detector_are_weighted_and_smoothed(model, config):
    """Its loss is that of a loop over the logits and labels of its head, where background has the weight 1."""
    composed = config(f"model={model}", "task.class_weights.3=3", "task.class_weights.4=0",
                      "task.label_smoothing=0.2", "data.batch_size=4")
    data = build_data(composed)
    composed.class_names = data.class_names
    task: Any = build_task(composed, data.vocabularies)
    task.fit_statistics(data)
    (head,), calls = class_heads(task.model), list[tuple[torch.Tensor, torch.Tensor]]()
    weighted = cast(ClassLossOf, head.class_loss)

    def recorded(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append((logits, labels))
        return weighted(logits, labels)

    head.class_loss = recorded
    batch = next(iter(data.read("train", [torch.arange(4)])))
    losses = task.model.train()(*task.augment(batch, None))
    ((logits, labels),) = calls
    names = list(data.class_names)
    if head.background is not None:
        names.insert(head.background, "background")
    assert logits.shape[1] == len(names)
    in_loss = {names[label] for label in labels.tolist()} - {"background"}
    assert in_loss == {data.class_names[label] for target in batch.targets for label in target["labels"].tolist()}
    total = 0.0
    for row, label in zip(logits.double().log_softmax(1).tolist(), labels.tolist(), strict=True):
        shares = [0.2 / len(names) + 0.8 * (index == label) for index in range(len(names))]
        total -= sum(share * {"3": 3, "4": 0}.get(name, 1) * value
                     for share, name, value in zip(shares, names, row, strict=True))
    assert losses["loss_classifier"].item() == pytest.approx(total / len(labels), rel=1e-5)


def test_a_detector_without_a_loss_of_classes_refuses_weights(config, monkeypatch):
    composed = config("model=localizer", "task.label_smoothing=0.2")
    data = build_data(composed)
    composed.class_names = data.class_names
    monkeypatch.delattr(Localizer, "class_loss")
    with pytest.raises(UserError, match="need a model with the attribute class_loss, which Localizer does not have"):
        build_task(composed, data.vocabularies)


@pytest.mark.parametrize("words", [["model=resnet20"], ["model=fcn8s"], ["model=tagger"], ["model=seq_classifier"],
                                   ["model=faster_rcnn"], ["model=overfeat"],
                                   ["model=seq_classifier", "data=labelled_text", "data.root=texts"]])
def test_balanced_classes_weigh_the_same_in_every_family(words, config, tmp_path, monkeypatch):
    """The sum of the weights of the training targets of a class is the same for all classes that occur."""
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for split in ("train", "val", "test"):
        Path("texts", f"{split}.tsv").write_text("good\tfine day\nbad\ta rain\nbad\tthe snow\n" * 4)
    composed = config(*words, "task.balance_classes=true")
    data = build_data(composed)
    composed.class_names = data.class_names
    task: Any = build_task(composed, data.vocabularies)
    task.fit_statistics(data)
    read: Any = {"TaggedBatch": lambda batch: batch.tags, "SegmentationBatch": lambda batch: batch.masks,
                 "DetectionBatch": lambda batch: torch.cat([target["labels"] for target in batch.targets])
                 }.get(composed.data.batch_type, read_labels)
    counts = torch.zeros(len(data.class_names))
    for batch in data.read("train", [*torch.arange(data.num_samples("train")).split(64)]):
        targets = read(batch)
        counts += torch.bincount(targets[(targets != IGNORED_LABEL) & (targets != 255)],
                                 minlength=len(data.class_names))[: len(data.class_names)]
    weights = task.class_loss.weights.tolist()
    if task.class_loss.background is not None:
        assert weights.pop(task.class_loss.background) == 1
    masses = (counts * torch.tensor(weights))[counts > 0]
    torch.testing.assert_close(masses, masses.mean().expand_as(masses), rtol=1e-4, atol=0)
    assert float(masses.sum()) == pytest.approx(float(counts.sum()) * int((counts > 0).sum()) / len(counts), rel=1e-4)


@pytest.mark.parametrize("model", ["resnet20", "seq_classifier", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("fcn8s", "tagger", "seq2seq", "captioner"))])
def test_smoothing_changes_the_loss_of_training_alone(model, dltrain):
    words = [f"model={model}", "trainer=smoke", "trainer.accelerator=cpu"]
    assert dltrain("name=plain", *words)[0] == 0
    assert dltrain("name=smooth", *words, "task.label_smoothing=0.3", "task.optimizer.lr=1e-30")[0] == 0
    assert dltrain("name=plain_slow", *words, "task.optimizer.lr=1e-30")[0] == 0
    rows = {name: Path(f"outputs/{name}/metrics.csv").read_text().splitlines() for name in ("smooth", "plain_slow")}
    columns = rows["smooth"][0].split(",")
    values = {name: [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
              for name, lines in rows.items()}
    first = {name: next(row["train/loss"] for row in of if row["train/loss"]) for name, of in values.items()}
    last = {name: next(row["val/loss"] for row in of if row["val/loss"]) for name, of in values.items()}
    assert first["smooth"] != first["plain_slow"]
    assert float(last["smooth"]) == pytest.approx(float(last["plain_slow"]), rel=1e-4)


def test_accuracy_among_the_k_best_is_that_of_scikit_learn():
    torch.manual_seed(0)
    logits, labels = torch.randn(300, 10), torch.randint(0, 10, (300,))
    metric = TopAccuracies(10, [2, 5])
    for start in (0, 100, 200):
        metric.update(logits[start : start + 100], labels[start : start + 100])
    metric.update(logits[:1], torch.tensor([IGNORED_LABEL]))
    values = metric.compute(lambda tensor: tensor)
    for k in (2, 5):
        expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k)
        assert float(values[f"accuracy_top{k}"]) == pytest.approx(expected)
    assert int(metric.hits.sum()) == 0
    with pytest.raises(ValueError, match="top_k must have integers from 1 to 9, but has 10"):
        TopAccuracies(10, [10])


def test_the_metrics_of_each_class_are_those_of_scikit_learn():
    torch.manual_seed(0)
    predicted, labels = torch.randint(0, 4, (200,)), torch.randint(0, 3, (200,))  # class 3 is never true
    matrix = ConfusionMatrix(5)  # and class 4 never occurs
    matrix.update(predicted, labels)
    values = of_each_class(matrix.compute(lambda tensor: tensor), ["a", "b", "c", "d", "e"])
    expected = precision_recall_fscore_support(labels.numpy(), predicted.numpy(), labels=range(4), zero_division=0)
    for metric, row in zip(("precision", "recall", "f1"), expected, strict=False):
        for name, value in zip("abcd", row, strict=True):
            if (metric, name) != ("recall", "d"):
                assert float(values[f"{metric}/{name}"]) == pytest.approx(float(value)), (metric, name)
    assert not {"recall/d", "precision/e", "recall/e", "f1/e"} & values.keys()


def test_a_run_states_them_in_its_result_and_eval_as_a_table(dltrain):
    code, out, err = dltrain("name=a", *TINY, "task.top_k=[3]", "task.balance_classes=true")
    assert (code, err) == (0, "")
    result = json.loads(Path("outputs/a/result.json").read_text())
    assert {f"test/recall/{digit}" for digit in range(10)} <= result.keys()
    assert result["test/accuracy_top3"] >= result["test/accuracy"]
    assert "test/recall" not in out
    code, out, err = dltrain("eval", "run=outputs/a")
    assert (code, err) == (0, "")
    table = [line.split() for line in out.splitlines()]
    row = table[table.index(["class", "precision", "recall", "f1"]) + 3]
    assert float(row[2]) == pytest.approx(result[f"test/recall/{row[0]}"], abs=1e-4)
    stored = json.loads(Path("outputs/a/eval.json").read_text())
    assert stored["test/accuracy_top3"] == pytest.approx(result["test/accuracy_top3"])
