"""Running text: from files, Python's own, Shakespeare's; characters to streams and batches; what is refused."""

import hashlib
import itertools
import os
import re
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch

from dltrain import build
from dltrain.batches import IGNORED_LABEL, UNKNOWN, BatchError, TokenBatch
from dltrain.data import character_files, text_files, texts
from dltrain.data.datamodule import SPLITS
from dltrain.data.language_modeling import TextStreams, cut_streams, encode_characters
from dltrain.data.sequences import SPECIAL_SYMBOLS, character_vocabulary
from dltrain.data.stdlib import Stdlib, library_files
from dltrain.data.text_files import Shakespeare, TextFiles, cut_pieces
from dltrain.data.texts import read_text
from dltrain.errors import DataError

SENTENCE = "the cat sat on the mat and the rat sat on the cat; "


@pytest.fixture
def read_cats(config, tmp_path):
    """read_cats(text) -> the loaded data of a file cats.txt with this text, 4 streams in windows of 10 symbols."""

    def read(content: str | bytes) -> TextStreams:
        file = tmp_path / "cats.txt"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        data = build.build_data(config("model=char_rnn", "data=text", f"data.root={file}", "recipe=none",
                                       "data.batch_size=4", "data.window=10"))
        assert isinstance(data, TextStreams)
        return data

    return read


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


def test_a_window_continues_where_the_last_one_ends(read_cats):
    data = read_cats(SENTENCE * 9)
    batches = list(data.train_dataloader())
    assert [batch.tokens.shape for batch in batches] == [(4, 10)] * 10 + [(4, 3)]
    tokens, targets = (torch.cat(windows, dim=1) for windows in zip(*batches, strict=True))
    assert torch.equal(tokens, data.tokens["train"][:, :-1])
    assert torch.equal(targets, data.tokens["train"][:, 1:])
    symbols = data.vocabularies["characters"]
    assert "".join(symbols[i] for i in tokens.flatten().tolist()) == (SENTENCE * 9)[:412]


def test_the_share_that_is_held_out_is_a_key(config, tmp_path, monkeypatch):
    """The vocabulary is that of the training split, also where the text comes from the cache of another share."""
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(character_files, "CACHED_FROM", 10)
    file = tmp_path / "late.txt"
    file.write_text("ab" * 425 + "abx" * 50)  # an x only in the last 15 %
    os.utime(file, (0, 0))
    for share, train, symbols in (("0.1", 900, "abx"), ("0.2", 800, "ab"), ("0.1", 900, "abx")):
        data = build.build_data(config("model=char_rnn", "data=text", f"data.root={file}", "recipe=none",
                                       "data.batch_size=4", "data.window=10", f"data.held_out_share={share}"))
        assert data.describe().startswith(f"{train} train, {(1000 - train) // 2} val, {(1000 - train) // 2} test")
        assert "".join(data.vocabularies["characters"][4:]) == symbols


def test_splits_from_every_piece_of_a_text_are_char_rnns(tmp_path):
    """Its loader cuts the text into the streams of a batch, and the windows of each stream into the splits. The
    vocabulary is that of the training split, which has no x, or that of a run, in another order."""
    file = tmp_path / "book.txt"
    letters = ["".join(chr(97 + (7 * piece + 3 * place) % 20) for place in range(80)) for piece in range(4)]
    text = "".join(start + "x" * 10 + "y" * 10 for start in letters[:3]) + letters[3][:79] + "y" + "x" * 10 + "y" * 10
    file.write_text(text)
    streams = np.array(list(text)).reshape(4, 10, 10)  # streams, windows, characters
    expected = {"train": streams[:, :8], "val": streams[:, 8:9], "test": streams[:, 9:]}
    for of_run in (None, [*SPECIAL_SYMBOLS, *"yx", *map(chr, range(97, 117))]):
        data = TextFiles(root=str(file), encoding="utf-8", held_out_share=0.2, held_out_pieces=4, window=10,
                         batch_size=4)
        if of_run:
            data.vocabularies["characters"] = of_run
        splits = data.encode_splits()
        symbols = data.vocabularies["characters"]
        assert symbols == of_run if of_run else symbols == [*SPECIAL_SYMBOLS, *sorted({*"".join(letters), "y"})]
        for split, kept in expected.items():
            words = kept.flatten().tolist()
            assert [symbols[index] for index in splits[split]] == [c if c in symbols else "<unk>" for c in words]


def test_pieces_that_are_too_short_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("ab" * 200)
    for pieces, is_enough in ((20, True), (21, False), (401, False)):
        data = TextFiles(root=str(tmp_path / "a.txt"), encoding="utf-8", held_out_pieces=pieces, window=5, batch_size=2)
        if is_enough:
            assert {split: len(kept) for split, kept in data.encode_splits().items()} == {
                "train": 360, "val": 20, "test": 20}
            continue
        with pytest.raises(DataError, match=rf"^data\.held_out_pieces={pieces}: pieces of {400 // pieces} characters "
                           "are too short to hold out 0.1 of each$"):
            data.encode_splits()


def test_the_pieces_of_a_text_leave_nothing_out():
    for length, pieces in ((1003, 10), (97, 7)):
        splits = cut_pieces(np.arange(length, dtype=np.int16), 0.2, pieces)
        assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(length))
        assert abs(len(splits["train"]) - 0.8 * length) <= pieces


@pytest.mark.parametrize(("raw", "message"), [
    (b"abc\0\1\2", r"cats.txt: not text \(a zero byte at 3\)"), (b"", "cats.txt: empty"), (b" \n", "cats.txt: empty"),
    (b"one\ntwo\nth\xffree", r"cats.txt:3: not utf-8 \(byte 0xff at offset 10\)"),
    (b"short", "the train split has 4 characters, too few for 4 streams")])
def test_files_that_are_not_text_are_named(raw, message, read_cats):
    with pytest.raises(DataError, match=message):
        read_cats(raw)


def files_at(root: str | None) -> TextFiles:
    return TextFiles(root=root, encoding="utf-8", window=5, batch_size=2)


def text_of(data: TextFiles) -> str:
    splits = data.encode_splits()
    return "".join(data.vocabularies["characters"][i] for split in SPLITS for i in splits[split].tolist())


def test_a_folder_and_a_glob_are_read_in_order_of_names(tmp_path):
    for name in ("b.txt", "a.txt", ".hidden"):
        (tmp_path / name).write_text(name * 30)
    for root in (tmp_path, tmp_path / "*.txt"):
        assert text_of(files_at(str(root))) == "a.txt" * 30 + "\n" + "b.txt" * 30
    with pytest.raises(DataError, match=r"data.root=.*none\*: no such file"):
        files_at(str(tmp_path / "none*")).load()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Texts of any length are cached, in a folder of the test, and read in pieces of 7 characters; the cache folder."""
    monkeypatch.setattr(character_files, "CACHED_FROM", 1)
    monkeypatch.setattr(texts, "PIECE_CHARACTERS", 7)
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/texts"


def write_old(file: Path, text: str, seconds: int) -> None:
    """A text that was last changed in second `seconds` of 1970."""
    file.write_bytes(text.encode())
    os.utime(file, (seconds, seconds))


def streams_of(root: Path, vocabulary: list[str] | None = None) -> dict[str, list[list[int]]]:
    data = files_at(str(root))
    data.vocabularies = {} if vocabulary is None else {"characters": vocabulary}
    data.load()
    return {split: data.tokens[split].tolist() for split in SPLITS}


def expected_streams(text: str, vocabulary: list[str] | None = None) -> dict[str, list[list[int]]]:
    """Two streams of training text, one of each held-out split, by Python's dictionaries."""
    ends = 0, int(len(text) * 0.9), int(len(text) * 0.95), len(text)
    splits = [text[start:end] for start, end in itertools.pairwise(ends)]
    symbols = vocabulary or character_vocabulary(splits[0])
    train, *held_out = ([symbols.index(c) if c in symbols else UNKNOWN for c in split] for split in splits)
    half = (len(train) - 1) // 2
    return {"train": [train[: half + 1], train[half : 2 * half + 1]], "val": [held_out[0]], "test": [held_out[1]]}


def test_a_second_start_reads_the_cache_and_never_that_of_a_changed_file(cached, tmp_path, monkeypatch):
    file, text = tmp_path / "a.txt", SENTENCE * 9 + "Ä€"
    write_old(file, text.replace("; ", "\r\n"), 1000)
    text = text.replace("; ", "\n")
    assert streams_of(file) == expected_streams(text)
    assert len([*cached.iterdir()]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(character_files, "read_pieces", None)
        assert streams_of(file) == expected_streams(text)
        for other in (character_vocabulary("catÄ"), character_vocabulary(text), character_vocabulary(text)[:7]):
            assert streams_of(file, other) == expected_streams(text, other)
    for changed, seconds in ((text.replace("c", "C").replace("\n", "\r\n"), 1001), (text + "c", 1001)):
        write_old(file, changed, seconds)
        assert streams_of(file) == expected_streams(changed.replace("\r\n", "\n"))
    assert len([*cached.iterdir()]) == 2, "the old one is replaced"


def test_a_cache_that_is_cut_or_cannot_be_written_costs_only_time(cached, tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text(SENTENCE * 9)
    assert streams_of(file) == expected_streams(SENTENCE * 9)
    assert not cached.exists(), "a file of this second may change again without another time"
    write_old(file, SENTENCE * 9, 1000)
    streams_of(file)
    (indices,) = (path for path in cached.iterdir() if path.suffix == "")
    indices.write_bytes(indices.read_bytes()[:-2])
    assert streams_of(file) == expected_streams(SENTENCE * 9)
    for facts in ("null", "[]", "7", '"x"', '{"files": 1, "length": 2, "train": 5, "others": null}'):
        indices.with_suffix(".json").write_text(facts)
        assert streams_of(file) == expected_streams(SENTENCE * 9)
    monkeypatch.setenv("DLTRAIN_CACHE", str(file))
    assert streams_of(file) == expected_streams(SENTENCE * 9)


@pytest.mark.parametrize("raw", [b"one\r\ntwo\rthree\n\r\n\r", "caf\xe9 \u20ac\r\n\U0001f600".encode("utf-8-sig"),
                                 "caf\xe9\r\nx".encode("utf-16"), b"", b" \n\x0b", b"abc\0", b"one\ntw\xffo", None])
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_pieces_are_the_text_or_raise_its_error(raw, size, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "PIECE_CHARACTERS", size)
    if raw is not None:
        (tmp_path / "a.txt").write_bytes(raw)
    try:
        expected = read_text(tmp_path / "a.txt", "utf-8")
    except DataError as error:
        with pytest.raises(DataError, match=re.escape(str(error))):
            list(texts.read_pieces(tmp_path / "a.txt", "utf-8"))
    else:
        assert "".join(texts.read_pieces(tmp_path / "a.txt", "utf-8")) == expected


def test_encodings_and_the_byte_order_mark(tmp_path):
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbfabc\r\nd")
    assert read_text(tmp_path / "mark.txt") == "abc\nd"
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    assert read_text(tmp_path / "latin.txt", "latin-1") == "é"
    with pytest.raises(DataError, match=r"data\.encoding=klingon"):
        read_text(tmp_path / "latin.txt", "klingon")


def test_unknown_symbols_are_counted(read_cats):
    data = read_cats(SENTENCE * 9 + "ÄÖ")
    assert data.describe() == "414 train, 23 val, 24 test characters of 17 symbols"
    assert data.describe_contents() == ["characters that are not in the vocabulary: 2 of 24 in test (8.33%)"]
    batch = list(data.test_dataloader())[-1]
    assert (batch.targets == UNKNOWN).sum() == 2


def test_inputs_of_predict_become_a_batch_without_targets(read_cats):
    data = read_cats(SENTENCE * 9)
    batch = data.encode_inputs(["the c", "the €"])
    symbols = data.vocabularies["characters"]
    assert batch.tokens.tolist() == [[symbols.index(c) for c in "the c"],
                                     [*(symbols.index(c) for c in "the "), UNKNOWN]]
    assert (batch.targets == IGNORED_LABEL).all()


def whole_text(contents: str) -> str:
    splits = Stdlib(contents=contents, window=64, batch_size=32).texts()
    text = "".join(splits.values())
    assert [len(splits[split]) / len(text) for split in SPLITS] == pytest.approx([0.9, 0.05, 0.05], abs=1e-5)
    return text


def test_the_source_of_python_is_complete():
    modules = [file.read_text(encoding="utf-8-sig") for file in library_files()]
    text = whole_text("source")
    assert len(text) == sum(map(len, modules)) + len("\n\n") * (len(modules) - 1) > 1_000_000
    assert all(module in text for module in modules)


def test_the_topics_of_python_are_complete_and_have_no_paragraph_twice():
    paragraphs = whole_text("topics").split("\n\n")
    assert {*paragraphs} == {paragraph for topic in topics.values() for paragraph in topic.strip().split("\n\n")}
    long = [paragraph for paragraph in paragraphs if len(paragraph) > 40]
    assert len({*long}) > 0.99 * len(long) > 1000, "only a paragraph that its topic repeats comes again"


def test_shakespeare_is_checked_by_its_checksum(tmp_path, monkeypatch):
    (tmp_path / "shakespeare.txt").write_text(SENTENCE * 50)
    data = Shakespeare(root=str(tmp_path), download=False, window=5, batch_size=2)
    with pytest.raises(DataError, match=r"shakespeare.txt: 2,550 bytes with sha256 .*must be 86c4e6aa9db7"):
        data.texts()
    monkeypatch.setattr(text_files, "SHAKESPEARE_SHA256", hashlib.sha256((SENTENCE * 50).encode()).hexdigest())
    splits = data.texts()
    assert (splits["train"], splits["val"]) == ((SENTENCE * 50)[:2295], (SENTENCE * 50)[2295:])
    assert splits["test"] == splits["val"]
    with pytest.raises(DataError, match=r"put https://.*data=stdlib needs no download"):
        Shakespeare(root=str(tmp_path / "no"), download=False, window=5, batch_size=2).texts()


def shared_streams(root, rank, world_size, batch_size):
    data = files_at(str(root))
    data.rank, data.world_size, data.batch_size = rank, world_size, batch_size
    data.load()
    return data


def test_processes_share_the_streams_of_one(tmp_path):
    """Those of training and of a held-out split; here that has fewer streams than there are processes."""
    (tmp_path / "a.txt").write_text(SENTENCE * 90)
    alone, shares = shared_streams(tmp_path, 0, 1, 6), [shared_streams(tmp_path, rank, 3, 2) for rank in range(3)]
    for batch, *own in zip(alone.train_dataloader(), *(data.train_dataloader() for data in shares), strict=True):
        assert torch.equal(torch.stack([one.tokens for one in own], 1).flatten(0, 1), batch.tokens)
        assert torch.equal(torch.stack([one.targets for one in own], 1).flatten(0, 1), batch.targets)
    streams = len(alone.tokens["val"])
    assert streams < 3
    for batch, *own in zip(alone.val_dataloader(), *(data.val_dataloader() for data in shares), strict=True):
        scored = torch.cat([one.targets[one.targets != IGNORED_LABEL] for one in own])
        assert len(scored) == (batch.targets != IGNORED_LABEL).sum()
        assert all((one.targets == IGNORED_LABEL).all() for one in own[streams:])
    shares[0].as_one = False
    with pytest.raises(DataError, match=r"trainer.as_one=false: a text needs true"):
        shares[0].load()


def test_a_batch_that_breaks_its_promise_is_refused():
    with pytest.raises(BatchError, match=r"targets must be int64 in \[0, 5\), but the first batch has 5"):
        TokenBatch(torch.zeros(2, 3).long(), torch.full((2, 3), 5)).check(5)


@pytest.mark.parametrize(("encoding", "key"), [("utf-8-sig", None), ("utf-8", "UTF8"), ("utf-8-sig", "utf8"),
                                               ("utf-16", None), ("utf-16", "latin-1"), ("latin-1", "ISO_8859-1"),
                                               ("cp1252", "windows-1252")])
def test_texts_of_any_spelling_of_an_encoding_and_any_line_end(encoding, key, tmp_path):
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "a.txt").write_bytes(f"caf\xe9{end}na\xefve{end}".encode(encoding))
        assert read_text(tmp_path / "a.txt", key) == "caf\xe9\nna\xefve\n"


def test_an_encoding_that_is_none_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"data.encoding=utf-9: Python knows no such encoding"):
        read_text(tmp_path / "a.txt", "utf-9")
