"""Rows 1, 2, 3, 8, 9 and 16 of the faults: the same command, and `resume`, continue the same run on the same data, or say
why not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dltrain import build, same_config, same_data
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.config.compose import compose
from dltrain.errors import DataError
from dltrain.run_dir import RunDir
from tests import test_own_splits as own
from tests.test_resume import Crash, assert_same, crash_at, load_last

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


# row 1: the same command again


def row_01(dltrain: Dltrain, *words: str) -> None:
    assert dltrain("name=straight", *words)[0] == 0
    crash_after(2, dltrain, "name=killed", *words)
    code, out, err = dltrain("name=killed", *words)
    assert (code, err) == (0, "")
    assert "resuming outputs/killed from step 2 of 3" in out
    assert_same(Path("outputs/killed"), Path("outputs/straight"))


def test_row_01_the_same_command_continues_where_only_the_files_know_the_classes(dltrain, photos):
    """A run with Mixup on a photo folder is continued by the same command, to the same bits."""
    row_01(dltrain, *PHOTOS, MIXUP)


def test_row_01_control(dltrain, photos, monkeypatch):
    monkeypatch.setattr(same_config, "READ_FROM_FILES", ())
    monkeypatch.setattr("dltrain.run_dir.RunDir.read_splits", lambda _: {})
    with pytest.raises(AssertionError, match="began with another config"):
        row_01(dltrain, *PHOTOS, MIXUP)


def sweep_again(dltrain: Dltrain) -> str:
    """The sweep, whose second job is killed after a step, and the same command again: its output."""
    words = ("-m", "name=s", "seed=0,1", *PHOTOS, MIXUP)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 2
                 and "1-resnet20" in str(trainer.default_root_dir))
        assert dltrain(*words)[0] == 7
    code, out, err = dltrain(*words)
    assert (code, err) == (0, "")
    return out


def test_row_01_b_a_sweep_continues_the_job_that_was_killed(dltrain, photos):
    """The same sweep again skips the finished jobs and continues the killed one, with Mixup on a photo folder too."""
    out = sweep_again(dltrain)
    assert "0-resnet20-on-image_folder is finished" in out
    assert "resuming outputs/s/1-resnet20-on-image_folder from step 2 of 3" in out
    assert "2 of 2 jobs done" in out


# row 9 with changed data


def load(words: list[str]):
    return build.build_data(compose(words).job_config())


def change_photo(root: Path) -> None:
    paint(next(root.rglob("train00.png")), 12345)


def replace(old: str, new: str, name: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        file = next(root.rglob(name))
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return edit


def move(old: str, new: str) -> Callable[[Path], None]:
    def rename(root: Path) -> None:
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)

    return rename


def repaint_mask(root: Path) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "masks/train00.png")


# A family of people's own files, what is done to them, and what a run says of it.
CHANGES = [
    (own.image_folder, change_photo, "1 changed in train (train/cat/train00.png)"),
    (own.image_folder, move("train/cat/train00.png", "train/dog/new.png"),
     "1 relabelled in train (train/dog/new.png)"),
    (own.image_folder, move("train/cat/train00.png", "test/cat/train00.png"),
     "1 moved from train to test (test/cat/train00.png)"),
    (own.image_folder, move("train/cat/train00.png", "train/cat/zzz.png"), "1 renamed in train (train/cat/zzz.png)"),
    (own.image_folder, lambda root: (root / "val/cat/val00.png").unlink(), "1 removed from val (val/cat/val00.png)"),
    (own.mask_folder, repaint_mask, "1 relabelled in train (images/train00.png)"),
    (own.voc_lists, replace("<xmin>2<", "<xmin>3<", "train00.xml"), "1 relabelled in train (JPEGImages/train00.png)"),
    (own.coco_keys, change_photo, "1 changed in train ("),
    (own.flickr8k, replace("train00.png", "train00.png", "*.txt"), ""),
    (own.labelled_text, replace("train00", "other", "train*"), "in train"),
]


@pytest.mark.parametrize(("write", "change", "message"), CHANGES)
def test_families(write, change, message, tmp_path):
    words = write(tmp_path / "data", {split: split for split in ("train", "val", "test")})
    print(sorted(map(str, (tmp_path / "data").rglob("*")))[:12], words)
    words = [*words, f"data.root={tmp_path}/data"]
    run_dir = RunDir(tmp_path)
    data = load(words)
    same_data.Record.of(data).write(run_dir)
    data = load(words)
    assert same_data.settle(run_dir, same_data.Record.of(data), data) == ""
    change(tmp_path / "data")
    data = load(words)
    with pytest.raises(DataError) as caught:
        same_data.settle(run_dir, same_data.Record.of(data), data)
    print(caught.value)
    assert message in str(caught.value)
