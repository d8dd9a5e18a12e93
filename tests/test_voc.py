"""Photos with boxes from a folder: what is read, what is repaired, errors that name file and line."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.datasets
from PIL import Image
from torchmetrics.detection import MeanAveragePrecision

from dltrain import run
from dltrain.data.datamodule import SPLITS
from dltrain.data.voc import VocBoxes
from dltrain.errors import DataError
from dltrain.run_dir import RunDir

OBJECT = """  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox>
      <xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>
      <xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>
    </bndbox>
  </object>
"""


LabelledBox = tuple[str, tuple[int, int, int, int], int]  # class, box, difficult


def write_photo(root: Path, name: str, objects: Sequence[LabelledBox], size: tuple[int, int] = (60, 40)) -> None:
    """A photo with its annotation; size: width and height in pixels."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 40, 20)).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "Annotations" / f"{name}.xml").write_text(
        f"<annotation>\n  <filename>{name}.jpg</filename>\n"
        f"  <size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
        + "".join(OBJECT.format(name=label, box=box, difficult=difficult) for label, box, difficult in objects)
        + "</annotation>\n")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four training photos, one of them without objects, and two test photos; landscape and portrait."""
    root = tmp_path / "photos"
    write_photo(root, "a", [("cat", (1, 1, 20, 30), 0), ("dog", (30, 5, 60, 40), 0)])
    write_photo(root, "b", [])
    write_photo(root, "c", [("dog", (5, 5, 25, 25), 1), ("cat", (2, 2, 12, 22), 0)], size=(40, 60))
    write_photo(root, "d", [("cat", (1, 1, 60, 40), 0)])
    write_photo(root, "e", [("cat", (10, 10, 30, 30), 0)])
    write_photo(root, "f", [("dog", (10, 10, 30, 30), 1)])
    (root / "ImageSets/Main/train.txt").write_text("a\nb  1\nc\nd\n")
    (root / "ImageSets/Main/test.txt").write_text("e\nf\n")
    return root


def load_boxes(root: Path, **changes: Any) -> VocBoxes:
    keys: dict[str, Any] = {
        "root": str(root), "channels": 3, "image_px": 64, "num_classes": None, "val_share": 0.25,
        "bad_boxes": "refuse", "num_workers": 0, "group_by_shape": True, "batch_size": 2}
    data = VocBoxes(**{**keys, **changes})
    data.load()
    return data


def test_boxes_count_from_one(photos):
    data = load_boxes(photos)
    assert data.class_names == ["cat", "dog"]
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 3, "val": 1, "test": 2}
    by_name = {photo.image.stem: photo for split in ("train", "val") for photo in data.photos[split]}
    assert by_name["a"].boxes.tolist() == [[0, 0, 20, 30], [29, 4, 60, 40]]
    assert by_name["a"].labels.tolist() == [0, 1]
    assert by_name["b"].boxes.shape == (0, 4)
    assert data.describe() == "3 train (3 boxes), 1 val (2 boxes), 2 test (2 boxes), 2 classes"
    data.photos["train"] = [by_name[name] for name in "abcd"]
    batch = next(data.read("train", [torch.tensor([2, 1])]))
    batch.check(2)
    assert [image.shape for image in batch.images] == [(3, 60, 40), (3, 40, 60)]


def test_difficult_objects_are_not_trained_on_and_do_not_count_in_evaluation(photos):
    data = load_boxes(photos)
    data.photos["train"] += data.photos["val"]
    index = [photo.image.stem for photo in data.photos["train"]].index("c")
    (trained,) = next(data.read("train", [torch.tensor([index])])).targets
    assert trained["boxes"].tolist() == [[1, 1, 12, 22]], "the cat without the difficult dog"
    assert trained["labels"].tolist() == [0]
    padded = next(data.read("test", [torch.tensor([1, -1])]))
    assert padded.size == 1
    assert padded.targets[0]["iscrowd"].tolist() == [1]
    batch = next(data.read("test", [torch.tensor([0, 1])]))
    for box_of_dog in ([9.0, 9, 30, 30], [40.0, 20, 60, 40]):  # the difficult one, and where there is nothing
        metric = MeanAveragePrecision(class_metrics=True)
        metric.update([{"boxes": batch.targets[0]["boxes"], "labels": torch.tensor([0]), "scores": torch.ones(1)},
                       {"boxes": torch.tensor([box_of_dog]), "labels": torch.tensor([1]), "scores": torch.ones(1)}],
                      batch.targets)
        assert metric.compute()["map_per_class"].tolist() == [1, -1], "no dog counts"


@pytest.mark.parametrize(("old", "new", "message"), [
    ("<xmax>20</xmax>", "<xmax>1</xmax>", r"a.xml:7: xmax 1 <= xmin 1"),
    ("<ymax>30</ymax>", "<ymax>0</ymax>", r"a.xml:7: ymax 0 <= ymin 1"),
    ("<xmax>60</xmax>", "<xmax>61</xmax>", r"a.xml:15: the box 30, 5, 61, 40 lies outside of 60 x 40"),
    ("<xmax>20</xmax>", "<xmax>nan</xmax>", r"a.xml:7: xmax must be a number, but is 'nan'"),
    ("<xmax>20</xmax>", "", r"a.xml:7: xmax must be a number, but is None"),
    ("<width>60</width>", "<width>61</width>", r"a.xml:3: width x height must be 60 x 40 as a.jpg's, but is 61 x 40"),
    ("</annotation>", "", r"a.xml:21: not XML \(no element found\)"),
    ("<bndbox>", "<box>", r"a.xml:10: not XML \(mismatched tag\)"),
])
def test_each_bad_annotation_is_named(old, new, message, photos):
    file = photos / "Annotations/a.xml"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        load_boxes(photos)


def test_names_have_blanks_and_lists_of_one_class_have_flags(photos):
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (photos / folder / f"a{suffix}").rename(photos / folder / f"IMG 1 (2){suffix}")
    (photos / "ImageSets/Main/train.txt").write_text("IMG 1 (2)  1\nb -1\nc  0\nd\n")
    names = {photo.image.stem for split in ("train", "val") for photo in load_boxes(photos).photos[split]}
    assert names == {"IMG 1 (2)", "b", "c", "d"}


def test_classes_and_lists_are_named(photos):
    file = photos / "Annotations/e.xml"
    file.write_text(file.read_text().replace("cat", "lorry"))
    with pytest.raises(DataError, match=r"e.xml:4: class 'lorry' is none of cat, dog"):
        load_boxes(photos)
    (photos / "ImageSets/Main/train.txt").write_text("a\n../../b\n")
    with pytest.raises(DataError, match=r"train.txt:2: '../../b' must be a name, not a path"):
        load_boxes(photos)
    (photos / "ImageSets/Main/train.txt").write_text("a\nnone\n")
    with pytest.raises(DataError, match=r"none.xml: No such file"):
        load_boxes(photos)
    with pytest.raises(DataError, match=r"no such folder; it must have Annotations"):
        load_boxes(photos.parent / "nothing")
    (photos / "JPEGImages/a.jpg").rename(photos / "a.jpg")
    (photos / "ImageSets/Main/train.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"a.xml: no image .*JPEGImages/a.jpg"):
        load_boxes(photos)
    (photos / "a.jpg").rename(photos / "JPEGImages/a.JPG")
    with pytest.raises(DataError, match=r"data.num_classes=5, but .* has 2 classes: cat, dog"):
        load_boxes(photos, num_classes=5)


def test_classes_txt_gives_the_order_of_the_classes(photos):
    (photos / "classes.txt").write_text("dog\n\n cat \nbird\n")
    data = load_boxes(photos)
    assert data.class_names == ["dog", "cat", "bird"]
    assert data.photos["test"][0].labels.tolist() == [1]
    assert data.sizes() == {"num_classes": 3}


def test_an_object_without_a_box_and_a_missing_list_are_named(photos):
    file = photos / "Annotations/e.xml"
    text = file.read_text()
    file.write_text(text.replace("bndbox>", "bounds>"))
    with pytest.raises(DataError, match=r"e.xml:4: an object must have a bndbox"):
        load_boxes(photos)
    file.write_text(text)
    (photos / "ImageSets/Main/test.txt").unlink()
    with pytest.raises(DataError, match=r"ImageSets/Main: must have train.txt and test.txt \(or val.txt\)"):
        load_boxes(photos)


def test_an_xml_beside_each_photo_without_lists(photos):
    """As labelImg writes them. A photo without an xml and files of other kinds are left out and counted."""
    shutil.rmtree(photos / "ImageSets")
    for file in (photos / "Annotations").iterdir():
        (photos / "day").mkdir(exist_ok=True)
        file.rename(photos / "day" / file.name)
        (photos / f"JPEGImages/{file.stem}.jpg").rename(photos / f"day/{file.stem}.jpg")
    (photos / "day/b.xml").unlink()
    (photos / "notes.md").write_text("of May")
    data = load_boxes(photos, test_share=0.2, val_share=0.2)
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 3, "val": 1, "test": 1}
    assert (data.held_out, data.class_names) == (["test", "val"], ["cat", "dog"])
    by_name = {photo.image.stem: photo for split in SPLITS for photo in data.photos[split]}
    assert by_name["a"].boxes.tolist() == [[0, 0, 20, 30], [29, 4, 60, 40]]
    assert data.left_out == {"a photo without an xml": [str(photos / "day/b.jpg")],
                             "no picture by its suffix .md": [str(photos / "notes.md")]}
    assert [photo.image.stem for photo in load_boxes(photos, test_share=0.2, val_share=0.2, seed=7).photos["test"]
            ] == [photo.image.stem for photo in data.photos["test"]], "the same for every seed"
    (photos / "classes.txt").write_text("dog\ncat\n")
    assert load_boxes(photos, test_share=0.2).class_names == ["dog", "cat"]


def test_photos_and_xml_in_folders_of_any_name(photos):
    shutil.rmtree(photos / "ImageSets")
    (photos / "JPEGImages").rename(photos / "images")
    data = load_boxes(photos, test_share=0.2)
    assert sorted(photo.image.stem for split in SPLITS for photo in data.photos[split]) == list("abcdef")
    (photos / "Annotations/b.xml").rename(photos / "Annotations/x.xml")
    with pytest.raises(DataError, match=r"Annotations/x.xml: no photo x.jpg \(or .png\) beside it or in another"):
        load_boxes(photos, test_share=0.2)
    (photos / "more").mkdir()
    (photos / "Annotations/x.xml").rename(photos / "Annotations/b.xml")
    shutil.copy(photos / "images/b.jpg", photos / "more/b.jpg")
    with pytest.raises(DataError, match=r"Annotations/b.xml: images/b.jpg and more/b.jpg have its name too"):
        load_boxes(photos, test_share=0.2)


def test_folders_named_as_splits_hold_them(photos):
    """The same name may be in two splits: labelling tools number photos anew in each."""
    for folder in (photos / "Annotations", photos / "JPEGImages"):
        for file in sorted(folder.iterdir()):
            split = "train" if file.stem in "abcd" else "Valid"
            (photos.parent / "own" / split / "x").mkdir(parents=True, exist_ok=True)
            file.rename(photos.parent / "own" / split / "x" / f"{'a' if file.stem == 'e' else file.stem}{file.suffix}")
    root = photos.parent / "own"
    data = load_boxes(root, test_share=0.25)
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 3, "val": 2, "test": 1}
    assert data.held_out == ["test"]
    assert {photo.image.parts[-3] for photo in data.photos["val"]} == {"Valid"}
    shutil.copytree(root / "Valid", root / "dev")
    with pytest.raises(DataError, match=r"own: Valid and dev are both the val split; keep one"):
        load_boxes(root, test_share=0.25)
    shutil.rmtree(root / "dev")
    (root / "train").rename(root / "more")
    with pytest.raises(DataError, match=r"own: has Valid, but no folder train"):
        load_boxes(root, test_share=0.25)
    (root / "Valid").rename(root / "train")
    assert len(load_boxes(root, test_share=0.5, val_share=None).left_out["a file in no folder of a split"]) == 8


def test_the_val_list_is_val_and_the_test_is_held_out(photos):
    (photos / "ImageSets/Main/test.txt").rename(photos / "ImageSets/Main/val.txt")
    data = load_boxes(photos, test_share=0.25)
    assert [photo.image.stem for photo in data.photos["val"]] == ["e", "f"]
    assert data.held_out == ["test"]
    earlier = load_boxes(photos)
    assert [photo.image.stem for photo in earlier.photos["test"]] == ["e", "f"], "of versions without data.test_share"
    assert earlier.held_out == ["val"]
    (photos / "ImageSets/Main/train.txt").unlink()
    with pytest.raises(DataError, match=r"ImageSets/Main: must have train.txt$"):
        load_boxes(photos, test_share=0.25)


@pytest.mark.parametrize(("year", "image_sets"), [("2007", ["trainval", "test"]), ("2012", ["trainval"])])
def test_an_official_set_is_downloaded_where_it_is_missing(year, image_sets, photos, monkeypatch):
    downloads, root = [], photos.parent / "official"
    root.mkdir()

    def download(folder: str, year: str, image_set: str, download: bool) -> None:
        downloads.append((folder, year, image_set, download))
        (Path(folder) / "VOCdevkit").mkdir(exist_ok=True)
        if len(downloads) == len(image_sets):
            photos.rename(Path(folder) / f"VOCdevkit/VOC{year}")

    monkeypatch.setattr(torchvision.datasets, "VOCDetection", download)
    with pytest.raises(DataError, match=rf"VOC{year} is not in {root}: put VOCdevkit/VOC{year} of"):
        load_boxes(root, year=year)
    assert load_boxes(root, year=year, download=True).num_samples("test") == 2
    assert downloads == [(str(root), year, image_set, True) for image_set in image_sets]
    assert load_boxes(root, year=year).num_samples("test") == 2


def test_the_test_split_is_not_trained_on(photos):
    (photos / "ImageSets/Main/test.txt").rename(photos / "ImageSets/Main/val.txt")
    (photos / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\nd\ne\nf\n")
    with pytest.raises(DataError, match=r"no test.txt, so val is the test split: data.train_list must be train"):
        load_boxes(photos, train_list="trainval")


def test_bad_boxes_are_repaired_and_counted(photos):
    file = photos / "Annotations/a.xml"
    text = file.read_text().replace("<xmax>60</xmax>", "<xmax>99</xmax>").replace("<xmax>20</xmax>", "<xmax>1</xmax>")
    file.write_text(text)
    data = load_boxes(photos, bad_boxes="repair")
    assert data.describe().endswith("2 classes; boxes 1 clipped, 1 dropped")
    (photo,) = [photo for split in ("train", "val") for photo in data.photos[split] if photo.image.stem == "a"]
    assert photo.boxes.tolist() == [[29, 4, 60, 40]]


def test_photos_of_one_shape_share_a_batch(photos):
    data = load_boxes(photos)
    data.photos["train"] += data.photos["val"]
    lengths = data.bucket_keys()
    assert lengths is not None
    shapes = dict(zip([photo.image.stem for photo in data.photos["train"]], lengths.tolist(), strict=True))
    assert shapes == {"a": 9, "b": 9, "c": -9, "d": 9}, "16 log2(60 / 40); c alone is portrait"
    assert load_boxes(photos, group_by_shape=False).bucket_keys() is None


def test_a_detector_trains_on_them(photos, config, tmp_path):
    composed = config("model=faster_rcnn", "data=voc_folder", f"data.root={photos}", "data.num_workers=0",
                      "recipe=none", "model.backbone.depth=8", "data.image_px=64", "model.hidden=16", "trainer=cpu",
                      "trainer.max_epochs=1", "task.optimizer.lr=0.001")
    run_dir = RunDir.named(tmp_path, "run")
    result = run.train(composed, run_dir)
    assert run_dir.read_vocabularies() == {"labels": ["cat", "dog"]}
    assert result["steps"] == 2
    assert result["test/map"] == result["test/map/cat"] >= 0
    assert "test/map/dog" not in result, "the only dog of the test split is difficult"
