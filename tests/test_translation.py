"""Pairs of sequences: dates, a person's own files, batches; runs measured again by hand, exact resume, predict."""

import datetime
import itertools
import math
import random
import re
from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch

from dltrain import build, evaluation, run
from dltrain.batches import END, PAD, START, UNKNOWN, generator
from dltrain.commands.stored import load_config
from dltrain.config.compose import compose
from dltrain.data.loader import TrainLoader, bucket_by_key
from dltrain.data.pair_files import PairFiles
from dltrain.data.sequences import Tokenizer
from dltrain.data.translation import FORMATS, Dates, TextPairs
from dltrain.errors import DataError
from dltrain.models.seq2seq import Seq2Seq
from dltrain.run_dir import RunDir
from dltrain.tasks.decoding import edit_distances
from dltrain.tasks.task import Task
from tests.command_line import run_command
from tests.test_seq2seq import log_probability_of

# What strptime reads of FORMATS, without the ending of an ordinal number.
PATTERNS = ["%d %B %Y", "%B %d, %Y", "%b %d, %Y", "the %d of %B %Y", "%A, %d %B %Y", "%a %b %d %Y", "%d-%b-%Y",
            "%d.%m.%Y", "%m/%d/%Y", "%Y/%m/%d", "%Y, %B %d", "%B the %d %Y"]


def test_each_format_writes_the_date_that_the_calendar_reads():
    for days in range(0, 73_000, 97):
        day = datetime.date(1900, 1, 1) + datetime.timedelta(days=days)
        for write, pattern in zip(FORMATS, PATTERNS, strict=True):
            text = re.sub(r"(\d)(st|nd|rd|th)\b", r"\1", write(day))
            assert datetime.datetime.strptime(text, pattern).date() == day, text
    assert FORMATS[3](datetime.date(1998, 3, 12)) == "the 12th of March 1998"
    assert [FORMATS[2](datetime.date(1998, 3, day)) for day in (1, 2, 3, 11, 12, 13, 21, 22, 23, 30)] == [
        f"Mar {day}, 1998" for day in ("1st", "2nd", "3rd", "11th", "12th", "13th", "21st", "22nd", "23rd", "30th")]


def test_dates_are_in_all_formats_and_no_day_is_in_two_splits():
    pairs = Dates(words=False, max_length=40, num_train=3000, batch_size=8).pairs()
    days = [iso for split in pairs.values() for _, iso in split]
    assert {split: len(samples) for split, samples in pairs.items()} == {"test": 1000, "val": 1000, "train": 3000}
    assert len({*days}) == len(days)
    written = [[write(datetime.date.fromisoformat(iso)) for write in FORMATS].index(text)
               for text, iso in pairs["train"]]
    counts = Counter(written)
    assert sorted(counts) == list(range(12))
    assert max(counts.values()) < 300, "250 of each are expected"


def test_similar_lengths_share_a_batch_and_each_sample_comes_once():
    lengths = torch.randint(1, 60, (1003,), generator=generator("lengths"))
    loader = TrainLoader(iter, 1003, 10, seed=1, bucket_keys=lengths)
    order = loader.order(0)
    assert sorted(order.tolist()) == list(range(1003))
    assert torch.equal(order, loader.order(0))
    spread = [int(lengths[batch].max() - lengths[batch].min()) for batch in order.split(10)]
    plain = TrainLoader(iter, 1003, 10, seed=1).order(0)
    assert sum(spread) < 0.1 * sum(int(lengths[b].max() - lengths[b].min()) for b in plain.split(10))
    means, later = ([float(lengths[batch].float().mean()) for batch in loader.order(epoch).split(10)]
                    for epoch in (0, 1))
    assert means != sorted(means), "batches are shuffled"
    assert [sorted(means).index(m) for m in means] != [sorted(later).index(m) for m in later], "anew in each epoch"
    few = bucket_by_key(torch.arange(7), torch.arange(7), 10, generator("few"))
    assert sorted(few.tolist()) == list(range(7))


def test_words_and_characters():
    words = Tokenizer(words=True, lower=True, min_count=2)
    assert words.tokenize(" The cat's hat, 3.5 Über!") == ["the", "cat's", "hat", ",", "3", ".", "5", "über", "!"]
    assert words.vocabulary(["a b b", "c c a b"])[4:] == ["b", "a", "c"]
    assert words.vocabulary(["a b b", "c c c"])[4:] == ["c", "b"], "a occurs once"
    characters = Tokenizer(words=False)
    assert characters.tokenize("Ab") == ["A", "b"]
    assert characters.join(["A", "b"]) == "Ab"


def pair_files(root, **keys) -> PairFiles:
    return PairFiles(**{"root": str(root), "languages": None, "encoding": "utf-8", "num_train": None, "words": True,
                        "max_length": 9, "batch_size": 2, **keys})


def test_pairs_that_are_too_long_are_counted_and_not_all_may_be(tmp_path):
    text = "".join(f"{'a ' * count}\tb\n" for count in (2, 3, 10, 2))
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.tsv").write_text(text)
    data = pair_files(tmp_path)
    data.load()
    assert {split: data.num_samples(split) for split in ("train", "val", "test")} == {"train": 3, "val": 4, "test": 4}
    assert data.left_out == {"a pair with more than data.max_length=9 symbols": ["a " * 9 + "a"]}
    with pytest.raises(DataError, match=r"all 4 training pairs have more than data.max_length=1 symbols: set a larger"):
        pair_files(tmp_path, max_length=1).load()


def test_parallel_files_and_their_faults(tmp_path):
    for split, language, text in [("train", "en", "one\ntwo\n\nfour\n"), ("train", "de", "eins\nzwei\n\nvier\n"),
                                  ("val", "en", "a\n"), ("val", "de", "b\n"), ("test_2016", "en", "a\n"),
                                  ("test_2016", "de", "c\n")]:
        (tmp_path / f"{split}.{language}").write_text(text)
    pairs = pair_files(tmp_path, languages=["en", "de"]).pairs()
    assert pairs == {"train": [("one", "eins"), ("two", "zwei"), ("four", "vier")], "val": [("a", "b")],
                     "test": [("a", "c")]}
    (tmp_path / "train.de").write_text("eins\n\nzwei\nvier\n")
    data = pair_files(tmp_path, languages=["en", "de"])
    assert data.pairs()["train"] == [("one", "eins"), ("four", "vier")]
    assert data.left_out == {"a line that is empty on one side": [f"{tmp_path}/train.en:{line}" for line in (2, 3)]}
    (tmp_path / "train.de").write_text("eins\nzwei\nvier\n")
    with pytest.raises(DataError, match=r"train.en has 4 lines, but .*train.de has 3: line by line one must be the"):
        pair_files(tmp_path, languages=["en", "de"]).pairs()
    with pytest.raises(DataError, match=r"must have one train file .*ending in .fr\), but has none"):
        pair_files(tmp_path, languages=["en", "fr"]).pairs()
    with pytest.raises(DataError, match=r"must have one train file .* but has train.de, train.en"):
        pair_files(tmp_path).pairs()
    with pytest.raises(ValueError, match="languages must be two endings"):
        pair_files(tmp_path, languages=["en"])


@pytest.mark.parametrize(("text", "message"), [
    ("a\tb\nc d\n", r"x.tsv:2: must be source<TAB>target, but has 1 side"),
    ("a\tb\tc\n", r"x.tsv:1: must be source<TAB>target, but has 3 side"), ("", "x.tsv: empty")])
def test_lines_that_are_not_pairs_are_named(text, message, tmp_path):
    (tmp_path / "x.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        pair_files(tmp_path / "x.tsv").pairs()


COMMON = ["model=seq2seq", "data=pairs", "trainer=cpu", "task.optimizer.name=adam", "task.optimizer.lr=0.01",
          "task.optimizer.weight_decay=0", "recipe=none"]


def reversed_words(folder) -> list[str]:
    """The overrides of a run that reverses words, letter by letter: 60 pairs, 8 steps an epoch."""
    texts = ["".join(letters) for letters in itertools.permutations("abcd", 3)] + ["a", "b", "ab", "ba", "cd", "dc"]
    file = folder / "reversed.tsv"
    file.write_text("\n".join(f"{text}\t{text[::-1]}" for text in texts * 2))
    return [*COMMON, f"data.root={file}", "data.words=false", "data.max_length=9", "model.hidden=16",
            "model.embedding=8", "model.dropout=0.1", "data.batch_size=6", "trainer.max_epochs=2",
            "trainer.gradient_clip_norm=1"]


def copied_sentences(folder) -> list[str]:
    """The overrides of a run that copies sentences, word by word: 150 pairs."""
    words = ["the", "a", "cat", "dog", "sees", "hears", "one", "two", "red", "old"]
    rng = generator("copies")
    texts = [" ".join(words[i] for i in torch.randint(10, (int(n),), generator=rng))
             for n in torch.randint(4, 9, (150,), generator=rng)]
    file = folder / "copies.tsv"
    file.write_text("\n".join(f"{text}\t{text}" for text in texts))
    return [*COMMON, f"data.root={file}", "data.max_length=12", "model.hidden=48", "model.embedding=16",
            "data.batch_size=8", "trainer.max_epochs=10", "task.optimizer.lr=0.02"]


class Trained(NamedTuple):
    """A finished run: its result, its data, and its best weights in double precision."""

    run_dir: RunDir
    result: dict[str, Any]
    data: TextPairs
    task: Task
    model: Seq2Seq
    max_length: int

    @torch.no_grad()
    def write_greedily(self, source: list[int]) -> list[int]:
        """Step by step, END not included."""
        state, symbols = self.model.begin(torch.tensor([source]), (len(source),)), [START]
        while symbols[-1] != END and len(symbols) <= self.max_length:
            logits, state = self.model.step(torch.tensor(symbols[-1:]), state)
            logits[:, [PAD, UNKNOWN, START]] = -math.inf
            symbols.append(int(logits.argmax()))
        return [symbol for symbol in symbols[1:] if symbol != END]

    @torch.no_grad()
    def log_probability(self, source: list[int], symbols: list[int]) -> float:
        return log_probability_of(self.model, torch.tensor([source]), (len(source),), symbols)

    def words(self, symbols: list[int]) -> list[str]:
        return [self.data.vocabularies["target"][symbol] for symbol in symbols]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """train(overrides_for) -> the finished run of these overrides; the same one each time."""
    runs: dict[str, Trained] = {}

    def train_once(overrides_for) -> Trained:
        if overrides_for.__name__ not in runs:
            folder = tmp_path_factory.mktemp("run")
            composed, run_dir = compose(overrides_for(folder)), RunDir.named(folder, "run")
            config = composed.job_config()
            result = run.train(config, run_dir, composed.comments())
            data, task = build.build_data(config), evaluation.restore(config, run_dir)
            assert isinstance(data, TextPairs)
            assert isinstance(task.model, Seq2Seq)
            runs[overrides_for.__name__] = Trained(run_dir, result, data, task, task.model.double(),
                                                     config.data.max_length)
        return runs[overrides_for.__name__]

    return train_once


def bleu(candidates: list[list[str]], references: list[list[str]]) -> float:
    """Papineni et al. 2002, equation by equation: clipped n-gram precisions, geometric mean, brevity penalty."""
    log_precisions = 0.0
    for n in range(1, 5):
        correct = total = 0
        for candidate, reference in zip(candidates, references, strict=True):
            counts, limits = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1))
                              for w in (candidate, reference))
            correct += sum(min(count, limits[gram]) for gram, count in counts.items())
            total += sum(counts.values())
        log_precisions += math.log(correct / total) / 4
    c, r = sum(map(len, candidates)), sum(map(len, references))
    return min(1.0, math.exp(1 - r / c)) * math.exp(log_precisions)


def edits_between(output: list[Any], target: list[Any]) -> int:
    """The table of Wagner and Fischer, cell by cell."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(target) + 1)] for i in range(len(output) + 1)]
    for i, a in enumerate(output, start=1):
        for j, b in enumerate(target, start=1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a != b))
    return table[-1][-1]


def test_edit_distances_equal_a_table_cell_by_cell():
    rng = random.Random(0)
    outputs, targets = ([[rng.randint(4, 7) for _ in range(rng.randint(0, 9))] for _ in range(200)] for _ in range(2))
    expected = [edits_between(output, target) for output, target in zip(outputs, targets, strict=True)]
    assert edit_distances(outputs, targets) == expected
    assert edit_distances([[4, 5, 6]], [[4, 6, 6, 7]]) == [2]
    assert edit_distances([[]], [[]]) == [0]


def test_a_spelling_becomes_phonemes(tmp_path):
    """Characters in lower case to words as they are written."""
    file = tmp_path / "words.tsv"
    file.write_text("Cat\tK AE T\nnew York\tN UW Y AO R K\n" * 10)
    data = PairFiles(root=str(file), languages=None, encoding="utf-8", num_train=None, words="target", lower="source",
                     max_length=50, batch_size=4)
    data.load()
    source, target = (data.vocabularies[name] for name in ("source", "target"))
    assert (source[4:], target[4:]) == (sorted({*"cat new york"}), ["K", "AE", "AO", "N", "R", "T", "UW", "Y"])
    (tokens,) = data.encode_inputs(["CAT"]).source.tolist()
    assert "".join(source[token] for token in tokens) == "cat"
    assert data.unknown_inputs(["Kati", "zoo"]) == (["i", "z"], 7)
    assert [*data.unknown_counts()] == ["source characters", "target words"]


def test_the_unknown_words_of_both_sides_are_counted(tmp_path):
    texts = {"train": "a b\tx y\n" * 4 + "rare b\tx y\n", "val": "a b\tx y\n", "test": "a c d\tz y\n"}
    for split, text in texts.items():
        (tmp_path / f"{split}.tsv").write_text(text)
    data = PairFiles(root=str(tmp_path), languages=None, encoding="utf-8", num_train=None, words=True, min_count=2,
                     max_length=50, batch_size=4)
    data.load()
    assert data.describe_contents() == [
        "source words that are not in the vocabulary: 1 of 10 in train (10.00%), 2 of 3 in test (66.67%)",
        "target words that are not in the vocabulary: 1 of 2 in test (50.00%)"]


def test_loss_matches_and_bleu_equal_loops(train):
    copying = train(copied_sentences)
    result, pairs = copying.result, copying.data.samples["test"]
    written = [copying.words(copying.write_greedily(source)) for source, _ in pairs]
    expected = [copying.words(target[1:-1]) for _, target in pairs]
    assert result["headline"] == "val/bleu"
    assert 0.1 < result["test/bleu"] < 0.99, "neither nothing nor everything is right"
    assert result["test/bleu"] == pytest.approx(bleu(written, expected), abs=1e-4)
    exact = sum(a == b for a, b in zip(written, expected, strict=True)) / len(expected)
    assert 0 < exact < 1
    assert result["test/exact_match"] == pytest.approx(exact, abs=1e-6)
    edits = sum(edits_between(a, b) for a, b in zip(written, expected, strict=True))
    assert result["test/token_error_rate"] == pytest.approx(edits / sum(map(len, expected)), abs=1e-6)
    loss = -sum(copying.log_probability(source, target[1:]) for source, target in pairs)
    assert result["test/loss"] == pytest.approx(loss / sum(len(target) - 1 for _, target in pairs), rel=1e-4)


def test_a_match_is_the_whole_target_and_no_more(train, monkeypatch):
    copying = train(copied_sentences)
    targets = [target[1:-1] for _, target in copying.data.samples["test"]]
    queue = [[*targets[0], targets[0][-1]], targets[1][:-1], [], *targets[3:]]  # goes on, ends early, writes nothing
    monkeypatch.setattr(type(copying.task), "decode_greedily", lambda self, batch: [queue.pop(0) for _ in batch.source])
    config = load_config(copying.run_dir, {}, ())
    metrics = evaluation.evaluate(config, copying.run_dir, "test").metrics
    assert metrics["test/exact_match"] == pytest.approx((len(targets) - 3) / len(targets))


def test_a_figure_shows_the_first_pairs(train):
    copying = train(copied_sentences)
    pairs, texts = copying.data.samples["test"][:10], copying.data.texts["test"]
    (batch,) = copying.data.read("test", [torch.arange(10)])
    outputs = [copying.write_greedily(source) for source, _ in pairs]
    assert copying.task.figures(batch, outputs) == {"sample": "\n".join(
        f"{source} -> {' '.join(copying.words(output))}   ({target})"
        for (source, target), output in list(zip(texts, outputs, strict=False))[:8])}


def test_predict_decodes_greedily_by_a_beam_or_by_sampling(train, monkeypatch, capsys):
    reversing = train(reversed_words)

    def predict(*words: str) -> tuple[int, str, str]:
        for earlier in reversing.run_dir.path.glob("predictions*.json"):
            earlier.unlink()
        return run_command(monkeypatch, capsys, "predict", f"run={reversing.run_dir}", *words)

    (source,) = reversing.data.encode_inputs(["abc"]).source.tolist()
    greedy = "".join(reversing.words(reversing.write_greedily(source)))
    file = f"{reversing.run_dir}/predictions.json"
    assert predict("text=abc") == (0, f"abc -> {greedy}\n1 input; {file}\n", "")
    code, out, err = predict("text=abc", "decode=beam", "beam=3")
    title, *lines, last = out.splitlines()
    assert (code, title, last, err) == (0, "abc", f"1 input; {file}", "")
    indices = {symbol: index for index, symbol in enumerate(reversing.data.vocabularies["target"])}
    printed, scores = [], []
    for line in lines:
        score, _, text = line.strip().partition("  ")
        ended = [END] if len(text) < reversing.max_length else []
        printed.append(float(score))
        scores.append(reversing.log_probability(source, [indices[symbol] for symbol in text] + ended))
    assert len(printed) == 3
    assert printed == pytest.approx(scores, abs=1e-3)
    sampled = [predict("text=abc", "decode=sampled", "temperature=4", f"seed={seed}")[1] for seed in (1, 1, 2, 3, 4)]
    assert sampled[0] == sampled[1]
    assert len({*sampled}) > 2
    code, out, err = predict("text=axb")
    assert (code, err) == (0, "dltrain: 1 of 3 symbols are not in the vocabulary of the run: 'x'\n")
    assert out.startswith("axb -> ")
    sources = reversing.run_dir.path / "sources.txt"
    sources.write_text("abc\naxbx\nyc\n")
    message = "dltrain: 3 of 9 symbols are not in the vocabulary of the run: 'x', 'y'\n"
    assert predict(f"input={sources}")[::2] == (0, message)
    assert predict("decode=beam") == (2, "", 'dltrain: error: predict needs text="..." or input=FILE\n')
    assert predict("text=a", "decode=bean") == (
        2, "", "dltrain: error: decode=bean: must be one of greedy, sampled, beam\n")
    assert predict("text= ") == (2, "", "dltrain: error: text must have at least one symbol\n")


def test_predict_reads_a_source_per_line(train, monkeypatch, capsys):
    copying = train(copied_sentences)
    file = f"{copying.run_dir}/samples/sources.txt"
    code, out, err = run_command(monkeypatch, capsys, "predict", f"run={copying.run_dir}", f"input={file}")
    assert (code, err) == (0, "")
    assert out.splitlines()[:-1] == [
        f"{text} -> {' '.join(copying.words(copying.write_greedily(source)))}" for (text, _), (source, _) in
        list(zip(copying.data.texts["test"], copying.data.samples["test"], strict=True))[:10]]
