"""A run knows the samples of its splits: files that change between training and evaluation, or before it is resumed,
are noticed, above all because one more photo holds out other ones."""

import json
import shutil
from pathlib import Path

import pytest

from tests.command_line import run_command
from tests.test_leaks import load, sizes
from tests.test_left_out import classes, picture

TRAIN = ("name=a", "model=resnet20", "data=image_folder", "data.root=photos", "data.image_px=8", "data.batch_size=4",
         "trainer=smoke", "trainer.accelerator=cpu")


def test_a_run_notices_other_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    classes(Path("photos"), 20)

    def dltrain(*words: str) -> tuple[int, str, str]:
        return run_command(monkeypatch, capsys, *words)

    assert dltrain(*TRAIN)[0] == 0
    kept = json.loads(Path("outputs/a/splits.json").read_text())
    assert {split: kept[split]["samples"] for split in SPLITS} == {"train": 32, "val": 4, "test": 4}
    shutil.copytree("photos", "moved")
    code, out, _ = dltrain("eval", "run=outputs/a", "data.root=moved")
    assert (code, "warning" in out) == (0, False), "the same photos in another place"
    picture(Path("photos/cat/20.png"), 99)  # of 21 cats two others are held out for the test
    code, out, _ = dltrain("eval", "run=outputs/a")
    assert code == 0
    assert ("warning: the test split has other samples than when outputs/a began (4 then, 4 now); the run may have "
            "trained on some\n") in out
    Path("outputs/a/result.json").unlink()
    for words in (TRAIN, ("resume", "run=outputs/a")):
        code, _, err = dltrain(*words)
        assert code == 3
        assert "the train split has other samples than when outputs/a began (32 then, 33 now)" in err
        assert err.endswith("restore the files, or choose another name=\n")
    Path("photos/cat/20.png").unlink()
    assert dltrain("resume", "run=outputs/a")[0] == 0
    assert json.loads(Path("outputs/a/splits.json").read_text()) == kept


@pytest.mark.parametrize(("model", "data", "line"), [
    ("seq_classifier", "labelled_text", "{label}\tday {number}\n"),
    ("seq2seq", "pairs", "day {number}\tTag {number}\n"),
    ("tagger", "conll", "1\tday\tx\tA\n2\t{number}\tx\tB\n\n"), ("char_rnn", "text", "some day {number} in a year\n")])
def test_texts_have_fingerprints(model, data, line, tmp_path):
    lines = [line.format(number=number, label="ab"[number % 2]) for number in range(400)]
    file = tmp_path / "train.txt"
    words = ("data.batch_size=4",)

    def read(change: int | None = None):
        file.write_text("".join(text if number != change else text.replace(str(number), "789")
                                for number, text in enumerate(lines)))
        return load(model, data, file if data in ("labelled_text", "text") else tmp_path, *words)

    first, same, other = read(), read(), read(change=200)
    assert {*first.fingerprints} == {"train", "val", "test"}
    assert first.fingerprints == same.fingerprints
    assert sizes(first) == sizes(other)
    differ = [split for split in first.fingerprints if first.fingerprints[split] != other.fingerprints[split]]
    assert len(differ) == 1
