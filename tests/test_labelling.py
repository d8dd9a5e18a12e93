"""Many to one and many to many: samples from files, accuracy against loops, exact resume, what is refused."""

import io
import json
import keyword
import token
import tokenize

import pytest
import torch

from dltrain import build, cli, run, run_dir
from dltrain.batches import IGNORED_LABEL, PAD, BatchError, LabelledBatch, TaggedBatch
from dltrain.data import stdlib
from dltrain.data.conll import Conll
from dltrain.data.datamodule import SPLITS
from dltrain.data.digits import Digits, DigitsRows
from dltrain.data.labelled_text import LabelledTextFiles
from dltrain.data.sequence_classification import Recall
from dltrain.data.stdlib import StdlibTokens, library_files, token_kinds
from dltrain.errors import DataError
from dltrain.models.recurrent import SequenceClassifier, Tagger
from tests.test_resume import assert_a_crash_changes_nothing

KEYS = {"batch_size": 4}


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_what_stands_after_the_end_says_nothing(cell, pool):
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


def test_a_gate_that_starts_by_keeping_keeps():
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
    rows = DigitsRows(features=8, vocab_size=None, num_classes=10, **KEYS)
    images = Digits(channels=1, num_classes=10, image_px=8, **KEYS)
    rows.load()
    images.load()
    indices = torch.tensor([3, 5, -1])
    batch, plain = next(rows.read("test", [indices])), next(images.read("test", [indices]))
    torch.testing.assert_close(batch.tokens, plain.images[:, 0].float() / 255)
    assert batch.labels.tolist() == plain.labels.tolist()
    assert batch.labels[2] == IGNORED_LABEL
    assert batch.lengths == (8, 8, 8)


SOURCE = '''def f(x=1.5):  # a "name"
    """Two
    lines."""
    return "a" + x if True else 0x1F
'''


def test_each_character_has_the_kind_of_its_token():
    letters = {"space": ".", "name": "n", "keyword": "k", "number": "1", "string": "s", "comment": "c", "operator": "o"}
    kinds = "".join(letters[kind] for kind in token_kinds(SOURCE))
    lines = []
    for line in SOURCE.splitlines(keepends=True):  # line ends have a kind as well
        lines.append(kinds[: len(line)])
        kinds = kinds[len(line) :]
    assert lines == ["kkk.nono111oo..cccccccccc.", "....sssssss", "sssssssssssss.",
                     "....kkkkkk.sss.o.n.kk.kkkk.kkkk.1111."]


@pytest.mark.parametrize("module", [tokenize, io, keyword, token])
def test_kinds_equal_the_strings_of_the_tokenizer(module):
    """The characters of each kind, joined, are the tokens of that kind, in order."""
    with open(module.__file__, encoding="utf-8") as file:
        source = file.read()
    kinds = token_kinds(source)
    expected: dict[str, list[str]] = {"number": [], "comment": [], "name": [], "keyword": []}
    for token_info in tokenize.generate_tokens(io.StringIO(source).readline):
        if token_info.type == tokenize.NAME:
            expected["keyword" if keyword.iskeyword(token_info.string) else "name"].append(token_info.string)
        elif token_info.type in (tokenize.NUMBER, tokenize.COMMENT):
            expected["number" if token_info.type == tokenize.NUMBER else "comment"].append(token_info.string)
    for kind, tokens in expected.items():
        assert "".join(c for c, other in zip(source, kinds, strict=True) if other == kind) == "".join(tokens)


@pytest.fixture(autouse=True)
def few_modules(monkeypatch):
    """Every eighth module of the library, which are tokenised in an eighth of the time."""
    files = library_files()[::8]
    monkeypatch.setattr(stdlib, "library_files", lambda: files)


def test_pieces_of_source_are_whole_lines_outside_of_strings():
    data = StdlibTokens(window=120, num_train=150, **KEYS)
    data.load()
    assert data.class_names == ["comment", "keyword", "name", "number", "operator", "space", "string"]
    assert data.num_samples("train") == 150
    sources = {file: file.read_text(encoding="utf-8") for file in stdlib.library_files()}
    pieces = {split: {"".join(symbols) for symbols, _ in samples} for split, samples in data.tagged().items()}
    for piece in pieces["train"]:
        assert len(piece) <= 480
        assert piece.endswith("\n") or len(piece) == 480
        source = next(text for text in sources.values() if piece in text)
        kinds, start = token_kinds(source), source.index(piece)
        assert start == 0 or not kinds[start - 1] == kinds[start] == "string"
    again = StdlibTokens(window=120, num_train=150, seed=7, **KEYS)
    again.load()
    assert again.samples == data.samples, "the split does not depend on the run's seed"


def test_no_module_is_in_two_splits(tmp_path, monkeypatch):
    files = [tmp_path / f"module{number}.py" for number in range(30)]
    for number, file in enumerate(files):
        file.write_text("".join(f"name{number} = {line}  # a comment\n" for line in range(40)))
    monkeypatch.setattr(stdlib, "library_files", lambda: files)
    data = StdlibTokens(window=50, num_train=4000, **KEYS)
    modules = {split: {"".join(symbols).split(" ")[0] for symbols, _ in samples}
               for split, samples in data.tagged().items()}
    assert {split: len(names) for split, names in modules.items()} == {"train": 24, "val": 3, "test": 3}
    assert len(set.union(*modules.values())) == 30


CONLLU = """# text = It's fine.
1-2\tIt's\t_\t_\t_
1\tIt\tit\tPRON\t_
2\t's\tbe\tAUX\t_
2.1\tleft\tout\tVERB\t_
3\tfine\tfine\tADJ\t_

1\tYes\tyes\tINTJ\t_
"""
CONLL2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
1996-08-22 CD I-NP O
# NN I-NP O
"""


def conll(tmp_path, text: str, **keys) -> Conll:
    for split in ("train", "dev", "test"):
        (tmp_path / f"en-{split}.conll").write_text(text)
    return Conll(**{"root": str(tmp_path), "encoding": "utf-8", "word_column": 2, "tag_column": 4, "lower": True,
                    "min_count": 1, **KEYS, **keys})


def test_columns_of_both_kinds(tmp_path):
    data = conll(tmp_path, CONLLU)
    assert data.tagged()["val"] == [(["It", "'s", "fine"], ["PRON", "AUX", "ADJ"]), (["Yes"], ["INTJ"])]
    data.load()
    assert data.vocabularies["text"][4:] == ["'s", "fine", "it", "yes"]
    batch = next(data.read("train", [torch.tensor([0, 1, -1])]))
    batch.check(4)
    assert batch.lengths == (3, 1, 3)
    assert batch.tags[1, 1:].tolist() == [IGNORED_LABEL] * 2
    assert batch.tags[2].tolist() == [IGNORED_LABEL] * 3
    data = conll(tmp_path, CONLL2003, word_column=1)
    assert data.tagged()["train"] == [(["EU", "1996-08-22", "#"], ["B-ORG", "O", "O"])]


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(DataError, match=r"en-train.conll:1: must have 4 columns, but has 2"):
        conll(tmp_path, "a\tb\n").load()
    data = conll(tmp_path, CONLLU)
    (tmp_path / "en-test.conll").write_text(CONLLU.replace("INTJ", "XXX"))
    with pytest.raises(DataError, match="the test split has the tag 'XXX', which the training split does not have"):
        data.load()
    (tmp_path / "en-dev.conll").unlink()
    with pytest.raises(DataError, match=r"must have one val file \(val or dev or valid in its name\), but has none"):
        data.load()


def labelled(root, **keys) -> LabelledTextFiles:
    return LabelledTextFiles(**{"root": str(root), "encoding": "utf-8", "words": True, "lower": True, "min_count": 1,
                           "max_length": 5, **KEYS, **keys})


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
    data = Recall(delay=6, symbols=4, num_train=200, **KEYS)
    data.load()
    assert data.class_names == list("ABCD")
    for text, label in data.labelled["train"]:
        assert (len(text), text[0]) == (7, label)
    labels = [label for _, label in data.labelled["train"]]
    assert min(labels.count(label) for label in "ABCD") > 30


def test_batches_that_break_their_promise():
    tokens = torch.zeros(2, 3).long()
    with pytest.raises(BatchError, match=r"lengths must be 2 ints in \[1, 3\], but are \(3, 4\)"):
        LabelledBatch(tokens, (3, 4), torch.zeros(2).long()).check(5)
    with pytest.raises(BatchError, match=r"tags must be int64 in \[0, 2\), but the first batch has 2"):
        TaggedBatch(tokens, (3, 3), torch.full((2, 3), 2)).check(2)


@pytest.fixture
def reviews(tmp_path):
    """A run of 60 short texts with the label in one of their words."""
    root = tmp_path / "reviews"
    root.mkdir()
    for label, word in (("pos", "good"), ("neg", "bad")):
        (root / f"{label}.txt").write_text("".join(
            f"{'so ' * (i % 5)}{word if i % 6 else 'odd'} film {i}\n" for i in range(30)))
    return ["model=seq_classifier", "data=labelled_text", f"data.root={root}", "model.hidden=8", "model.embedding=8",
            "model.dropout=0.1", "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=3", "recipe=none",
            "task.optimizer.name=adam", "task.optimizer.lr=0.01", "task.optimizer.weight_decay=0"]


def test_accuracy_and_loss_equal_a_loop(config, reviews, run_folder):
    found = config(*reviews)
    result = run.train(found, run_folder("run"))
    data, task = build.build_data(found), build.build_task(found)
    task.load_state_dict(torch.load(result["folder"] + "/checkpoints/best.ckpt", weights_only=True)["state_dict"])
    right, loss = 0, 0.0
    with torch.no_grad():
        for tokens, label in data.samples["test"]:
            log_p = task.eval().model(torch.tensor([tokens]), (len(tokens),))[0].log_softmax(0)
            right += int(log_p.argmax()) == label
            loss -= float(log_p[label])
    count = len(data.samples["test"])
    assert result["test/accuracy"] == pytest.approx(right / count)
    assert result["test/loss"] == pytest.approx(loss / count, rel=1e-5)


@pytest.mark.parametrize("at", [2, 6, 9])
def test_a_resumed_run_ends_in_the_same_bits(at, config, reviews, run_folder, monkeypatch):
    assert_a_crash_changes_nothing(reviews, at, config, run_folder, monkeypatch)


@pytest.fixture
def typed(monkeypatch, capsys):
    def said(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dltrain", *words])
        capsys.readouterr()
        code = cli.main()
        out, err = capsys.readouterr()
        return code, out, err

    return said


def test_a_run_labels_new_texts_with_its_own_labels(config, reviews, run_folder, tmp_path, typed):
    path = run_folder("run")
    run.train(config(*reviews, "trainer.max_epochs=30"), path)
    assert run_dir.read_vocabularies(path)["labels"] == ["neg", "pos"]
    code, out, _ = typed("predict", f"run={path}", "text=so good film")
    assert out.startswith("so good film  pos ")
    assert typed("predict", f"run={path}", "text=" + "so bad " * 100)[1].startswith("so bad so bad")
    assert len(typed("predict", f"run={path}", f"input={path}/samples/texts.txt")[1].splitlines()) == 6 + 1
    assert typed("predict", f"run={path}", "txt=a")[2] == (
        'dltrain: error: predict needs text="..." or input=FILE\n')
    other = tmp_path / "other"
    other.mkdir()
    (other / "pos.txt").write_text("good film\n" * 10)
    (other / "also.txt").write_text("good film\n" * 10)
    code, _, err = typed("eval", f"run={path}", f"data.root={other}")
    assert (code, err) == (3, "dltrain: error: the train split has the label 'also', which the run does not have\n")


def test_a_tagger_labels_source_line_by_line_or_in_colour(config, run_folder, typed, monkeypatch, tmp_path):
    path = run_folder("run")
    run.train(config("model=tagger", "data.num_train=64", "data.window=40", "model.hidden=8", "trainer=smoke",
                     "recipe=none"), path)
    (tmp_path / "a.py").write_text("x = 1\n\nprint(x)\n")
    _, out, _ = typed("predict", f"run={path}", f"input={tmp_path}/a.py")
    runs = [line.split("\t") for line in out.splitlines()]
    assert "".join(json.loads(text) for text, _ in runs) == "x = 1\n\nprint(x)\n"
    assert {kind for _, kind in runs} <= {"comment", "keyword", "name", "number", "operator", "space", "string"}
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = typed("predict", f"run={path}", "text=x = 1")
    assert "\x1b[" in out
    assert "operator" in out


def test_digits_by_rows_are_predicted_from_pictures(config, run_folder, typed):
    path = run_folder("run")
    run.train(config("model=seq_classifier", "trainer=smoke", "recipe=none"), path)
    _, out, _ = typed("predict", f"run={path}", f"input={path}/samples")
    assert len(out.splitlines()) == 11
    assert typed("predict", f"run={path}", "text=7")[2] == (
        "dltrain: error: this run reads pictures: predict needs input=FILE or input=FOLDER\n")


def test_the_loss_is_the_mean_over_what_is_scored(config):
    """One step of the tagger on pieces of different lengths, against a loop over symbols."""
    found = config("model=tagger", "data.num_train=150", "data.window=40", "model.hidden=8", "recipe=none")
    data, task = build.build_data(found), build.build_task(found).eval()
    batch = next(data.read("train", [torch.arange(6)]))
    assert len(set(batch.lengths)) > 1
    losses = []
    for tokens, tags in data.samples["train"][:6]:
        log_p = task.model(torch.tensor([tokens]), (len(tokens),))[0].log_softmax(1)
        losses += [-log_p[place, tag].item() for place, tag in enumerate(tags)]
    assert task.training_step(batch, 0).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    read = task.read_training_metrics()
    assert read["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert task.count(batch) == len(losses)
