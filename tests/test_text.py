"""A language model from files to text: streams, the carried state, exact resume, what is refused."""

import csv
import hashlib
import http.server
import itertools
import math
import threading

import pytest
import torch
import torch.nn.functional as F

from dltrain import build, run, run_dir
from dltrain.batches import END, IGNORED_LABEL, UNKNOWN, BatchError, TokenBatch, generator, seed_of
from dltrain.data import text_files
from dltrain.data.language_modeling import cut_streams, encode_characters
from dltrain.data.sequences import character_vocabulary
from dltrain.data.stdlib import Stdlib
from dltrain.data.text_files import Shakespeare, TextFiles
from dltrain.data.texts import read_text
from dltrain.errors import DataError, UserError
from dltrain.tasks.language_modeling import continuation
from tests.test_resume import Crash, assert_a_crash_changes_nothing, assert_same, crash_at, load_last

WORDS = "the cat sat on the mat and the rat sat on the cat; "


@pytest.fixture
def words(tmp_path):
    """The words of a run of 4 streams, windows of 10 symbols, 10 windows an epoch, 2 epochs."""
    file = tmp_path / "cats.txt"
    file.write_text(WORDS * 9)
    return ["model=char_rnn", "data=text", f"data.root={file}", "recipe=none", "model.hidden=12", "model.layers=2",
            "model.dropout=0.1", "data.batch_size=4", "data.window=10", "trainer=cpu", "trainer.max_epochs=2",
            "trainer.gradient_clip_norm=0.5", "trainer.log_every_n_steps=5", "task.optimizer.lr=0.5",
            "task.optimizer.weight_decay=0"]


def test_characters_become_indices():
    symbols = character_vocabulary("banana\n")
    assert symbols[4:] == ["\n", "a", "b", "n"]
    tokens = encode_characters("nab€\U0001f600a", symbols)
    assert tokens.tolist() == [symbols.index(c) if c in symbols else UNKNOWN for c in "nab€\U0001f600a"]
    assert encode_characters("ab", symbols[:4]).tolist() == [UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("whole", [False, True])
def test_streams_predict_every_symbol_once_and_in_order(whole):
    tokens = torch.arange(103)
    rows = cut_streams(tokens, 4, whole)
    targets = rows[:, 1:].flatten()
    scored = targets[targets != IGNORED_LABEL]
    assert scored.tolist() == list(range(1, 103 if whole else 101))
    inputs = rows[:, :-1].flatten()[: len(scored)]
    assert (scored - inputs).tolist() == [1] * len(scored)


def test_a_window_continues_where_the_last_one_ends(config, words):
    data = build.build_data(config(*words))
    batches = list(data.train_dataloader())
    whole = torch.cat([batch.tokens for batch in batches], dim=1)
    assert torch.equal(whole, data.tokens["train"][:, :-1])
    assert torch.equal(torch.cat([batch.targets for batch in batches], dim=1), data.tokens["train"][:, 1:])
    assert {batch.tokens.shape for batch in batches[:-1]} == {(4, 10)}
    symbols = data.vocabularies["characters"]
    assert WORDS * 2 in "".join(symbols[i] for i in whole[0].tolist()) + WORDS * 2
    assert "".join(symbols[i] for i in whole[0, :20].tolist()) == (WORDS * 9)[:20]


def test_training_equals_a_loop_by_hand_with_its_state_norms_and_clipping(config, words, run_folder):
    """The same bits in the end, and the same bits per character, norms and clipped share in metrics.csv."""
    path = run_folder("run")
    found = config(*words)
    run.train(found, path)

    data = build.build_data(found)
    torch.manual_seed(seed_of("init", 0))
    net = build.build(found.model, "model")
    sgd = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    steps, seen = 0, []
    per_epoch = len(data.train_dataloader())
    for epoch in range(2):
        state = net.zeros(4)
        for number in range(per_epoch):
            window = data.tokens["train"][:, number * 10 : number * 10 + 11]
            torch.manual_seed(seed_of("model", 0, epoch, number, 0))
            logits, state = net(window[:, :-1], state)
            state = tuple(s.detach() for s in state)
            loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
            sgd.zero_grad()
            loss.backward()
            norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in net.parameters()))
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            sgd.param_groups[0]["lr"] = 0.5 * 0.1 ** sum(steps >= round(s * 2 * per_epoch) for s in (0.5, 0.75))
            sgd.step()
            steps += 1
            seen.append((float(loss.detach()), window[:, 1:].numel(), norm, norm > 0.5))
    for name, value in net.state_dict().items():
        assert torch.equal(load_last(path)["state_dict"][f"model.{name}"], value), name
    with open(path / "metrics.csv", newline="") as file:
        first = next(row for row in csv.DictReader(file) if row["train/loss"])
    five = seen[:5]
    loss = sum(a * n for a, n, _, _ in five) / sum(n for _, n, _, _ in five)
    assert float(first["train/loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(first["train/bits_per_character"]) == pytest.approx(loss / math.log(2), rel=1e-5)
    assert float(first["train/gradient_norm"]) == pytest.approx(sum(s[2] for s in five) / 5, rel=1e-5)
    assert float(first["train/clipped_fraction"]) == pytest.approx(sum(s[3] for s in five) / 5)
    assert {s[3] for s in seen} == {True, False}, "the test must see clipped and unclipped steps"


def test_held_out_bits_equal_one_pass_over_each_stream(config, words, run_folder):
    path = run_folder("run")
    found = config(*words, "data.window=7")
    result = run.train(found, path)
    data, task = build.build_data(found), build.build_task(found)
    task.load_state_dict(torch.load(path / "checkpoints/best.ckpt", weights_only=True)["state_dict"])
    rows = data.tokens["test"]
    with torch.no_grad():
        logits, _ = task.eval().model(rows[:, :-1].clamp_min(0))
    loss = F.cross_entropy(logits.flatten(0, 1).double(), rows[:, 1:].flatten(), ignore_index=IGNORED_LABEL)
    assert result["test/loss"] == pytest.approx(float(loss), rel=1e-5)
    assert result["test/bits_per_character"] == pytest.approx(float(loss) / math.log(2), rel=1e-5)


@pytest.mark.parametrize("at", [1, 4, 9, 10, 13])
def test_a_resumed_run_carries_the_hidden_state(at, config, words, run_folder, monkeypatch):
    assert_a_crash_changes_nothing(words, at, config, run_folder, monkeypatch)


def test_without_its_state_a_resumed_run_would_differ(config, words, run_folder, monkeypatch):
    """The control of the test above."""
    straight, crashed = run_folder("straight"), run_folder("crashed")
    run.train(config(*words), straight)
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 4)
        with pytest.raises(Crash):
            run.train(config(*words, "trainer.checkpoint_every_steps=1"), crashed)
    file = crashed / "checkpoints/last.ckpt"
    from dltrain import checkpoints

    saved = checkpoints.load(file)
    for name in ("state0", "state1"):
        assert saved["state_dict"][name].any()
        saved["state_dict"][name].zero_()
    checkpoints.DurableIO().save_checkpoint(saved, file)
    run.train(config(*words, "trainer.checkpoint_every_steps=1"), crashed)
    with pytest.raises(AssertionError):
        assert_same(straight, crashed)


def test_another_vocabulary_is_refused_at_resume(config, words, run_folder, tmp_path, monkeypatch):
    path = run_folder("run")
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 3)
        with pytest.raises(Crash):
            run.train(config(*words, "trainer.checkpoint_every_steps=1"), path)
    (tmp_path / "cats.txt").write_text(WORDS.replace("c", "ç") * 9)
    with pytest.raises(UserError, match=r"vocabulary of characters has 17 symbols, .* begun with 17 \(.*'c', 'ç'"):
        run.train(config(*words), path)


@pytest.mark.parametrize(("raw", "message"), [
    (b"abc\0\1\2", r"cats.txt: not text \(a zero byte at 3\)"), (b"", "cats.txt: empty"), (b" \n", "cats.txt: empty"),
    (b"one\ntwo\nth\xffree", r"cats.txt:3: not utf-8 \(byte 0xff at offset 10\)"),
    (b"short", "the train split has 4 characters, too few for 4 streams")])
def test_files_that_are_not_text_are_named(raw, message, config, words, tmp_path):
    (tmp_path / "cats.txt").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        build.build_data(config(*words))


def read_files(root, **more) -> TextFiles:
    return TextFiles(root=root, encoding="utf-8", window=5, batch_size=2, **more)


def test_a_folder_and_a_glob_are_read_in_order_of_names(tmp_path):
    for name in ("b.txt", "a.txt", ".hidden"):
        (tmp_path / name).write_text(name * 30)
    for root in (tmp_path, tmp_path / "*.txt"):
        assert "".join(read_files(str(root)).texts().values()) == "a.txt" * 30 + "\n" + "b.txt" * 30
    with pytest.raises(DataError, match=r"data.root=.*none\*: no such file"):
        read_files(str(tmp_path / "none*")).texts()


def test_encodings_and_the_byte_order_mark(tmp_path):
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbfabc\r\nd")
    assert read_text(tmp_path / "mark.txt") == "abc\nd"
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    assert read_text(tmp_path / "latin.txt", "latin-1") == "é"
    with pytest.raises(DataError, match=r"data\.encoding=klingon"):
        read_text(tmp_path / "latin.txt", "klingon")


def test_unknown_symbols_are_counted(config, words, tmp_path):
    (tmp_path / "cats.txt").write_text(WORDS * 9 + "ÄÖ")
    data = build.build_data(config(*words))
    assert data.describe().endswith("17 symbols (unknown: 2 in test)")
    batch = list(data.test_dataloader())[-1]
    assert (batch.targets == UNKNOWN).sum() == 2


def test_inputs_of_predict_become_a_batch_without_targets(config, words):
    data = build.build_data(config(*words))
    batch = data.encode_inputs(["the c", "the €"])
    batch.check(len(data.vocabularies["characters"]))
    assert batch.tokens[1, 4] == UNKNOWN
    assert (batch.targets == IGNORED_LABEL).all()


@pytest.mark.parametrize("contents", ["topics", "source"])
def test_the_text_of_python_is_complete_and_has_no_paragraph_twice(contents):
    texts = Stdlib(contents=contents, window=64, batch_size=32).texts()
    text = "".join(texts.values())
    assert len(texts["train"]) > 250_000
    assert 0.04 < len(texts["test"]) / len(text) < 0.06
    if contents == "topics":
        paragraphs = [paragraph for paragraph in text.split("\n\n") if len(paragraph) > 40]
        assert len(set(paragraphs)) > 0.99 * len(paragraphs)


def test_shakespeare_is_checked_by_its_checksum(tmp_path, monkeypatch):
    (tmp_path / "shakespeare.txt").write_text(WORDS * 50)
    data = Shakespeare(root=str(tmp_path), download=False, window=5, batch_size=2)
    with pytest.raises(DataError, match=r"shakespeare.txt: 2,550 bytes with sha256 .*must be 86c4e6aa9db7"):
        data.texts()
    monkeypatch.setattr(text_files, "SHAKESPEARE_SHA256", hashlib.sha256((WORDS * 50).encode()).hexdigest())
    texts = data.texts()
    assert texts["train"] + texts["val"] == WORDS * 50
    assert texts["val"] == texts["test"]
    with pytest.raises(DataError, match=r"put https://.*data=stdlib needs no download"):
        Shakespeare(root=str(tmp_path / "no"), download=False, window=5, batch_size=2).texts()


@pytest.fixture
def server():
    """A local server of the 100,000 bytes of `server.content`, which closes the connection after half of them for the
    first `server.num_cut` requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.server.num_requests += 1
            is_cut = self.server.num_requests <= self.server.num_cut
            self.wfile.write(self.server.content[: len(self.server.content) // 2 if is_cut else None])

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as local:
        local.content, local.num_cut, local.num_requests = (WORDS * 2000).encode()[:100_000], 0, 0
        thread = threading.Thread(target=local.serve_forever)
        thread.start()
        yield local
        local.shutdown()
        thread.join()


@pytest.fixture
def shakespeare_of(server, monkeypatch, tmp_path):
    """The data set, downloaded from the local server."""
    monkeypatch.setattr(text_files, "SHAKESPEARE", f"http://127.0.0.1:{server.server_port}/shakespeare.txt")
    monkeypatch.setattr(text_files, "SHAKESPEARE_BYTES", len(server.content))
    monkeypatch.setattr(text_files, "SHAKESPEARE_SHA256", hashlib.sha256(server.content).hexdigest())
    return lambda: Shakespeare(root=str(tmp_path / "to"), download=True, window=5, batch_size=2)


def test_an_interrupted_download_is_tried_three_times(server, shakespeare_of, tmp_path, capsys):
    server.num_cut = 2
    assert len("".join(shakespeare_of().texts().values())) > 100_000
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("txt: ")[2] for line in lines[1:]] == [
        "incomplete (50000 of 100000 bytes), retry 2/3", "incomplete (50000 of 100000 bytes), retry 3/3"]
    assert [file.name for file in (tmp_path / "to").iterdir()] == ["shakespeare.txt"]
    shakespeare_of().texts()
    assert server.num_requests == 3, "the file is there now"


def test_a_failed_download_is_one_line_and_leaves_nothing(server, shakespeare_of, tmp_path, monkeypatch):
    server.num_cut = 9
    with pytest.raises(DataError, match=r"cannot be downloaded \(incomplete \(50000 of 100000 bytes\)\): put http"):
        shakespeare_of().texts()
    server.num_cut, server.content = 0, server.content[::-1]
    with pytest.raises(DataError, match=r"cannot be downloaded \(100,000 bytes with sha256 .*, must be"):
        shakespeare_of().texts()
    monkeypatch.setattr(text_files, "SHAKESPEARE", "http://127.0.0.1:9/nothing")
    with pytest.raises(DataError, match=r"cannot be downloaded .*refused.*: put http.*data=stdlib needs no download"):
        shakespeare_of().texts()
    assert not list((tmp_path / "to").iterdir())


class Counting(torch.nn.Module):
    """Logits that favour the symbol after the last one, 5 to 9 in a circle."""

    def zeros(self, batch):
        return (torch.zeros(1, batch, 1),)

    def step(self, tokens, state):
        logits = torch.zeros(len(tokens), 10)
        logits[:, :4] = 50.0  # what must never be drawn
        for row, token in enumerate(tokens.tolist()):
            logits[row, 5 + (token - 4) % 5] = 3.0
        return logits, state


def test_sampling_follows_the_chances():
    drawn = continuation(Counting(), torch.tensor([5]), generator("s"), temperature=0)
    assert [next(drawn) for _ in range(7)] == [6, 7, 8, 9, 5, 6, 7]
    drawn = continuation(Counting(), torch.tensor([5]), generator("s"), top_k=1)
    assert [next(drawn) for _ in range(4)] == [6, 7, 8, 9]
    drawn = continuation(Counting(), torch.tensor([5]), generator("s"), temperature=1.5)
    found = [next(drawn) for _ in range(6000)]
    assert min(found) > END
    follows = sum(b == 5 + (a - 4) % 5 for a, b in itertools.pairwise(found)) / 5999
    expected = math.exp(3 / 1.5) / (math.exp(3 / 1.5) + 5)
    assert follows == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 5999))
    assert not torch.is_inference_mode_enabled()


def test_several_devices_are_refused(config, words):
    data = read_files(None)
    data.world_size = 2
    with pytest.raises(DataError, match=r"trainer.devices=1"):
        data.load()


def test_batches_that_break_their_promise():
    with pytest.raises(BatchError, match=r"targets must be int64 in \[0, 5\), but the first batch has 5"):
        TokenBatch(torch.zeros(2, 3).long(), torch.full((2, 3), 5)).check(5)


def test_a_run_evaluates_and_predicts_from_its_folder_alone(config, words, run_folder, tmp_path, monkeypatch, capsys):
    from dltrain import cli

    path = run_folder("run")
    result = run.train(config(*words), path)
    assert run_dir.read_vocabularies(path)["characters"][4:] == sorted(set(WORDS))

    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dltrain", *words])
        capsys.readouterr()
        code = cli.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, _ = typed("eval", f"run={path}")
    assert f"test/bits_per_character {result['test/bits_per_character']:.4f}" in out
    other = tmp_path / "other.txt"
    other.write_text("dogs and cats. " * 30)
    code, out, _ = typed("eval", f"run={path}", f"data.root={other}")  # with the run's own vocabulary
    assert code == 0
    assert f"{result['test/bits_per_character']:.4f}" not in out
    (tmp_path / "cats.txt").unlink()
    texts = [typed("predict", f"run={path}", "prompt=the ", "length=30", f"seed={seed}") for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][1].startswith("the ")
    assert len(texts[0][1]) == 4 + 30 + 1
    assert typed("predict", f"run={path}", "prompt=Zug")[::2] == (
        2, "dltrain: error: prompt has symbols that the training text has not: 'Z', 'g', 'u'\n")
    assert typed("predict", f"run={path}", "temperatur=1")[2] == (
        "dltrain: error: unknown key 'temperatur'; did you mean 'temperature'?\n")
    assert "length=0: must be an integer >= 1" in typed("predict", f"run={path}", "length=0")[2]
