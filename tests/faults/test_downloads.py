"""Row 37: files that are downloaded. dltrain unpacks no archive: torchvision does so, after comparing the checksum."""

import hashlib
import http.server
import pickle
import threading
from pathlib import Path

import pytest

from dltrain.data import download, text_files
from dltrain.data.text_files import Shakespeare
from dltrain.data.torchvision_sets import TorchvisionImages
from dltrain.errors import DataError


class LocalServer(http.server.HTTPServer):
    """Serves `content`; closes the connection after half of it for the first `num_cut` requests."""

    content = ("the cat sat on the mat and the rat sat on the cat; " * 2000).encode()[:100_000]
    num_cut = num_requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: LocalServer

    def do_GET(self):
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.server.num_requests += 1
        is_cut = self.server.num_requests <= self.server.num_cut
        self.wfile.write(content[: len(content) // 2] if is_cut else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with LocalServer(("127.0.0.1", 0), Handler) as local:
        thread = threading.Thread(target=local.serve_forever, args=(0.01,))
        thread.start()
        yield local
        local.shutdown()
        thread.join()


@pytest.fixture
def download_shakespeare(server, monkeypatch, tmp_path):
    """download_shakespeare() -> the texts of the data set, downloaded from the local server."""
    monkeypatch.setattr(text_files, "SHAKESPEARE", f"http://127.0.0.1:{server.server_port}/shakespeare.txt")
    monkeypatch.setattr(text_files, "SHAKESPEARE_BYTES", len(server.content))
    monkeypatch.setattr(text_files, "SHAKESPEARE_SHA256", hashlib.sha256(server.content).hexdigest())
    return Shakespeare(root=str(tmp_path / "to"), download=True, window=5, batch_size=2).texts


def row_37(server, texts, folder: Path, out) -> None:
    server.num_cut = 2
    assert {split: len(text) for split, text in texts().items()} == {"train": 90_000, "val": 10_000, "test": 10_000}
    lines = out().splitlines()
    assert lines[0] == f"downloading {folder}/shakespeare.txt"
    assert [line.partition("txt: ")[2] for line in lines[1:]] == [
        "incomplete (50000 of 100000 bytes), retry 2/3", "incomplete (50000 of 100000 bytes), retry 3/3"]
    assert [file.name for file in folder.iterdir()] == ["shakespeare.txt"]
    texts()
    assert server.num_requests == 3, "a file that is there is not downloaded again"


def test_row_37_an_interrupted_download_is_tried_three_times(server, download_shakespeare, tmp_path, capsys):
    """A download that is cut short is counted and tried three times; half a file never takes the place of the whole."""
    row_37(server, download_shakespeare, tmp_path / "to", lambda: capsys.readouterr().out)


def test_row_37_control(server, download_shakespeare, tmp_path, capsys, monkeypatch):
    def unguarded(url: str, file: Path, size: int, sha256: str) -> None:
        file.write_bytes(server.content[:50_000])  # what a reader of half the answer gets

    monkeypatch.setattr(download, "try_download", unguarded)
    with pytest.raises((AssertionError, DataError)):
        row_37(server, download_shakespeare, tmp_path / "to", lambda: capsys.readouterr().out)


def test_row_37_b_a_failed_download_leaves_nothing(server, download_shakespeare, tmp_path, monkeypatch):
    """A download that fails, or has another checksum, leaves no file and says where to get it by hand."""
    server.num_cut = 9
    with pytest.raises(DataError, match=r"cannot be downloaded \(incomplete \(50000 of 100000 bytes\)\): put http"):
        download_shakespeare()
    server.num_cut, server.content = 0, server.content[::-1]
    with pytest.raises(DataError, match=r"cannot be downloaded \(100,000 bytes with sha256 .*, must be"):
        download_shakespeare()
    monkeypatch.setattr(text_files, "SHAKESPEARE", "http://127.0.0.1:9/nothing")
    with pytest.raises(DataError, match=r"cannot be downloaded .*refused.*: put http.*data=stdlib needs no download"):
        download_shakespeare()
    assert list((tmp_path / "to").iterdir()) == []


class Payload:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def test_row_38_code_in_a_data_file_is_not_run(tmp_path):
    """CIFAR's files are pickles: one with another checksum is never opened."""
    folder, canary = tmp_path / "cifar-10-batches-py", tmp_path / "canary"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
    data = TorchvisionImages(source="CIFAR10", root=str(tmp_path), channels=3, num_classes=10, image_px=32,
                             batch_size=8, num_val=10, download=False)
    with pytest.raises(DataError, match="CIFAR10 is not in"):
        data.load()
    assert not canary.exists()
    pickle.loads((folder / "test_batch").read_bytes())
    assert canary.exists(), "the payload must be able to run, else this test proves nothing"
