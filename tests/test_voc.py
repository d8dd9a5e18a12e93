"""Photos with boxes from a folder: what is read, what is repaired, what is refused by file and line."""

import pytest
import torch
from PIL import Image

from dltrain import build, run
from dltrain.data.datamodule import SPLITS
from dltrain.data.voc import VocBoxes
from dltrain.errors import DataError

OBJECT = """  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox>
      <xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>
      <xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>
    </bndbox>
  </object>
"""


def annotate(root, name: str, objects, size=(60, 40), stated=None) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 40, 20)).save(root / "JPEGImages" / f"{name}.jpg")
    w, h = stated or size
    (root / "Annotations" / f"{name}.xml").write_text(
        f"<annotation>\n  <filename>{name}.jpg</filename>\n  <size><width>{w}</width><height>{h}</height></size>\n"
        + "".join(OBJECT.format(name=n, box=box, difficult=d) for n, box, d in objects) + "</annotation>\n")


@pytest.fixture
def photos(tmp_path):
    """Four training photos, one of them without objects, and two test photos; landscape and portrait."""
    root = tmp_path / "photos"
    annotate(root, "a", [("cat", (1, 1, 20, 30), 0), ("dog", (30, 5, 60, 40), 0)])
    annotate(root, "b", [])
    annotate(root, "c", [("dog", (5, 5, 25, 25), 1), ("cat", (2, 2, 12, 22), 0)], size=(40, 60))
    annotate(root, "d", [("cat", (1, 1, 60, 40), 0)])
    annotate(root, "e", [("cat", (10, 10, 30, 30), 0)])
    annotate(root, "f", [("dog", (10, 10, 30, 30), 1)])
    (root / "ImageSets/Main/train.txt").write_text("a\nb  1\nc\nd\n")
    (root / "ImageSets/Main/test.txt").write_text("e\nf\n")
    return root


def voc_boxes(root, **keys) -> VocBoxes:
    return VocBoxes(**{"root": str(root), "channels": 3, "image_px": 64, "num_classes": None, "val_share": 0.25,
                        "bad_boxes": "refuse", "num_workers": 0, "group_by_shape": True, "batch_size": 2, **keys})


def test_boxes_count_from_one_and_difficult_ones_are_ignored(photos):
    data = voc_boxes(photos)
    data.load()
    assert data.class_names == ["cat", "dog"]
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 3, "val": 1, "test": 2}
    by_name = {photo.image.stem: photo for split in ("train", "val") for photo in data.photos[split]}
    assert by_name["a"].boxes.tolist() == [[0, 0, 20, 30], [29, 4, 60, 40]]
    assert by_name["b"].boxes.shape == (0, 4)
    data.photos["train"] = [by_name[name] for name in "abcd"]
    batch = next(data.read("train", [torch.tensor([2, 1])]))
    batch.check(2)
    assert batch.images[0].shape == (3, 60, 40)
    assert batch.targets[0]["labels"].tolist() == [0], "the difficult dog is not trained on"
    test = next(data.read("test", [torch.tensor([1, -1])]))
    assert test.size == 1
    assert test.targets[0]["iscrowd"].tolist() == [1]
    assert data.describe() == "4 train (5 boxes), 1 val (2 boxes), 2 test (2 boxes), 2 classes"


@pytest.mark.parametrize(("old", "new", "message"), [
    ("<xmax>20</xmax>", "<xmax>1</xmax>", r"a.xml:7: xmax 1 <= xmin 1"),
    ("<ymax>30</ymax>", "<ymax>0</ymax>", r"a.xml:7: ymax 0 <= ymin 1"),
    ("<xmax>60</xmax>", "<xmax>61</xmax>", r"a.xml:15: the box 30, 5, 61, 40 lies outside of 60 x 40"),
    ("<xmax>20</xmax>", "<xmax>nan</xmax>", r"a.xml:7: xmax must be a number, but is 'nan'"),
    ("<xmax>20</xmax>", "", r"a.xml:7: xmax must be a number, but is None"),
    ("<width>60</width>", "<width>61</width>", r"a.xml:3: width x height must be 60 x 40 as a.jpg's, but is 61 x 40"),
    ("</annotation>", "", r"a.xml:\d+: not XML \(no element found\)"),
    ("<bndbox>", "<box>", r"a.xml:\d+: not XML \(mismatched tag\)"),
])
def test_each_bad_annotation_is_named(old, new, message, photos):
    file = photos / "Annotations/a.xml"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        voc_boxes(photos).load()


def test_classes_and_lists_are_named(photos):
    file = photos / "Annotations/e.xml"
    file.write_text(file.read_text().replace("cat", "lorry"))
    with pytest.raises(DataError, match=r"e.xml:4: class 'lorry' is none of cat, dog"):
        voc_boxes(photos).load()
    (photos / "ImageSets/Main/train.txt").write_text("a\n../../b\n")
    with pytest.raises(DataError, match=r"train.txt:2: '../../b' must be a name, not a path"):
        voc_boxes(photos).load()
    (photos / "ImageSets/Main/train.txt").write_text("a\nnone\n")
    with pytest.raises(DataError, match=r"none.xml: No such file"):
        voc_boxes(photos).load()
    with pytest.raises(DataError, match=r"no folder with Annotations"):
        voc_boxes(photos.parent / "nothing").load()
    (photos / "JPEGImages/a.jpg").rename(photos / "a.jpg")
    (photos / "ImageSets/Main/train.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"a.xml: no image .*JPEGImages/a.jpg"):
        voc_boxes(photos).load()
    (photos / "a.jpg").rename(photos / "JPEGImages/a.JPG")
    with pytest.raises(DataError, match=r"data.num_classes=5, but .* has 2 classes: cat, dog"):
        voc_boxes(photos, num_classes=5).load()


def test_the_test_split_is_not_trained_on(photos):
    (photos / "ImageSets/Main/test.txt").rename(photos / "ImageSets/Main/val.txt")
    (photos / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\nd\ne\nf\n")
    with pytest.raises(DataError, match=r"no test.txt, so val is the test split: data.train_list must be train"):
        voc_boxes(photos, train_list="trainval").load()


def test_repairs_are_counted(photos):
    file = photos / "Annotations/a.xml"
    text = file.read_text().replace("<xmax>60</xmax>", "<xmax>99</xmax>").replace("<xmax>20</xmax>", "<xmax>1</xmax>")
    file.write_text(text)
    data = voc_boxes(photos, bad_boxes="repair")
    data.load()
    assert data.describe().endswith("2 classes; boxes 1 clipped, 1 dropped")
    (photo,) = [p for split in ("train", "val") for p in data.photos[split] if p.image.stem == "a"]
    assert photo.boxes.tolist() == [[29, 4, 60, 40]]


def test_photos_of_one_shape_share_a_batch(photos):
    data = voc_boxes(photos)
    data.load()
    data.photos["train"] += data.photos["val"]
    shapes = dict(zip([photo.image.stem for photo in data.photos["train"]], data.lengths().tolist(), strict=True))
    assert shapes["a"] == shapes["b"] == shapes["d"] == -shapes["c"] > 0, "c alone is portrait"
    assert voc_boxes(photos, group_by_shape=False).lengths() is None


def test_a_detector_trains_on_them(photos, config, run_folder):
    composed = config("model=faster_rcnn", "data=voc_folder", f"data.root={photos}", "data.num_workers=0",
                      "recipe=none", "model.backbone.depth=8", "data.image_px=64", "model.hidden=16", "trainer=cpu",
                      "trainer.max_epochs=1", "task.optimizer.lr=0.001")
    result = run.train(composed, run_folder("run"))
    assert 0 <= result["test/map_50"] <= 1
    assert build.build_data(composed).num_samples("train") == 3
