"""A save is whole or absent; a load is verified and never runs code."""

import os
import pickle
import resource
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch

from dltrain import checkpoints
from dltrain.errors import CheckpointError, MachineError


def test_round_trip_and_predecessor(tmp_path):
    for value in (1.0, 2.0):
        checkpoints.save({"x": torch.full((3,), value)}, tmp_path / checkpoints.LAST)
    assert torch.equal(checkpoints.load(tmp_path / checkpoints.LAST)["x"], torch.full((3,), 2.0))
    assert torch.equal(checkpoints.load(tmp_path / checkpoints.PREVIOUS)["x"], torch.full((3,), 1.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoints.LAST, checkpoints.PREVIOUS]


def test_every_flipped_byte_of_a_tensor_is_caught(tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoints.save({"x": torch.randn(500)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
    begin = whole.index(torch.load(path)["x"].numpy().tobytes())
    for offset in range(begin, begin + entry.file_size, 97):
        spoiled = bytearray(whole)
        spoiled[offset] ^= 4
        path.write_bytes(bytes(spoiled))
        with pytest.raises(CheckpointError, match=r"a.ckpt: damaged \(checksum"):
            checkpoints.load(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04" + b"\0" * 50])
def test_what_is_no_checkpoint_is_said(content, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        checkpoints.load(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoints.load(tmp_path / "b.ckpt")


class Payload:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"x": Payload(canary)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="more than tensors and plain values"):
        checkpoints.load(tmp_path / "a.ckpt")
    assert not canary.exists()
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.exists(), "the payload must be able to run, or this test shows nothing"


def test_newest_falls_back_and_clears_up(tmp_path):
    for value in (1.0, 2.0):
        checkpoints.save({"x": torch.full((3,), value)}, tmp_path / checkpoints.LAST)
    (tmp_path / f".{checkpoints.LAST}.123.tmp").write_bytes(b"half")
    assert checkpoints.find_newest(tmp_path) == (tmp_path / checkpoints.LAST, "")
    assert not list(tmp_path.glob("*.tmp"))
    os.truncate(tmp_path / checkpoints.LAST, 100)
    path, note = checkpoints.find_newest(tmp_path)
    assert path == tmp_path / checkpoints.PREVIOUS
    assert "last.ckpt is damaged" in note
    os.truncate(tmp_path / checkpoints.PREVIOUS, 0)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        checkpoints.find_newest(tmp_path)
    assert checkpoints.find_newest(tmp_path / "empty") == (None, "")


def test_full_disk_keeps_the_old_file_and_says_so(tmp_path):
    path = tmp_path / checkpoints.LAST
    checkpoints.save({"x": torch.zeros(3)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(MachineError, match=r"cannot save .*last.ckpt: .*previous checkpoint is kept"):
            checkpoints.save({"x": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert torch.equal(checkpoints.load(path)["x"], torch.zeros(3))
    assert [p.name for p in tmp_path.iterdir()] == [checkpoints.LAST]


def test_killed_during_a_save_there_is_always_a_whole_file(tmp_path):
    """Ten kills spread over the time that a save takes; a fork, so that the save begins at once."""
    path = tmp_path / checkpoints.LAST
    big = {"x": torch.arange(4_000_000, dtype=torch.float32)}
    began = time.monotonic()
    checkpoints.save(big, path)
    takes = time.monotonic() - began
    for number in range(10):
        child = os.fork()
        if child == 0:
            checkpoints.save(big, path)
            os._exit(0)
        time.sleep(takes * (0.1 + 0.1 * number))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found, _ = checkpoints.find_newest(tmp_path)
        assert found is not None
        assert torch.equal(checkpoints.load(found)["x"], big["x"])
