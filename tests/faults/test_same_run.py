"""Rows 1, 2, 3, 8, 9 and 16 of the faults: the same command, and `resume`, continue the same run on the same data, or
say why not."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain import build, same_config, same_data, stored_files
from dltrain.batches import ClassificationBatch
from dltrain.callbacks.step_seeds import StepSeeds
from dltrain.config.compose import compose
from dltrain.config.free_keys import DERIVED, FREE
from dltrain.data.datamodule import SPLITS, DataModule
from dltrain.data.decodable import inspect_photos
from dltrain.data.loader import TrainLoader
from dltrain.errors import DataError
from dltrain.run_dir import RunDir
from dltrain.same_data import Record
from dltrain.tasks.classification import Classification
from tests import test_own_splits as own
from tests.conftest import TINY
from tests.test_resume import (
    STEPS,
    Reference,
    assert_equal_tree,
    assert_same,
    crash_and_resume,
    crash_at,
    load_last,
    read_metrics,
    reference,
    train,
)
from tests.tiny import FewDigits

__all__ = ["reference"]

pytestmark = pytest.mark.usefixtures("without_figures")

Dltrain = Callable[..., tuple[int, str, str]]

COLOURS = ("blue", "green", "red")
PHOTOS = ("model=resnet20", "model.depth=8", "recipe=none", "data=image_folder", "data.root=photos", "data.image_px=8",
          "data.batch_size=8", "data.num_workers=0", "trainer=cpu", "trainer.max_epochs=1",
          "trainer.checkpoint_every_steps=1")
MIXUP = ("augment.on_normalized=[{_target_: dltrain.augment.mixing.Mixup, alpha: 0.2, "
         "num_classes: \"${data.num_classes}\"}]")


def paint(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/<colour>/0.png to 9.png below the current folder of the command: 24 to train on, 3 and 3 held out."""
    for label, colour in enumerate(COLOURS):
        for number in range(10):
            paint(tmp_path / f"photos/{colour}/{number}.png", 100 * label + number)
    return tmp_path / "photos"


def crash_after(step: int, dltrain: Dltrain, *words: str) -> None:
    """The command, killed after a step; what it is killed by is no error of dltrain's."""
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == step)
        dltrain(*words)


# row 1: killed at any step


def row_01(monkeypatch, path: Path, reference: Reference, step: int) -> None:
    assert crash_and_resume(monkeypatch, path, "on_train_batch_end", [step]) == reference.batches
    assert_same(path, reference.path)


@pytest.mark.parametrize("step", [1, 3, 5])  # the first, the last of an epoch, one between; the last: row_02_b
def test_row_01_killed_after_any_step(step, monkeypatch, tmp_path, reference):
    """A run that is killed after any step ends, when it is continued, in the same bits, and sees each sample once an
    epoch."""
    row_01(monkeypatch, tmp_path / "killed", reference, step)


def test_row_01_control_without_step_seeds(monkeypatch, tmp_path):
    monkeypatch.setattr(StepSeeds, "on_train_batch_start", lambda *_: None)
    torch.manual_seed(0)
    FewDigits.history.clear()
    train(tmp_path / "straight")
    straight = Reference(tmp_path / "straight", list(FewDigits.history), {})
    with pytest.raises(AssertionError, match="weights"):
        row_01(monkeypatch, tmp_path / "killed", straight, 4)


def test_row_01_control_without_position(monkeypatch, tmp_path, reference):
    monkeypatch.setattr(TrainLoader, "load_state_dict", lambda *_: None)
    monkeypatch.setattr(FewDigits, "load_state_dict", lambda *_: None)
    with pytest.raises(AssertionError):
        row_01(monkeypatch, tmp_path / "killed", reference, 4)
    with pytest.raises(AssertionError, match="weights"):
        assert_same(tmp_path / "killed", reference.path)


def row_01_b(dltrain: Dltrain, *words: str) -> None:
    assert dltrain("name=straight", *words)[0] == 0
    crash_after(2, dltrain, "name=killed", *words)
    code, out, err = dltrain("name=killed", *words)
    assert (code, err) == (0, "")
    assert "resuming outputs/killed from step 2 of 3" in out
    assert_same(Path("outputs/killed"), Path("outputs/straight"))


def test_row_01_b_the_same_command_continues_where_only_the_files_know_the_classes(dltrain, photos):
    """A run with Mixup on a photo folder is continued by the same command, to the same bits."""
    row_01_b(dltrain, *PHOTOS, MIXUP)


def test_row_01_b_control(dltrain, photos, monkeypatch):
    monkeypatch.setattr(same_config, "READ_FROM_FILES", ())
    monkeypatch.setattr("dltrain.run_dir.RunDir.read_splits", lambda _: {})
    with pytest.raises(AssertionError):
        row_01_b(dltrain, *PHOTOS, MIXUP)


def row_01_c(dltrain: Dltrain) -> str:
    """A sweep of one job, which is killed after a step, and the same command again: its output."""
    words = ("-m", "name=s", "seed=3", *PHOTOS, MIXUP)
    crash_after(2, dltrain, *words)
    code, out, err = dltrain(*words)
    assert (code, err) == (0, "")
    return out


def test_row_01_c_a_sweep_continues_the_job_that_was_killed(dltrain, photos):
    """The same sweep again continues the job that was killed, with Mixup on a photo folder too."""
    out = row_01_c(dltrain)
    assert re.search(r"resuming outputs/s/resnet20-on-image_folder-\w{8} from step 2 of 3", out)
    assert "1 of 1 jobs done" in out


# row 2: killed on the last batch of an epoch, and many times


def row_02(monkeypatch, path: Path, reference: Reference, hook: str, steps: list[int]) -> None:
    assert crash_and_resume(monkeypatch, path, hook, steps) == reference.batches
    assert_same(path, reference.path)
    assert read_metrics(path)[-1] == read_metrics(reference.path)[-1]


def test_row_02_killed_in_every_validation(monkeypatch, tmp_path, reference):
    """A run that is killed in the validation of every epoch repeats the validation and skips no epoch."""
    row_02(monkeypatch, tmp_path / "killed", reference, "on_validation_batch_end", [3, 6, 9])
    assert read_metrics(tmp_path / "killed") == read_metrics(reference.path)


@pytest.mark.slow
def test_row_02_b_killed_after_many_steps(monkeypatch, tmp_path, reference):
    """A run that is killed after one step after the other, and after its last one, ends in the same bits."""
    row_02(monkeypatch, tmp_path / "killed", reference, "on_train_batch_end", [1, 2, 3, 4, 6, STEPS])


def test_row_02_control(monkeypatch, tmp_path, reference):
    """Lightning's own counters, saved at the last batch of several epochs, count the epochs wrongly."""
    monkeypatch.setattr("dltrain.callbacks.checkpointing.set_loop_counters", lambda *_: None)
    with pytest.raises(AssertionError):
        row_02(monkeypatch, tmp_path / "killed", reference, "on_validation_batch_end", [3, 6, 9])


# row 3: another number of workers, another batch size, other devices


def row_03(dltrain: Dltrain) -> None:
    crash_after(2, dltrain, "name=a", *PHOTOS, MIXUP)
    for key in ("data.batch_size", "trainer.devices", "trainer.accumulate_batches"):
        for words in (("name=a", *PHOTOS, MIXUP, f"{key}=2"), ("resume", "run=outputs/a", f"{key}=2")):
            code, _, err = dltrain(*words)
            assert (code, key in err) == (2, True), err
    code, out, _ = dltrain("name=a", *PHOTOS, MIXUP, "data.num_workers=2")
    assert code == 0
    assert "with other values from here on: data.num_workers=2 (0 before)" in out


def test_row_03_another_batch_size_is_refused_and_other_workers_change_no_bit(dltrain, photos):
    """A killed run continues with another data.num_workers in the same bits; another batch size, number of devices or
    of accumulated batches is refused by its key."""
    assert dltrain("name=straight", *PHOTOS, MIXUP)[0] == 0
    row_03(dltrain)
    assert_same(Path("outputs/a"), Path("outputs/straight"))


def test_row_03_control(dltrain, photos, monkeypatch):
    monkeypatch.setattr(same_config, "FREE", {*same_config.FREE, "data.batch_size"})
    with pytest.raises(AssertionError):
        row_03(dltrain)


# row 8: nothing to continue


def row_08(dltrain: Dltrain) -> None:
    for name in ("first", "second"):
        assert dltrain(f"name={name}", *TINY, "trainer.max_epochs=1")[0] == 0
    code, _, err = dltrain("resume", "run=outputs/frist")
    assert code == 2
    assert "outputs/frist: not a run folder (it has no config.yaml); did you mean 'outputs/first'?; there are: " in err
    assert "outputs/second" in err
    code, out, _ = dltrain("resume", "run=outputs/first")
    assert (code, out.splitlines()[-1]) == (0, (
        "outputs/first is finished after 3 steps, nothing to do; dltrain extend run=outputs/first epochs= trains "
        "longer, another name= with model.pretrained.from_run=outputs/first begins anew with its weights"))
    code, _, err = dltrain("name=first", *TINY, "trainer.max_epochs=5")
    assert (code, "trainer.max_epochs (1, now 5); outputs/first is finished after 3 steps" in err) == (2, True)


def test_row_08_what_cannot_be_continued_says_what_there_is(dltrain):
    """`resume` of a folder that is no run names those that are; a finished run is not changed and says how to train
    longer."""
    row_08(dltrain)


def test_row_08_control(dltrain, monkeypatch):
    monkeypatch.setattr("dltrain.stored_files.name_others", lambda _: "")
    with pytest.raises(AssertionError, match="not a run folder"):
        row_08(dltrain)


def test_row_08_b_a_run_that_was_killed_before_its_first_save_begins_anew(dltrain):
    """A run that was killed before its first save says so and begins anew."""
    crash_after(1, dltrain, "name=a", *TINY)
    assert not (Path("outputs/a/checkpoints/last.ckpt")).exists()
    code, out, err = dltrain("resume", "run=outputs/a")
    assert (code, err) == (0, "")
    assert "outputs/a has no checkpoint yet: it begins anew\n" in out


# row 9: another config


def row_09(dltrain: Dltrain) -> None:
    crash_after(1, dltrain, "name=a", *TINY, "trainer.checkpoint_every_steps=1")
    before = load_last(Path("outputs/a"))
    others = {"task.optimizer.lr=0.1": "task.optimizer.lr (0.05, now 0.1)",
              "task.optimizer.name=adam": "task.optimizer.name (sgd, now adam)",
              "model.depth=14": "model.depth (8, now 14)"}
    for word, message in others.items():
        code, _, err = dltrain("name=a", *TINY, "trainer.checkpoint_every_steps=1", word)
        assert (code, message in err) == (2, True), err
        code, _, err = dltrain("resume", "run=outputs/a", word)
        assert (code, f"{word.partition('=')[0]} cannot change in a run that has started" in err) == (2, True), err
    assert_equal_tree(load_last(Path("outputs/a")), before, "checkpoint")
    code, out, _ = dltrain("name=a", *TINY, "trainer.checkpoint_every_steps=2")
    assert (code, "with other values from here on: trainer.checkpoint_every_steps=2 (1 before)" in out) == (0, True)


def test_row_09_another_config_is_refused_by_its_keys(dltrain):
    """A learning rate, an optimizer or a model that differs from that of the run is refused by its key, with both
    values; keys that change no weight take effect and are named."""
    row_09(dltrain)


def test_row_09_control(dltrain, monkeypatch):
    monkeypatch.setattr(same_config, "FREE", {*same_config.FREE, "task.optimizer.lr"})
    with pytest.raises(AssertionError):
        row_09(dltrain)


def row_09_h(dltrain: Dltrain) -> None:
    crash_after(4, dltrain, "name=a", *TINY)
    crash_after(5, dltrain, "resume", "run=outputs/a", "trainer.eval_batch_size=7", "trainer.requeue=true")
    config = RunDir(Path("outputs/a")).read_config()
    assert (config["trainer"]["eval_batch_size"], config["trainer"]["requeue"]) == (7, True)
    code, _, err = dltrain("eval", "run=outputs/a")  # the weights of epoch 1, saved under the earlier values
    assert code == 0, err


def test_row_09_h_the_best_weights_stay_usable_when_such_a_key_has_changed(dltrain):
    """Keys that change no weight may change between two saves: the weights saved before are evaluated as before."""
    row_09_h(dltrain)


def test_row_09_h_control(dltrain, monkeypatch):
    monkeypatch.setattr(stored_files, "FREE_OF_CHECKPOINT", stored_files.FREE_OF_CHECKPOINT - {"trainer.requeue"})
    with pytest.raises(AssertionError, match=r"trainer\.requeue"):
        row_09_h(dltrain)


def test_the_page_names_each_key_that_may_change():
    page = Path(__file__).parents[2].joinpath("docs/run_folder.md").read_text()
    assert [key for key in FREE - DERIVED - {"name", "output_dir"} if f"`{key}`" not in page] == []


# row 9 with other data


def row_09_b(dltrain: Dltrain) -> None:
    crash_after(1, dltrain, "name=a", *PHOTOS)
    before = Path("outputs/a/samples.tsv").read_text()
    shutil.copytree("photos", "moved")  # other times of change, another place, the same photos
    paint(Path("photos/red/99.png"), 99)
    Path("photos/red/1.png").rename("photos/blue/r1.png")
    for words in (("name=a", *PHOTOS), ("resume", "run=outputs/a")):
        code, _, err = dltrain(*words)
        assert code == 3
        assert "dltrain: error: the data have changed since outputs/a began: " in err
        for change in ("moved from train to test (", "moved from test to train (", "relabelled", "1 added to "):
            assert change in err, "one more photo holds out other ones"
        assert "outputs/a/changed_samples.tsv lists them; restore the files, choose another name=, or continue" in err
    assert Path("outputs/a/samples.tsv").read_text() == before
    code, out, _ = dltrain("resume", "run=outputs/a", "data.root=moved")
    assert (code, "resuming outputs/a from step 1 of 3" in out, "changed" in out) == (0, True, False)
    code, out, _ = dltrain("eval", "run=outputs/a", "data.root=photos")
    assert code == 0
    assert "warning: the test split has other samples than when outputs/a began: " in out
    assert "; the run was trained on " in out


def test_row_09_b_changed_data_are_refused_by_name(dltrain, photos):
    """A run whose photos, texts or labels have changed since it began is refused with what has changed; the same files
    in another place are not. `eval` says it, and how many of the samples the run was trained on."""
    row_09_b(dltrain)


def test_row_09_b_control(dltrain, photos, monkeypatch):
    monkeypatch.setattr(same_data, "changed_splits", lambda *_: [])
    with pytest.raises(AssertionError):
        row_09_b(dltrain)


def row_09_i(photo: Path) -> None:
    """Other pixels in a file of the same size, with the time of change set back."""
    photo.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(photo)
    before = inspect_photos([photo])[0][photo]
    times = photo.stat()
    Image.new("RGB", (8, 8), "red").save(photo)
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = inspect_photos([photo])[0][photo]
    assert after.bytes == before.bytes
    assert after.digest != before.digest


def test_row_09_i_a_photo_is_read_again_though_its_time_of_change_is_set_back(tmp_path):
    """A photo that is replaced by another one of the same size and time of change is not taken for the old one."""
    row_09_i(tmp_path / "photos/a.bmp")


def test_row_09_i_control(tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.data.decodable.stamp_of", lambda file: [
        os.stat(file).st_size, os.stat(file).st_mtime_ns])
    with pytest.raises(AssertionError):
        row_09_i(tmp_path / "photos/a.bmp")


def test_row_09_c_changed_data_are_accepted_by_a_word(dltrain, photos):
    """on_changed_data=accept continues with the data that are there, says so in the log, and is not stored."""
    crash_after(1, dltrain, "name=a", *PHOTOS)
    paint(Path("photos/red/99.png"), 99)
    code, out, err = dltrain("resume", "run=outputs/a", "on_changed_data=accept")
    assert (code, err) == (0, "")
    line = "the data have changed since outputs/a began: "
    assert line in out
    assert line in Path("outputs/a/log.txt").read_text()
    assert "on_changed_data" not in Path("outputs/a/config.yaml").read_text()
    assert "red/99.png" in Path("outputs/a/samples.tsv").read_text()
    code, _, err = dltrain("resume", "run=outputs/a", "on_changed_data=yes")
    assert (code, err) == (2, "dltrain: error: on_changed_data=yes: must be accept, or refuse, which is the default\n")


def test_row_09_c_accepted_texts_keep_the_vocabulary_of_the_run(dltrain):
    """A run that continues with another text keeps its vocabulary: what is new in the text is unknown to it."""
    words = ["name=a", *story(Path("data"), None), "data.root=data", "data.window=64", "model.hidden=8", "recipe=none",
             "trainer=cpu", "trainer.max_steps=3", "trainer.checkpoint_every_steps=1"]
    crash_after(1, dltrain, *words)
    replace("day 0", "day ä", "a.txt")(Path("data"))
    assert dltrain(*words)[0] == 3
    code, out, err = dltrain(*words, "on_changed_data=accept")
    assert (code, err) == (0, "")
    assert "resuming outputs/a from step 1 of 3" in out
    assert "ä" not in RunDir(Path("outputs/a")).read_vocabularies()["characters"]


def test_row_09_d_a_run_of_an_earlier_version_continues_and_gets_a_record(dltrain, photos):
    """A run of a version that kept no record of its data continues, says so, and gets one."""
    crash_after(1, dltrain, "name=a", *PHOTOS)
    before = Path("outputs/a/samples.tsv").read_text()
    Path("outputs/a/samples.tsv").unlink()
    Path("outputs/a/splits.json").write_text('{"train": {"samples": 24, "fingerprint": "ab"}}')
    code, out, err = dltrain("name=a", *PHOTOS)
    assert (code, err) == (0, "")
    assert "kept no digest of its data" in out
    assert Path("outputs/a/samples.tsv").read_text() == before


def load(words: list[str]) -> DataModule:
    return build.build_data(compose(words).job_config())


def replace(old: str, new: str, name: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return edit


def change_photos(root: Path) -> None:
    folder = root / "train/cat"
    paint(folder / "train00.png", 12345)
    (folder / "train02.png").rename(root / "train/dog/new.png")
    (folder / "train04.png").rename(root / "test/cat/train04.png")
    (folder / "train06.png").rename(folder / "zzz.png")
    (root / "val/cat/val00.png").unlink()
    paint(root / "val/dog/more.png", 54321)


def repaint_mask(root: Path) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "masks/train00.png")


def story(root: Path, _: object) -> list[str]:
    root.mkdir()
    for name in ("a.txt", "b.txt"):
        (root / name).write_text("".join(f"day {number} of {name}\n" for number in range(150)))
    return ["data=text", "model=char_rnn", "data.batch_size=4"]


# A family of people's own files, what is done to them, and what a run says of it.
CHANGES: list[tuple[Callable[..., list[str]], Callable[[Path], object], list[str]]] = [
    (own.image_folder, change_photos, [
        "1 moved from train to test (test/cat/train04.png)", "1 renamed in train (train/cat/zzz.png)",
        "1 relabelled in train (train/dog/new.png)", "1 changed in train (train/cat/train00.png)",
        "1 removed from val (val/cat/val00.png)", "1 added to val (val/dog/more.png)"]),
    (own.mask_folder, repaint_mask, ["1 relabelled in train (images/train00.png)"]),
    (own.voc_lists, replace("<xmin>2<", "<xmin>3<", "Annotations/train00.xml"),
     ["1 relabelled in train (JPEGImages/train00.png)"]),
    (own.coco_keys, replace("[2, 2, 18, 18]", "[2, 2, 18, 17]", "test.json"),
     ["1 relabelled in test (photos/test00.png)"]),
    (own.coco_captions, replace("a dog runs", "a dog sleeps", "val.json"), ["1 relabelled in val (photos/val00.png)"]),
    (own.flickr8k, replace("train01.png,a dog", "train01.png,the dog", "captions.txt"),
     ["1 relabelled in train (images/train01.png)"]),
    (own.labelled_text, replace("odd\tword train02", "even\tword train02", "train.tsv"),
     ["1 relabelled in train (word train02)"]),
    (own.conll, replace("TAG03", "TAG04", "val.conllu"), ["1 relabelled in val (val03)"]),
    (own.pairs, replace("train05 a", "train05 the", "train.tsv"),
     ["1 removed from train (train05 a), 1 added to train (train05 the)"]),
    (story, replace("day 149", "day 150", "b.txt"), [" began: the test split has other samples; restore"]),
    (story, lambda root: (root / "a.txt").rename(root / "c.txt"), ["1 renamed in files (c.txt)"]),
]


@pytest.mark.parametrize(("write", "change", "messages"), CHANGES, ids=lambda value: getattr(value, "__name__", None))
def test_row_09_e_each_kind_of_own_files_is_compared(write, change, messages, tmp_path):
    """Photos, boxes, masks, captions, texts, tags and translations: what has changed is named."""
    words = [*write(tmp_path / "data", {split: split for split in SPLITS}), f"data.root={tmp_path}/data"]
    run_dir, data = RunDir(tmp_path), load(words)
    Record.of(data).write(run_dir)
    assert same_data.settle(run_dir, Record.of(data), data) == ""
    change(tmp_path / "data")
    data = load(words)
    with pytest.raises(DataError) as caught:
        same_data.settle(run_dir, Record.of(data), data)
    assert [message for message in messages if message not in str(caught.value)] == [], str(caught.value)


class OwnData(FewDigits):
    """A data set of a user's, of which dltrain knows nothing, and which changes its samples by torch's random numbers,
    and by others where `is_random`."""

    is_random = False
    shift = 0

    def digest(self, split: str) -> str:
        return DataModule.digest(self, split)

    def read(self, split: str, batches: list[torch.Tensor]) -> Iterator[ClassificationBatch]:
        for batch in super().read(split, batches):
            noise = int(np.random.default_rng().integers(99)) if self.is_random else self.shift
            yield batch._replace(images=batch.images + torch.randint(2, batch.images.shape).byte() + noise)


def test_row_09_f_data_that_come_with_dltrain_or_a_users_own_class_are_compared(tmp_path, monkeypatch):
    """Data without files, and those of a user's own class, are compared by their tensors, if these are the same each
    time they are read."""
    for target in ("FewDigits", "OwnData"):
        words = [*TINY, f"data._target_=tests.faults.test_same_run.{target}"]
        run_dir, data = RunDir(tmp_path), cast(FewDigits, load(words))
        Record.of(data).write(run_dir)
        state = torch.get_rng_state()
        assert same_data.settle(run_dir, Record.of(data), data) == ""
        assert torch.equal(torch.get_rng_state(), state)
        if target == "OwnData":
            monkeypatch.setattr(OwnData, "shift", 1)
        else:
            data.splits["test"].labels[7] += 1
        with pytest.raises(DataError, match=r"the (test|train) split has other samples"):
            same_data.settle(run_dir, Record.of(data), data)
    monkeypatch.setattr(OwnData, "is_random", True)
    assert same_data.settle(run_dir, Record.of(data), data) == ""


def test_row_09_g_weights_of_a_run_are_not_measured_on_what_it_was_trained_on_in_silence(dltrain, photos):
    """A run that starts with the weights of another one warns where its test samples are training samples of that."""
    words = [word for word in PHOTOS if word != "trainer.checkpoint_every_steps=1"]
    assert dltrain("name=a", *words)[0] == 0
    for split, numbers in (("train", range(5)), ("val", (5, 6)), ("test", (7, 8, 9))):
        for colour in COLOURS:
            for number in numbers:
                (folder := Path(f"other/{split}/{colour}")).mkdir(parents=True, exist_ok=True)
                shutil.copy(f"photos/{colour}/{number}.png", folder)
    code, out, _ = dltrain("name=b", *words, "data.root=other", "model.pretrained.from_run=outputs/a", "recipe=none")
    trained = {line.split("\t")[1] for line in Path("outputs/a/samples.tsv").read_text().splitlines()
               if line.startswith("train")}
    count = sum(f"{colour}/{number}.png" in trained for colour in COLOURS for number in (7, 8, 9))
    assert code == 0
    assert f"warning: {count} of the 9 test samples are training samples of outputs/a, whose weights" in out


# row 16: a metric that nobody logs

STOPPING = "trainer.callbacks=[{{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: {}}}]"


class OwnTask(Classification):
    headline = "val/acuracy"


def row_16(dltrain: Dltrain) -> None:
    code, _, err = dltrain("name=a", *TINY, STOPPING.format("val/acc"))
    assert code == 2
    assert "trainer.callbacks (EarlyStopping, monitor): no metric 'val/acc'; did you mean 'val/accuracy'? (there" in err
    code, _, err = dltrain("name=a", *TINY, "task._target_=tests.faults.test_same_run.OwnTask")
    assert code == 2
    assert "headline of OwnTask: no metric 'val/acuracy'; did you mean 'val/accuracy'? (there are: " in err
    assert not Path("outputs/a").exists(), "refused before anything was written"


def test_row_16_a_misspelt_metric_is_refused_before_the_first_step(dltrain):
    """A headline or a monitored metric that the task does not log is refused before the first step, with the names that
    there are."""
    row_16(dltrain)


def test_row_16_control(dltrain, monkeypatch):
    monkeypatch.setattr("dltrain.run.check_monitored", lambda *_: None)
    with pytest.raises(AssertionError):
        row_16(dltrain)
