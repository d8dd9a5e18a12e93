"""What is no sample is counted and listed; names of splits as people write them; nothing is merged in silence."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dltrain.build import build_data
from dltrain.config.compose import compose
from dltrain.data.splits import find_split_folders
from dltrain.errors import DataError
from dltrain.image_files import scan_images


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


def classes(root: Path, count: int = 12, names: tuple[str, ...] = ("cat", "dog"), suffix: str = "png",
            first: int = 0) -> Path:
    """`first`: photos of other numbers have other pixels."""
    for label, name in enumerate(names):
        for index in range(count):
            picture(root / name / f"{index:02d}.{suffix}", 100 * label + index + first)
    return root


def load(root: Path, *words: str):
    return build_data(compose(["model=resnet20", "data=image_folder", f"data.root={root}", *words]).job_config())


@pytest.mark.parametrize("names", [("Train", "Valid", "TEST"), ("training", "validation", "testing"),
                                   ("train", "dev", "test"), ("train", "val", "test")])
def test_splits_have_their_usual_names(names, tmp_path):
    for name in names:
        classes(tmp_path / name, 3)
    data = load(tmp_path)
    assert [data.num_samples(split) for split in ("train", "val", "test")] == [6, 6, 6]
    assert data.class_names == ["cat", "dog"]


def test_folders_that_are_no_splits_are_refused_or_counted(tmp_path):
    for name in ("train", "extra", ".git"):
        classes(tmp_path / "a" / name, 20)
    assert load(tmp_path / "a").left_out == {"a folder that is no split": [str(tmp_path / "a/extra")]}
    for name in ("val", "test"):
        classes(tmp_path / "b" / name, 3)
    with pytest.raises(DataError, match="b: has test, val, but no folder train; if these are no splits, rename them"):
        load(tmp_path / "b")
    for name in ("train", "val", "valid"):
        classes(tmp_path / "c" / name, 3)
    with pytest.raises(DataError, match="c: val and valid are both the val split; keep one"):
        load(tmp_path / "c")
    assert find_split_folders(classes(tmp_path / "d")) == {}


def test_files_that_are_no_samples_are_listed_with_the_reason(tmp_path):
    root = classes(tmp_path / "in")
    picture(root / "cat/more/x.jfif", 1)
    picture(tmp_path / "elsewhere/y.png", 2)
    os.symlink(tmp_path / "elsewhere", root / "cat/linked")
    os.symlink(root / "cat", root / "cat/loop")
    os.symlink("/nowhere/x.png", root / "dog/broken.png")
    for name in ("notes.txt", "photo.HEIC", "Thumbs.db", ".DS_Store", "._00.png"):
        (root / "dog" / name).write_bytes(b"x")
    (root / "cat/folder.png").mkdir()
    (root / "__MACOSX/cat").mkdir(parents=True)
    data = load(root)
    assert sum(data.num_samples(split) for split in ("train", "val", "test")) == 26
    assert {reason: [Path(place).name for place in places] for reason, places in data.left_out.items()} == {
        "a second link to a folder": ["loop"], "a broken link": ["broken.png"],
        "no picture by its suffix .txt": ["notes.txt"], "no picture by its suffix .HEIC": ["photo.HEIC"]}
    assert data.class_names == ["cat", "dog"]
    assert scan_images(root / "cat", recursive=False)[0] == sorted((root / "cat").glob("[0-9]*.png"))
    assert scan_images(root / "__MACOSX") == ([], {})


def test_a_run_prints_the_counts_and_writes_the_list(dltrain, tmp_path):
    root = classes(tmp_path / "in")
    (root / "dog/notes.txt").write_text("x")
    code, out, err = dltrain("model=resnet20", "model.depth=8", "data=image_folder", "data.root=in", "trainer=smoke",
                             "data.batch_size=4", "name=a")
    assert (code, err) == (0, "")
    assert "left out: 1 x no picture by its suffix .txt; outputs/a/left_out.txt lists them\n" in out
    assert (tmp_path / "outputs/a/left_out.txt").read_text() == "no picture by its suffix .txt: in/dog/notes.txt\n"
    assert "\n2 classes of 10 training images each\n" in out


def test_a_small_class_is_named(tmp_path):
    classes(tmp_path, 60, ("cat", "dog"))
    classes(tmp_path, 5, ("yak",), first=1000)
    data = load(tmp_path)
    assert data.describe_contents() == ["3 classes of 3 (yak) to 49 (cat) training images each"]
    (warning,) = data.list_warnings()
    assert warning.startswith("the classes are unbalanced, 49 training images of cat and 3 of yak: accuracy alone")


@pytest.mark.parametrize(("small", "is_named"), [(100, False), (10, False), (9, True)])
def test_a_class_is_small_if_another_is_more_than_ten_times_as_large(small, is_named, tmp_path):
    classes(tmp_path / "train", 100, ("cat",))
    classes(tmp_path / "train", small, ("yak",), first=1000)
    for split, first in (("val", 2000), ("test", 3000)):
        classes(tmp_path / split, 1, ("cat", "yak"), first=first)
    assert bool(load(tmp_path).list_warnings()) is is_named


def test_photos_and_masks_of_one_name_are_not_merged(tmp_path):
    for index in range(6):
        picture(tmp_path / f"images/{index}.png", index)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32), index % 2, np.uint8)).save(tmp_path / f"masks/{index}.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "masks/9.png").write_bytes((tmp_path / "masks/0.png").read_bytes())
    words = ["model=fcn32s", "data=mask_folder", f"data.root={tmp_path}", "data.image_px=32"]
    data = build_data(compose(words).job_config())
    assert {reason: [Path(place).name for place in places] for reason, places in data.left_out.items()} == {
        "a mask without a photo": ["9.png"]}
    (tmp_path / "Training.txt").write_text("0\n1\n2\n")
    (tmp_path / "test.txt").write_text("3\n")
    data = build_data(compose(words).job_config())
    assert [Path(place).name for place in data.left_out["a photo that no list names"]] == ["4.png", "5.png"]
    picture(tmp_path / "images/0.jpg")
    with pytest.raises(DataError, match=r"0.png: 0.jpg has the same name but for its suffix; keep one of them"):
        build_data(compose(words).job_config())
    (tmp_path / "images/0.jpg").unlink()
    (tmp_path / "classes.txt").write_text("a\na\n")
    with pytest.raises(DataError, match=r"data=mask_folder: several classes are called a"):
        build_data(compose(words).job_config())


def test_two_coco_images_of_one_id_or_of_one_file_are_refused(tmp_path):
    for split, ids in (("train", (1, 2, 2)), ("test", (1, 2, 3))):
        images = [{"id": number, "file_name": f"{index}.png", "width": 32, "height": 32} for index, number in
                  enumerate(ids)]
        for index in range(3):
            picture(tmp_path / f"{split}/{index}.png", index)
        boxes = [{"id": index + 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 8, 8]} for index in range(2)]
        (tmp_path / f"{split}.json").write_text(json.dumps(
            {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]}, indent=1))
    words = ["model=faster_rcnn", "data=coco", f"data.root={tmp_path}", "data.train_json=train.json",
             "data.train_images=train", "data.test_json=test.json", "data.test_images=test"]
    with pytest.raises(DataError, match=r"train.json:\d+ \(images id 2\): two images have this id"):
        build_data(compose(words).job_config())
    file = tmp_path / "train.json"
    file.write_text(file.read_text().replace('"id": 2,', '"id": 5,', 1).replace("0.png", "1.png"))
    with pytest.raises(DataError, match=r"train.json:\d+ \(images id 5\): its file 1.png is that of id 1 too"):
        build_data(compose(words).job_config())


def test_a_run_warns_of_texts_that_two_splits_share(dltrain, tmp_path):
    texts = "".join(f"{label}\tday {index} {label}\n" for index in range(30) for label in ("pos", "neg"))
    for split in ("train", "val"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / f"texts/{split}.tsv").write_text(texts.replace("day", f"{split} day"))
    (tmp_path / "texts/test.tsv").write_text("pos\ttrain day 3 pos\nneg\tanother one\n")
    code, out, err = dltrain("model=seq_classifier", "data=labelled_text", "data.root=texts", "trainer=smoke", "name=t")
    assert (code, err) == (0, "")
    assert ("dltrain: warning: 1 of 2 test samples are in train too, for example train day 3 pos; data.on_leak=drop "
            "leaves them out of train\n") in out
