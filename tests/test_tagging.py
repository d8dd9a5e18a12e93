"""Many to many, a tag per symbol: Python's own source, files of CoNLL, the loss against a loop, predict."""

import io
import itertools
import json
import keyword
import re
import token
import tokenize

import pytest
import torch

from dltrain import build, evaluation, run
from dltrain.batches import IGNORED_LABEL, BatchError, TaggedBatch
from dltrain.config.compose import compose
from dltrain.data import stdlib
from dltrain.data.conll import Conll
from dltrain.data.stdlib import StdlibTokens, library_files, token_kinds
from dltrain.errors import DataError
from dltrain.run_dir import RunDir
from dltrain.tasks.tagging import Tagging
from tests.command_line import run_command

KINDS = ["comment", "keyword", "name", "number", "operator", "space", "string"]
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
    expected: dict[str, list[str]] = {kind: [] for kind in ("number", "comment", "name", "keyword", "operator")}
    kinds_of_types = {tokenize.NUMBER: "number", tokenize.COMMENT: "comment", tokenize.OP: "operator"}
    for token_info in tokenize.generate_tokens(io.StringIO(source).readline):
        if token_info.type == tokenize.NAME:
            expected["keyword" if keyword.iskeyword(token_info.string) else "name"].append(token_info.string)
        elif token_info.type in kinds_of_types:
            expected[kinds_of_types[token_info.type]].append(token_info.string)
    for kind, tokens in expected.items():
        of_kind = [symbol for symbol, name in zip(source, kinds, strict=True) if name == kind]
        assert "".join(of_kind) == "".join(tokens)


@pytest.fixture(autouse=True)
def few_modules(monkeypatch):
    """20 small modules of the library: all of them take seconds to tokenise."""
    files = [file for file in library_files() if 2_000 < file.stat().st_size < 12_000][:20]
    monkeypatch.setattr(stdlib, "library_files", lambda: files)


def places_of(piece: str, source: str) -> list[int]:
    return [match.start() for match in re.finditer(f"(?={re.escape(piece)})", source)]


def test_pieces_of_source_are_whole_lines_outside_of_strings():
    data = StdlibTokens(window=120, num_train=150, batch_size=4)
    data.load()
    assert data.class_names == KINDS
    assert data.num_samples("train") == 150
    sources = {source: token_kinds(source) for source in (file.read_text() for file in stdlib.library_files())}
    for symbols, tags in data.read_samples()["train"]:
        piece = "".join(symbols)
        assert len(piece) == 480 or (len(piece) < 480 and piece.endswith("\n"))
        assert any((start == 0 or source[start - 1] == "\n")
                   and (start == 0 or not kinds[start - 1] == kinds[start] == "string")
                   and tags == kinds[start : start + len(piece)]
                   for source, kinds in sources.items() for start in places_of(piece, source)), piece
    again = StdlibTokens(window=120, num_train=150, batch_size=4, seed=7)
    again.load()
    assert again.samples == data.samples, "the split does not depend on the run's seed"


def test_no_module_is_in_two_splits(tmp_path, monkeypatch):
    files = [tmp_path / f"module{number}.py" for number in range(30)]
    for number, file in enumerate(files):
        file.write_text("".join(f"name{number} = {line}  # a comment\n" for line in range(600)))
    monkeypatch.setattr(stdlib, "library_files", lambda: files)
    data = StdlibTokens(window=50, num_train=4000, batch_size=4)
    splits = data.read_samples()
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 4000, "val": 400, "test": 400}
    modules = {split: {"".join(symbols).split(" ")[0] for symbols, _ in samples} for split, samples in splits.items()}
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
                    "min_count": 1, "batch_size": 4, **keys})


def test_columns_of_both_kinds(tmp_path):
    data = conll(tmp_path, CONLLU)
    assert data.read_samples()["val"] == [(["It", "'s", "fine"], ["PRON", "AUX", "ADJ"]), (["Yes"], ["INTJ"])]
    data.load()
    assert data.vocabularies["text"][4:] == ["'s", "fine", "it", "yes"]
    batch = next(data.read("train", [torch.tensor([0, 1, -1])]))
    batch.check(4)
    assert batch.lengths == (3, 1, 3)
    assert batch.tags[1, 1:].tolist() == [IGNORED_LABEL] * 2
    assert batch.tags[2].tolist() == [IGNORED_LABEL] * 3
    data = conll(tmp_path, CONLL2003, word_column=1)
    assert data.read_samples()["train"] == [(["EU", "1996-08-22", "#"], ["B-ORG", "O", "O"])]


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(DataError, match=r"en-train.conll:1: must have 4 columns, but has 2"):
        conll(tmp_path, "a\tb\n").load()
    data = conll(tmp_path, CONLLU)
    (tmp_path / "en-test.conll").write_text(CONLLU.replace("INTJ", "XXX"))
    with pytest.raises(DataError, match="the test split has the tag 'XXX', which the training split does not have"):
        data.load()
    (tmp_path / "en-train.conll").unlink()
    with pytest.raises(DataError, match=r"must have one train file \(train or training in its name\), but has none"):
        data.load()


def test_a_batch_that_breaks_its_promise_is_refused():
    with pytest.raises(BatchError, match=r"tags must be int64 in \[0, 2\), but the first batch has 2"):
        TaggedBatch(torch.zeros(2, 3).long(), (3, 3), torch.full((2, 3), 2)).check(2)


OVERRIDES = ["model=tagger", "data.num_train=64", "data.window=40", "model.hidden=8", "recipe=none"]


def test_the_training_loss_is_the_mean_over_all_symbols():
    """One step of the tagger on pieces of different lengths, against a loop over symbols."""
    config = compose(OVERRIDES).job_config()
    data, task = build.build_data(config), build.build_task(config).eval()
    assert isinstance(data, StdlibTokens)
    assert isinstance(task, Tagging)
    batch = next(data.read("train", [torch.arange(6)]))
    assert len({*batch.lengths}) > 1
    losses, correct = [], 0
    for tokens, tags in data.samples["train"][:6]:
        log_p = task.model(torch.tensor([tokens]), (len(tokens),))[0].log_softmax(1)
        losses += [-log_p[place, tag].item() for place, tag in enumerate(tags)]
        correct += int((log_p.argmax(1) == torch.tensor(tags)).sum())
    expected = sum(losses) / len(losses)
    assert task.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)
    assert task.read_training_metrics() == pytest.approx(
        {"train/loss": expected, "train/accuracy": correct / len(losses)}, rel=1e-5)
    assert task.count(batch) == len(losses)


def test_predict_tags_source_run_by_run_or_in_colour(tmp_path, monkeypatch, capsys):
    composed, run_dir = compose([*OVERRIDES, "trainer=smoke"]), RunDir.named(tmp_path, "run")
    config = composed.job_config()
    run.train(config, run_dir, composed.comments())
    indices = {symbol: index for index, symbol in enumerate(run_dir.read_vocabularies()["text"])}
    source = "x = 1\n\nprint(x)\n"
    with torch.no_grad():
        logits = evaluation.restore(config, run_dir).model(torch.tensor([[indices[c] for c in source]]), (len(source),))
    expected = [KINDS[tag] for tag in logits[0].argmax(1).tolist()]
    (tmp_path / "a.py").write_text(source)
    code, out, err = run_command(monkeypatch, capsys, "predict", f"run={run_dir}", f"input={tmp_path}/a.py")
    pieces = [(json.loads(text), kind) for text, kind in (line.split("\t") for line in out.splitlines()[:-1])]
    assert (code, err) == (0, "")
    assert [(symbol, kind) for text, kind in pieces for symbol in text] == list(zip(source, expected, strict=True))
    assert all(before[1] != after[1] for before, after in itertools.pairwise(pieces)), "no run is cut"
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = run_command(monkeypatch, capsys, "predict", f"run={run_dir}", "text=x = 1")
    assert "\x1b[" in out
    assert re.sub(r"\x1b\[[\d;]*m", "", out) == (
        "x = 1\n" + "  ".join(KINDS) + f"\n1 input; {run_dir}/predictions_2.json\n")


def test_predict_tags_words_one_per_line(tmp_path, monkeypatch, capsys):
    conll(tmp_path, CONLLU)
    composed = compose(["model=tagger", "data=conll", f"data.root={tmp_path}", "data.word_column=2", "trainer=smoke",
                        "data.tag_column=4", "data.min_count=1", "data.lower=true", "model.hidden=8", "recipe=none"])
    config, run_dir = composed.job_config(), RunDir.named(tmp_path, "run")
    run.train(config, run_dir, composed.comments())
    assert (run_dir.path / "samples/sentences.txt").read_text() == "It\t's\tfine\nYes\t\n"
    vocabularies = run_dir.read_vocabularies()
    tokens = [vocabularies["text"].index(word) for word in ("yes", "it", "<unk>", "fine")]
    with torch.no_grad():
        logits = evaluation.restore(config, run_dir).model(torch.tensor([tokens]), (4,))[0]
    names = [vocabularies["labels"][tag] for tag in logits.argmax(1).tolist()]
    lines = [f"{word}\t{name}\n" for word, name in zip(("Yes", "it", ",", "Fine"), names, strict=True)]
    assert run_command(monkeypatch, capsys, "predict", f"run={run_dir}", "text=Yes it, Fine") == (
        0, "".join([*lines, f"1 input; {run_dir}/predictions.json\n"]),
        "dltrain: 1 of 4 symbols are not in the vocabulary of the run: ','\n")


WHOLE = [("U.S.", "PROPN"), ("e-mail", "NOUN"), ("$1.50", "NUM"), ("n't", "PART"), (":-)", "SYM"),
         ("http://x.org/a", "X")]


def test_words_that_are_split_already_are_tagged_as_they_are(tmp_path):
    """In a run's own samples, whose words stand between tabs, known or not; in a text, the words of the vocabulary."""
    text = "".join(f"{number}\t{word}\t_\t{tag}\n" for number, (word, tag) in enumerate(WHOLE, start=1)) + "\n"
    data = conll(tmp_path, text + "1\tAlone-one\t_\tX\n", lower=False)
    data.load()
    data.write_samples(tmp_path)
    lines = (tmp_path / "sentences.txt").read_text().splitlines()
    assert [data.tokenize(line) for line in lines] == [[word for word, _ in WHOLE], ["Alone-one"]]
    assert data.tokenize("new-word\tU.S.\tx,y") == ["new-word", "U.S.", "x,y"]
    assert data.tokenize("An e-mail of $1.50, no :-)") == ["An", "e-mail", "of", "$", "1", ".", "50", ",", "no", ":-)"]
