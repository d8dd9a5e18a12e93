"""Many to one, a label per sequence: the net, samples from files, accuracy against a loop, exact resume, predict."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dltrain import build, evaluation, run
from dltrain.batches import IGNORED_LABEL, PAD, BatchError, LabelledBatch
from dltrain.config.compose import compose
from dltrain.data.datamodule import SPLITS
from dltrain.data.digits import Digits, DigitsRows
from dltrain.data.labelled_text import LabelledTextFiles
from dltrain.data.sequence_classification import LabelledTexts, Recall
from dltrain.errors import DataError
from dltrain.models.recurrent import SequenceClassifier, Tagger
from dltrain.run_dir import RunDir
from tests.command_line import run_command


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_padding_changes_no_logits(cell, pool):
    torch.manual_seed(0)
    net = SequenceClassifier(3, cell, 6, 2, vocab_size=9, embedding=4, pool=pool, bidirectional=True).double().eval()
    tagger = Tagger(9, 3, cell, 6, 2).double().eval()
    tokens, lengths = torch.randint(4, 9, (3, 7)), (7, 2, 5)
    for row, length in enumerate(lengths):
        tokens[row, length:] = PAD
    labels, tags = net(tokens, lengths), tagger(tokens, lengths)
    for row, length in enumerate(lengths):
        alone = tokens[[row], :length]
        torch.testing.assert_close(net(alone, (length,))[0], labels[row], rtol=0, atol=1e-12)
        torch.testing.assert_close(tagger(alone, (length,))[0], tags[row, :length], rtol=0, atol=1e-12)


def test_pooling_is_the_state_at_the_end_or_the_mean():
    torch.manual_seed(0)
    net = SequenceClassifier(3, "gru", 6, 1, features=4).double().eval()
    x = torch.randn(2, 5, 4, dtype=torch.double)
    out, _ = net.recurrent.unrolled(x)
    torch.testing.assert_close(net(x, (5, 3)), net.head(torch.stack([out[0, 4], out[1, 2]])))
    net.pool = "mean"
    torch.testing.assert_close(net(x, (5, 3)), net.head(torch.stack([out[0].mean(0), out[1, :3].mean(0)])))


def test_the_initial_bias_of_a_gate_keeps_the_state():
    """With zero input and recurrent weights, the state after T steps is what the gate leaves of it."""
    for cell in ("lstm", "gru"):
        net = SequenceClassifier(3, cell, 6, 1, features=4, keep_bias=4.0).double().recurrent
        for name, value in net.fused.named_parameters():
            if name.startswith("weight"):
                value.data.zero_()
            else:
                value.data[:6] = value.data[12:] = 0  # nothing comes in
        state = tuple(torch.ones(1, 1, 6, dtype=torch.double) for _ in net.zeros(1))
        _, after = net(torch.zeros(1, 10, 4, dtype=torch.double), state)
        kept = torch.sigmoid(torch.tensor(4.0, dtype=torch.double)) ** 10
        torch.testing.assert_close(after[-1], kept.expand(1, 1, 6))


def test_digits_are_read_row_by_row():
    rows = DigitsRows(features=8, vocab_size=None, num_classes=10, batch_size=4)
    images = Digits(channels=1, num_classes=10, image_px=8, batch_size=4)
    rows.load()
    images.load()
    indices = torch.tensor([3, 5, -1])
    batch, plain = next(rows.read("test", [indices])), next(images.read("test", [indices]))
    torch.testing.assert_close(batch.tokens, plain.images[:, 0].float() / 255)
    assert batch.labels.tolist() == plain.labels.tolist()
    assert batch.labels[2] == IGNORED_LABEL
    assert batch.lengths == (8, 8, 8)


def labelled(root, **keys) -> LabelledTextFiles:
    return LabelledTextFiles(**{"root": str(root), "encoding": "utf-8", "words": True, "lower": True, "min_count": 1,
                           "max_length": 5, "batch_size": 4, **keys})


def test_a_file_for_each_label(tmp_path):
    for name, count in (("good.txt", 30), ("bad.txt", 10)):
        (tmp_path / name).write_text("".join(f"{name[:-4]} film number {i}, seen twice\n" for i in range(count)))
    data = labelled(tmp_path)
    data.load()
    assert data.class_names == ["bad", "good"]
    counts = {split: sorted(label for _, label in data.samples[split]) for split in SPLITS}
    assert counts == {"train": [0] * 8 + [1] * 24, "val": [0] + [1] * 3, "test": [0] + [1] * 3}
    texts = [text for split in SPLITS for text, _ in data.labelled[split]]
    assert len(set(texts)) == len(texts) == 40
    assert all(len(tokens) == 5 for tokens, _ in data.samples["train"]), "cut at max_length"
    again = labelled(tmp_path, seed=5)
    again.load()
    assert again.samples == data.samples
    for name in ("x.pos", "x.neg"):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name).write_text("a b\n" * 10)
    data = labelled(tmp_path / "two")
    data.load()
    assert data.class_names == ["x.neg", "x.pos"]


def test_lines_with_labels_and_their_faults(tmp_path):
    file = tmp_path / "all.tsv"
    file.write_text("spam\tbuy\tthis\nham\thello\n" * 10)
    data = labelled(file)
    assert ("buy\tthis", "spam") in data.texts()["train"]
    for split, text in (("train", "a\tx\nb\ty\n"), ("val", "a\tx\n"), ("test", "c\tx\n")):
        (tmp_path / "splits").mkdir(exist_ok=True)
        (tmp_path / "splits" / f"{split}.tsv").write_text(text)
    with pytest.raises(DataError, match="the test split has the label 'c', which the training split does not have"):
        labelled(tmp_path / "splits").load()
    file.write_text("spam\tbuy\nhello\n")
    with pytest.raises(DataError, match=r"all.tsv:2: must be label<TAB>text, but is 'hello'"):
        labelled(file).load()
    file.write_text("spam\tbuy\n" * 20)
    with pytest.raises(DataError, match=r"at least two labels, but has \['spam'\]"):
        labelled(file).load()
    with pytest.raises(DataError, match=r"data.root=.*none: no such file or folder"):
        labelled(tmp_path / "none").load()


def test_the_first_symbol_is_the_label():
    data = Recall(delay=6, symbols=4, num_train=200, batch_size=4)
    data.load()
    assert [data.num_samples(split) for split in SPLITS] == [200, 500, 1000]
    assert data.class_names == list("ABCD")
    for text, label in data.labelled["train"]:
        assert (len(text), text[0]) == (7, label)
    labels = [label for _, label in data.labelled["train"]]
    assert len(labels) == 200
    assert min(labels.count(label) for label in "ABCD") > 30


def test_a_batch_that_breaks_its_promise_is_refused():
    with pytest.raises(BatchError, match=r"lengths must be 2 ints in \[1, 3\], but are \(3, 4\)"):
        LabelledBatch(torch.zeros(2, 3).long(), (3, 4), torch.zeros(2).long()).check(5)


def reviews(folder: Path) -> list[str]:
    """The overrides of a run of 60 short texts with the label in one of their words, 6 steps an epoch."""
    root = folder / "reviews"
    root.mkdir()
    for label, word in (("pos", "good"), ("neg", "bad")):
        (root / f"{label}.txt").write_text("".join(
            f"{'so ' * (i % 5)}{word if i % 6 else 'odd'} film {i}\n" for i in range(30)))
    return ["model=seq_classifier", "data=labelled_text", f"data.root={root}", "model.hidden=8", "model.embedding=8",
            "task.schedule.name=step", "trainer.gradient_clip_norm=null",
            "model.dropout=0.1", "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=2", "recipe=none",
            "task.optimizer.name=adam", "task.optimizer.lr=0.01", "task.optimizer.weight_decay=0"]


class Trained(NamedTuple):
    """A finished run, its result, its data, and its best weights."""

    run_dir: RunDir
    result: dict[str, Any]
    data: LabelledTexts
    model: SequenceClassifier

    @torch.no_grad()
    def log_probabilities(self, tokens: list[int]) -> Tensor:
        return self.model(torch.tensor([tokens]), (len(tokens),))[0].log_softmax(0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    composed, run_dir = compose(reviews(folder)), RunDir.named(folder, "run")
    config = composed.job_config()
    result = run.train(config, run_dir, composed.comments())
    data, task = build.build_data(config), evaluation.restore(config, run_dir)
    assert isinstance(data, LabelledTexts)
    assert isinstance(task.model, SequenceClassifier)
    return Trained(run_dir, result, data, task.model)


def test_accuracy_and_loss_equal_a_loop(trained):
    samples = trained.data.samples["test"]
    log_p = [trained.log_probabilities(tokens) for tokens, _ in samples]
    labels = [label for _, label in samples]
    correct = sum(int(row.argmax()) == label for row, label in zip(log_p, labels, strict=True))
    assert len(samples) == 6
    assert trained.result["test/accuracy"] == pytest.approx(correct / 6)
    loss = -sum(float(row[label]) for row, label in zip(log_p, labels, strict=True))
    assert trained.result["test/loss"] == pytest.approx(loss / 6, rel=1e-5)


def test_what_is_no_label_makes_no_class(tmp_path):
    rows = "".join(f"{label}\tday {index}\n" for index in range(20) for label in ("pos", "neg"))
    (tmp_path / "header.tsv").write_text("Label\ttext\n" + rows)
    data = labelled(tmp_path / "header.tsv")
    data.load()
    assert data.class_names == ["neg", "pos"]
    assert data.left_out == {"a header": [f"{tmp_path}/header.tsv:1"]}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train.txt", "car.txt", "bus.txt", "README.md", "Thumbs.db"):
        (folder / name).write_text("".join(f"word {index}\n" for index in range(20)))
    data = labelled(folder)
    data.load()
    assert data.class_names == ["bus", "car", "train"]
    assert data.left_out == {"a file about the others": [f"{folder}/README.md"]}
    (tmp_path / "turned.tsv").write_text("".join(f"a {label} day {index}\t{label}\n" for index in range(20)
                                                 for label in ("pos", "neg")))
    with pytest.raises(DataError, match="a line must be label<TAB>text, not the other way round"):
        labelled(tmp_path / "turned.tsv").load()


def prediction_line(title: str, log_p: Tensor, labels: list[str]) -> str:
    """The line of `predict`, labels with their probabilities, the most probable first."""
    percentages = [f"{labels[i]} {float(log_p[i].exp()):.1%}" for i in log_p.argsort(descending=True).tolist()[:5]]
    return f"{title}  {'  '.join(percentages)}"


def test_predict_labels_new_texts_with_the_labels_of_the_run(trained, tmp_path, monkeypatch, capsys):
    def predict(*words: str) -> tuple[int, str, str]:
        return run_command(monkeypatch, capsys, "predict", f"run={trained.run_dir}", *words)

    vocabularies = trained.run_dir.read_vocabularies()
    assert vocabularies["labels"] == ["neg", "pos"]
    indices = {word: index for index, word in enumerate(vocabularies["text"])}
    log_p = trained.log_probabilities([indices[word] for word in ("so", "good", "film")])
    code, out, err = predict("text=so good film")
    records = json.loads((trained.run_dir.path / "predictions.json").read_text())
    assert (code, err) == (0, "")
    assert out.splitlines() == [prediction_line("so good film", log_p, ["neg", "pos"]),
                                f"1 input; {trained.run_dir}/predictions.json"]
    assert [record["text"] for record in records] == ["so good film"]
    assert {top["label"]: top["probability"] for top in records[0]["top"]} == pytest.approx(
        {"neg": float(log_p[0].exp()), "pos": float(log_p[1].exp())}, abs=1e-6)
    assert predict("text=" + "so bad " * 100)[1].startswith("so bad " * 8 + "s...  "), "a long text is shortened"
    lines = predict(f"input={trained.run_dir}/samples/texts.txt")[1].splitlines()
    texts = [text for text, _ in trained.data.labelled["test"]]
    width = max(map(len, texts))
    assert lines[:-1] == [prediction_line(f"{text:<{width}}", trained.log_probabilities(tokens), ["neg", "pos"])
                          for text, (tokens, _) in zip(texts, trained.data.samples["test"], strict=True)]
    assert predict("txt=a") == (2, "", "dltrain: error: unknown key 'txt'; did you mean 'text'?\n")


def test_eval_refuses_labels_that_the_run_does_not_have(trained, tmp_path, monkeypatch, capsys):
    for label in ("pos", "also"):
        (tmp_path / f"{label}.txt").write_text("good film\n" * 10)
    assert run_command(monkeypatch, capsys, "eval", f"run={trained.run_dir}", f"data.root={tmp_path}") == (
        3, "", "dltrain: error: the train split has the label 'also', which the run does not have\n")


def test_predict_reads_the_rows_of_pictures(tmp_path, monkeypatch, capsys):
    composed, run_dir = compose(["model=seq_classifier", "trainer=smoke", "recipe=none"]), RunDir.named(tmp_path, "run")
    config = composed.job_config()
    run.train(config, run_dir, composed.comments())
    model = evaluation.restore(config, run_dir).model
    files = sorted((run_dir.path / "samples").iterdir())
    assert len(files) == 10
    expected, width = [], max(len(file.name) for file in files)
    for file in files:
        rows = torch.from_numpy(np.array(Image.open(file).convert("L"))).float()[None] / 255
        assert rows.shape == (1, 8, 8)
        with torch.no_grad():
            log_p = model(rows, (8,))[0].log_softmax(0)
        expected.append(prediction_line(f"{file.name:<{width}}", log_p, [*"0123456789"]))
    code, out, err = run_command(monkeypatch, capsys, "predict", f"run={run_dir}", f"input={run_dir}/samples")
    assert (code, out.splitlines()[:-1], err) == (0, expected, "")
    assert run_command(monkeypatch, capsys, "predict", f"run={run_dir}", "text=7") == (
        2, "", "dltrain: error: this run reads pictures: predict needs input=FILE or input=FOLDER\n")
