"""`dltrain clean` lists what runs no longer need, deletes it when asked to, and nothing else."""

import json
import os
from pathlib import Path

import pytest

from dltrain.data.cache import checksum_of, stamp_of
from dltrain.run_lock import locked
from tests.conftest import TINY
from tests.test_resume import crash

CONFIG = "version: 0.2.0\nchoices:\n  model: plain20\n"


def make(folder: str, *files: str) -> Path:
    """A run folder with a config.yaml and these files, of 1,000 bytes."""
    path = Path("outputs", folder)
    path.mkdir(parents=True, exist_ok=True)
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("x" * 1000)
    (path / "config.yaml").write_text(CONFIG)
    return path


def everything() -> set[str]:
    return {os.path.join(folder, name) for folder, folders, files in os.walk(".") for name in (*folders, *files)
            if name != ".lock"}


@pytest.fixture
def outputs(dltrain, tmp_path, monkeypatch) -> None:
    """One run of each kind, below outputs of the current folder."""
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    checkpoints = [f"checkpoints/{name}.ckpt" for name in ("best", "last", "previous")]
    make("done", "result.json", *checkpoints, ".config.yaml.tmp", "checkpoints/.last.ckpt.12.tmp", "notes.md")
    make("unfinished", *checkpoints, "error.txt")
    make("failed", "error.txt", "log.txt")
    make("killed", "events.out.tfevents.1.host.2.0", "checkpoints/.last.ckpt.12.tmp")
    make("with_notes", "error.txt", "notes.md")
    make("sweep/0-live", "error.txt", "overrides.txt")
    make("ended/0-failed", "error.txt", "overrides.txt")
    Path("outputs/ended/results.csv").touch()
    Path("outputs/a-on-b/2026-01-02_03-04-05").mkdir(parents=True)
    Path("outputs/mine").mkdir()
    make("foreign", "error.txt", ".probe").joinpath("config.yaml").write_text("choices: of another program\n")


GONE = ["done/.config.yaml.tmp", "done/checkpoints/.last.ckpt.12.tmp", "done/checkpoints/previous.ckpt",
        "ended/0-failed", "failed", "killed", "a-on-b/2026-01-02_03-04-05"]


@pytest.mark.usefixtures("outputs")
def test_clean_lists_first_and_deletes_what_it_listed(dltrain):
    before = everything()
    code, listed, err = dltrain("clean")
    assert (code, err) == (0, "")
    assert everything() == before
    rows = {line.split()[1] for line in listed.splitlines() if line.startswith("  ") and "outputs" in line}
    assert rows == {f"outputs/{name}" for name in GONE}
    # previous and two temporary files; ended: 2 files, failed: 2, killed: 2; and the config.yaml of three
    size = (9000 + 3 * len(CONFIG)) / 1e6
    assert f"7 items, {size:.1f} MB; nothing is deleted yet: dltrain clean apply=true does it\n" in listed
    assert "left alone: outputs/with_notes: no checkpoint, but it has notes.md" in listed
    assert "left alone: outputs/sweep/0-live: a job of a sweep that has not ended" in listed
    assert "deleted: 7 items" in dltrain("clean", "apply=true")[1]
    deleted = {name for name in before if any(name.startswith(f"./outputs/{gone}") for gone in GONE)}
    assert before - everything() == deleted | {"./outputs/a-on-b"}
    assert "nothing to delete below outputs" in dltrain("clean", "apply=true")[1]


@pytest.mark.usefixtures("outputs")
def test_clean_of_some_kinds(dltrain):
    before = everything()
    dltrain("clean", "what=last,temporary", "apply=true")
    assert before - everything() == {f"./outputs/done/{name}" for name in (
        "checkpoints/last.ckpt", ".config.yaml.tmp", "checkpoints/.last.ckpt.12.tmp")}


@pytest.mark.parametrize("other", [None, "replay/step_2/notes.txt", "replay/mine.png", "replay/step_2/more/a.png"])
def test_clean_deletes_a_run_that_diverged_with_its_replay_alone(dltrain, other):
    files = ["error.txt", "replay/step_2/layers.csv", "replay/step_2/layers.png"]
    folder = make("diverged", *files, *filter(None, [other]))
    out = dltrain("clean", "apply=true", "what=failed")[1]
    assert folder.is_dir() is (other is not None), out


@pytest.mark.usefixtures("outputs")
def test_clean_leaves_a_live_run_and_all_below_it_alone(dltrain, monkeypatch):
    make("failed/inner", "error.txt")
    before = everything()
    with locked(Path("outputs/failed")):
        out = dltrain("clean", "what=failed", "apply=true")[1]
    assert f"left alone: outputs/failed: in use by process {os.getpid()} on " in out
    assert before - everything() == {f"./outputs/ended/0-failed{name}" for name in (
        "", "/config.yaml", "/error.txt", "/overrides.txt")}
    monkeypatch.setattr("dltrain.run_lock.owner_of", lambda folder: "")  # it starts after the list was made
    with locked(Path("outputs/killed")):
        out = dltrain("clean", "what=empty", "apply=true")[1]
    assert "left alone: outputs/killed is in use by process" in out
    assert Path("outputs/killed/config.yaml").is_file()


@pytest.mark.usefixtures("outputs")
def test_clean_follows_no_link(dltrain, tmp_path):
    elsewhere = make("failed", "error.txt").rename(tmp_path / "elsewhere")
    Path("outputs/link").symlink_to(elsewhere)
    linked_file = make("linked_file")
    (linked_file / "error.txt").symlink_to(elsewhere / "error.txt")
    linked_saves = make("linked_saves", "result.json")
    (linked_saves / "checkpoints").symlink_to(tmp_path / "outputs/done/checkpoints")
    dltrain("clean", "what=failed,empty,last", "apply=true")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["config.yaml", "error.txt", "log.txt"]
    assert {"config.yaml", "error.txt"} <= {path.name for path in linked_file.iterdir()}
    assert Path("outputs/link").is_symlink()
    assert (linked_saves / "checkpoints").is_symlink()


def test_clean_knows_every_file_of_a_run_before_its_first_checkpoint(dltrain, monkeypatch):
    Path("outputs").mkdir()
    crash(monkeypatch, Path("outputs/a"), "on_train_batch_end", 1)
    assert not list(Path("outputs/a/checkpoints").glob("*.ckpt"))
    code, out, _ = dltrain("clean", "apply=true")
    assert code == 0
    assert "deleted: 1 item" in out
    assert list(Path("outputs").iterdir()) == []


@pytest.mark.usefixtures("without_figures")
def test_a_finished_run_is_of_full_use_after_clean(dltrain):
    dltrain("name=a", *TINY, "trainer.max_epochs=2")
    assert "outputs/a/checkpoints/previous.ckpt" in dltrain("clean", "apply=true")[1]
    assert sorted(path.name for path in Path("outputs/a/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert dltrain("eval", "run=outputs/a", "checkpoint=last")[0] == 0
    assert "finished" in dltrain("name=a", *TINY, "trainer.max_epochs=2")[1]


@pytest.mark.usefixtures("outputs")
def test_clean_of_the_cache(dltrain, tmp_path):
    text, gone = tmp_path / "text.txt", str(tmp_path / "gone.txt")
    text.write_text("abc")
    stamp = [str(text), *stamp_of(text)]
    name = "0123456789abcde"
    files = {
        f"texts/{name}0": "", f"texts/{name}0.json": json.dumps({"files": [stamp]}),
        f"texts/{name}1": "", f"texts/{name}1.json": json.dumps({"files": [[str(text), 4, 5]]}),
        f"texts/{name}2": "", f"texts/{name}2.json": json.dumps({"files": [[gone, 4, 5]]}),
        f"texts/{name}3.{os.getpid()}": "", f"texts/{name}4.4194305": "",  # beyond the largest number of a process
        f"photos/{name}0.json": json.dumps({gone: [], str(text): []}), f"photos/{name}1.json": json.dumps({gone: []}),
        f"decoded/{name}0.json": "{}", f"models/{name}0.json": '"table"', "texts/mine.txt": ""}
    for file, content in files.items():
        (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
        raw = content.encode()
        (tmp_path / "cache" / file).write_bytes(checksum_of(raw) + b"\n" + raw if file.endswith(".json") else raw)
    (tmp_path / f"cache/texts/{name}5.json").write_text("{}")  # without a checksum, as earlier versions wrote it
    files[f"texts/{name}5.json"] = ""
    dltrain("clean", "apply=true")
    assert {str(file.relative_to(tmp_path / "cache")) for file in (tmp_path / "cache").glob("*/*")} == {*files}
    dltrain("clean", "what=cache", "apply=true")
    left = {str(file.relative_to(tmp_path / "cache")) for file in (tmp_path / "cache").glob("*/*")}
    assert {*files} - left == {f"texts/{name}1", f"texts/{name}1.json", f"texts/{name}2", f"texts/{name}2.json",
                               f"texts/{name}4.4194305", f"texts/{name}5.json", f"photos/{name}1.json",
                               f"decoded/{name}0.json"}


@pytest.mark.parametrize(("words", "message"), [
    (["what=fail"], "what=fail: unknown kind 'fail'; did you mean 'failed'?"),
    (["aply=true"], "clean: unknown key 'aply'; did you mean 'apply'?"),
    (["apply=yes please"], "apply=yes please: must be true or false"),
    (["nowhere"], "clean takes one folder of runs, but nowhere is not one"),
    (["a", "b"], "clean takes one folder of runs, but a b is not one")])
def test_clean_refuses_other_words(words, message, dltrain):
    code, _, err = dltrain("clean", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
