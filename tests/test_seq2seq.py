"""Sequence to sequence: the net, decoding, pairs from files, exact resume, what is refused."""

import datetime
import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from dltrain import build, cli, run
from dltrain.batches import END, PAD, START, UNKNOWN, generator
from dltrain.data.loader import TrainLoader, bucket_by_length
from dltrain.data.pair_files import PairFiles
from dltrain.data.sequences import Tokenizer
from dltrain.data.translation import FORMATS, Dates
from dltrain.errors import DataError
from dltrain.models.seq2seq import Seq2Seq
from dltrain.tasks import decoding
from tests.test_resume import assert_a_crash_changes_nothing

LENGTHS = (5, 2, 4)


def net(**keys) -> Seq2Seq:
    torch.manual_seed(0)
    model = Seq2Seq(9, 8, **{"cell": "lstm", "hidden": 6, "layers": 2, "embedding": 4, **keys})
    return model.double().eval()


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.randint(4, 9, (3, 5), generator=generator("source"))
    for row, length in enumerate(LENGTHS):
        source[row, length:] = PAD
    target = torch.randint(4, 8, (3, 6), generator=generator("target"))
    target[:, 0] = START
    return source, target


@pytest.mark.parametrize("keys", [{}, {"attention": False}, {"reverse": True}, {"cell": "gru", "layers": 1},
                                  {"cell": "rnn", "embedding": None}])
def test_steps_equal_the_forward_pass_and_pairs_do_not_mix(keys):
    model, (source, target) = net(**keys), pairs()
    whole = model(source, LENGTHS, target)
    state = model.begin(source, LENGTHS)
    for t in range(target.shape[1]):
        logits, state = model.step(target[:, t], state)
        torch.testing.assert_close(logits, whole[:, t], rtol=0, atol=1e-12)
    for row, length in enumerate(LENGTHS):
        alone = model(source[[row], :length], (length,), target[[row]])
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-12)


def test_reverse_reads_the_source_backwards():
    source, target = pairs()
    backwards = source.clone()
    for row, length in enumerate(LENGTHS):
        backwards[row, :length] = source[row, :length].flip(0)
    reverse, forward = net(reverse=True, attention=False), net(attention=False)
    torch.testing.assert_close(reverse(source, LENGTHS, target), forward(backwards, LENGTHS, target))
    assert not torch.allclose(reverse(source, LENGTHS, target), forward(source, LENGTHS, target))


def test_attention_equals_a_loop_over_pairs_and_places():
    model, (source, _) = net(), pairs()
    with torch.no_grad():
        memory, _ = model.encode(source, LENGTHS)
    h = torch.randn(3, 2, 6, generator=generator("h"), dtype=torch.double)
    attended, weights = model.attend(h, memory), model.attention(h, memory)
    w, mix = model.score.weight.detach(), model.combine.weight.detach()
    for row, length in enumerate(LENGTHS):
        assert (weights[row, :, length:] == 0).all()
        for t in range(2):
            scores = [((w @ h[row, t]) @ memory.states[row, s]).item() for s in range(length)]
            total = sum(math.exp(score) for score in scores)
            context = sum(math.exp(score) / total * memory.states[row, s] for s, score in enumerate(scores))
            torch.testing.assert_close(attended[row, t], torch.tanh(mix @ torch.cat([context, h[row, t]])))


def score_of(model: Seq2Seq, source, lengths, symbols: list[int]) -> float:
    """The sum of log-probabilities, all at once and not step by step."""
    target = torch.tensor([[START, *symbols]])
    log_p = F.log_softmax(model(source, lengths, target)[0, :-1], dim=1)
    return float(sum(log_p[place, symbol] for place, symbol in enumerate(symbols)))


@pytest.mark.parametrize("attention", [False, True])
def test_a_beam_finds_the_best_of_all_when_it_is_wide_enough(attention):
    """Against every text of at most three symbols; scores are those of the model."""
    model, (source, _) = net(attention=attention), pairs()
    row, lengths = source[[0]], LENGTHS[:1]
    with torch.no_grad():
        words = range(END, 8)
        texts = [list(text) for n in (1, 2, 3) for text in itertools.product(words, repeat=n)
                 if END not in text[:-1] and (text[-1] == END or n == 3)]
        scores = {tuple(text): score_of(model, row, lengths, text) for text in texts}
        for power in (0.0, 1.0):
            found, given = decoding.beam(model.step, model.begin(row, lengths), decoding.starts(1, row.device), 3, 125,
                                         power)
            best = sorted(scores, key=lambda text: -scores[text] / len(text) ** power)[:5]
            for place, text in enumerate(best):
                assert tuple(s for s in found[0, place].tolist() if s != PAD) == text
                assert float(given[0, place]) == pytest.approx(scores[text], abs=1e-5)


def test_a_beam_of_one_is_greedy_and_rows_do_not_mix():
    model, (source, _) = net(), pairs()
    with torch.no_grad():
        model.head.weight *= 3
        model.head.bias[END] += 0.1
        start = decoding.starts(3, source.device)
        greedy, score = decoding.written(model.step, model.begin(source, LENGTHS), start, 7)
        one, same = decoding.beam(model.step, model.begin(source, LENGTHS), start, 7, 1)
        assert decoding.until_end(greedy) == decoding.until_end(one[:, 0])
        assert len({len(row) for row in decoding.until_end(greedy)}) > 1, "some must end before others"
        torch.testing.assert_close(score, same[:, 0])
        together, scores = decoding.beam(model.step, model.begin(source, LENGTHS), start, 7, 4)
        for row, length in enumerate(LENGTHS):
            state = model.begin(source[[row], :length], (length,))
            alone, its = decoding.beam(model.step, state, start[:1], 7, 4)
            assert decoding.until_end(alone[0]) == decoding.until_end(together[row])
            torch.testing.assert_close(its[0], scores[row])
        for row, symbols in enumerate(greedy.tolist()):
            written = [s for s in symbols if s != PAD]
            whole = score_of(model, source[[row]], LENGTHS[row : row + 1], written)
            assert float(score[row]) == pytest.approx(whole, abs=1e-5)


def test_drawn_symbols_follow_the_chances_and_the_seed():
    logits = torch.tensor([9.0, 9.0, 9.0, -9.0, 0.0, 1.0, 2.0])

    def step(tokens, state):
        return logits.expand(len(tokens), -1), state

    start = decoding.starts(4000, logits.device)
    found, _ = decoding.written(step, (), start, 1, 2.0, generator("draws"))
    chances = (logits[3:] / 2).softmax(0)
    shares = torch.tensor([float((found == symbol).float().mean()) for symbol in range(3, 7)])
    assert ((shares - chances).abs() < 4 * (chances * (1 - chances) / 4000).sqrt() + 1e-9).all()
    again, _ = decoding.written(step, (), start, 1, 2.0, generator("draws"))
    assert torch.equal(found, again)


def test_dates_agree_with_the_calendar_and_no_day_is_in_two_splits():
    data = Dates(words=False, max_length=40, num_train=3000, batch_size=8)
    splits = data.pairs()
    days = {split: {iso for _, iso in pairs} for split, pairs in splits.items()}
    assert not days["train"] & days["test"]
    assert not days["train"] & days["val"]
    assert not days["val"] & days["test"]
    formats = ["%d %B %Y", "%B %d, %Y", "%A, %d %B %Y", "%a %b %d %Y", "%d-%b-%Y", "%d.%m.%Y", "%m/%d/%Y", "%Y/%m/%d",
               "%Y, %B %d"]
    num_parsed = 0
    for text, iso in splits["train"]:
        for pattern in formats:
            try:
                parsed = datetime.datetime.strptime(text, pattern)
            except ValueError:
                continue
            assert parsed.date().isoformat() == iso, text
            num_parsed += 1
    assert 0.6 * 3000 < num_parsed < 3000
    assert len({write(datetime.date(1998, 3, 12)) for write in FORMATS}) == 12
    assert FORMATS[3](datetime.date(1998, 3, 12)) == "the 12th of March 1998"
    assert [FORMATS[2](datetime.date(1998, 3, day)) for day in (1, 2, 3, 11, 22, 23, 31)] == [
        f"Mar {day}, 1998" for day in ("1st", "2nd", "3rd", "11th", "22nd", "23rd", "31st")]


def test_similar_lengths_share_a_batch_and_each_sample_comes_once():
    lengths = torch.randint(1, 60, (1003,), generator=generator("lengths"))
    loader = TrainLoader(iter, 1003, 10, seed=1, lengths=lengths)
    order = loader.order(0)
    assert sorted(order.tolist()) == list(range(1003))
    assert torch.equal(order, loader.order(0))
    assert not torch.equal(order, loader.order(1))
    spread = [int(lengths[batch].max() - lengths[batch].min()) for batch in order.split(10)]
    plain = TrainLoader(iter, 1003, 10, seed=1).order(0)
    assert sum(spread) < 0.1 * sum(int(lengths[b].max() - lengths[b].min()) for b in plain.split(10))
    means = [float(lengths[batch].float().mean()) for batch in order.split(10)]
    assert means != sorted(means), "batches are shuffled"
    later = [float(lengths[batch].float().mean()) for batch in loader.order(1).split(10)]
    assert [sorted(means).index(m) for m in means] != [sorted(later).index(m) for m in later], "anew in each epoch"
    assert len(bucket_by_length(torch.arange(7), torch.arange(7), 10, generator("x"))) == 7


def test_words_and_characters():
    words = Tokenizer(words=True, lower=True, min_count=2)
    assert words.split(" The cat's hat, 3.5 Über!") == ["the", "cat's", "hat", ",", "3", ".", "5", "über", "!"]
    assert words.vocabulary(["a b b", "c c a b"])[4:] == ["b", "a", "c"]
    characters = Tokenizer(words=False)
    assert characters.split("Ab") == ["A", "b"]
    assert characters.join(["A", "b"]) == "Ab"


@pytest.fixture
def lines(tmp_path):
    """The arguments of a run that reverses words, letter by letter: 60 pairs."""
    texts = ["".join(letters) for letters in itertools.permutations("abcd", 3)] + ["a", "b", "ab", "ba", "cd", "dc"]
    file = tmp_path / "turned.tsv"
    file.write_text("\n".join(f"{text}\t{text[::-1]}" for text in texts * 2))
    return ["model=seq2seq", "data=pairs", f"data.root={file}", "data.words=false", "model.hidden=16",
            "model.embedding=8", "model.dropout=0.1", "data.batch_size=6", "trainer=cpu", "trainer.max_epochs=2",
            "task.optimizer.name=adam", "task.optimizer.lr=0.01", "task.optimizer.weight_decay=0", "recipe=none",
            "trainer.gradient_clip_norm=1"]


@pytest.mark.parametrize("at", [1, 8, 9])
def test_a_resumed_run_ends_in_the_same_bits(at, config, lines, run_folder, monkeypatch):
    assert_a_crash_changes_nothing(lines, at, config, run_folder, monkeypatch)


def bleu(found: list[list[str]], wanted: list[list[str]]) -> float:
    """Papineni et al. 2002, equation by equation: clipped n-gram precisions, geometric mean, brevity penalty."""
    logs = 0.0
    for n in range(1, 5):
        right = total = 0
        for one, other in zip(found, wanted, strict=True):
            mine, theirs = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (one, other))
            right += sum(min(count, theirs[gram]) for gram, count in mine.items())
            total += sum(mine.values())
        logs += math.log(right / total) / 4
    c, r = sum(map(len, found)), sum(map(len, wanted))
    return min(1.0, math.exp(1 - r / c)) * math.exp(logs)


def test_loss_matches_and_bleu_equal_loops(config, tmp_path, run_folder):
    """Word by word: a run that learns to copy, measured again by hand."""
    words = ["the", "a", "cat", "dog", "sees", "hears", "one", "two", "red", "old"]
    draws = generator("copies")
    texts = [" ".join(words[i] for i in torch.randint(10, (int(n),), generator=draws))
             for n in torch.randint(4, 9, (150,), generator=draws)]
    file = tmp_path / "copies.tsv"
    file.write_text("\n".join(f"{text}\t{text}" for text in texts))
    found = config("model=seq2seq", "data=pairs", f"data.root={file}", "model.hidden=48", "model.embedding=16",
                   "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=25", "task.optimizer.name=adam",
                   "task.optimizer.lr=0.01", "task.optimizer.weight_decay=0", "recipe=none")
    path = run_folder("run")
    result = run.train(found, path)
    data, task = build.build_data(found), build.build_task(found)
    task.load_state_dict(torch.load(path / "checkpoints/best.ckpt", weights_only=True)["state_dict"])
    model, symbols = task.eval().model.double(), data.vocabularies["target"]
    written, wanted, total, count = [], [], 0.0, 0
    with torch.no_grad():
        for source, target in data.samples["test"]:
            batch = torch.tensor([source])
            total -= score_of(model, batch, (len(source),), target[1:])
            count += len(target) - 1
            state, token, out = model.begin(batch, (len(source),)), START, []
            while token != END and len(out) < 50:
                logits, state = model.step(torch.tensor([token]), state)
                logits[:, [PAD, UNKNOWN, START]] = -math.inf
                token = int(logits.argmax())
                out.append(token)
            written.append([symbols[i] for i in out if i != END])
            wanted.append([symbols[i] for i in target[1:-1]])
    assert result["headline"] == "val/bleu"
    assert 0.1 < result["test/bleu"] < 1.0, "neither nothing nor everything, so that the measure is seen"
    assert result["test/bleu"] == pytest.approx(bleu(written, wanted), abs=1e-4)
    exact = sum(a == b for a, b in zip(written, wanted, strict=True)) / len(wanted)
    assert result["test/exact_match"] == pytest.approx(exact, abs=1e-6)
    assert result["test/loss"] == pytest.approx(total / count, rel=1e-4)


def pair_files(root, **keys) -> PairFiles:
    return PairFiles(**{"root": str(root), "languages": None, "encoding": "utf-8", "num_train": None, "words": True,
                        "max_length": 9, "batch_size": 2, **keys})


def test_parallel_files_and_their_faults(tmp_path):
    for split, language, text in [("train", "en", "one\ntwo\n\nfour\n"), ("train", "de", "eins\nzwei\n\nvier\n"),
                             ("val", "en", "a\n"), ("val", "de", "b\n"), ("test_2016", "en", "a\n"),
                             ("test_2016", "de", "c\n")]:
        (tmp_path / f"{split}.{language}").write_text(text)
    pairs = pair_files(tmp_path, languages=["en", "de"]).pairs()
    assert pairs == {"train": [("one", "eins"), ("two", "zwei"), ("four", "vier")], "val": [("a", "b")],
                     "test": [("a", "c")]}
    (tmp_path / "train.de").write_text("eins\n\nzwei\nvier\n")
    with pytest.raises(DataError, match=r"train.en and .*train.de must have the same lines, but line 2 is in one only"):
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


def test_predict_writes_by_each_way_of_decoding(config, lines, run_folder, monkeypatch, capsys):
    path = run_folder("run")
    run.train(config(*lines, "trainer.max_epochs=60"), path)

    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dltrain", "predict", f"run={path}", *words])
        capsys.readouterr()
        code = cli.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    assert typed("text=abc") == (0, "abc -> cba\n", "")
    _, out, _ = typed("text=abc", "decode=beam", "beam=3")
    assert out.splitlines()[0] == "abc"
    scores = [float(line.split()[0]) for line in out.splitlines()[1:]]
    assert len(scores) == 3
    assert out.splitlines()[1].split()[1] == "cba"
    drawn = [typed("text=abc", "decode=sampled", "temperature=4", f"seed={seed}")[1] for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    _, out, err = typed("text=axb")
    assert "1 of 3 symbols are unknown: axb" in err
    assert typed("decode=beam")[2] == 'dltrain: error: predict needs text="..." or input=FILE\n'
    assert "decode=bean: must be one of greedy, sampled, beam" in typed("text=a", "decode=bean")[2]
    assert typed("text= ")[2] == "dltrain: error: text must have at least one symbol\n"
    _, out, _ = typed(f"input={path}/samples/sources.txt")
    assert len(out.splitlines()) == 6
