"""Boxes from COCO's json: what is read, what is repaired, errors that name file and line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.detection import MeanAveragePrecision

from dltrain import run
from dltrain.data.coco import CocoBoxes
from dltrain.data.datamodule import SPLITS
from dltrain.errors import DataError, FaultyData
from dltrain.run_dir import RunDir


def content() -> dict[str, Any]:
    """Three photos of 60 x 40, one without objects; a crowd; categories whose ids have gaps."""
    return {
        "info": {"note": "the word \"images\" stands here"},
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in (7, 8, 9)],
        "annotations": [
            {"id": 100, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20.5, 30], "iscrowd": 0, "area": 600},
            {"id": 101, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60.2, 40], "area": 2400},
            {"id": 102, "image_id": 9, "category_id": 3, "bbox": [5, 5, 10, 10], "iscrowd": 1, "area": 100},
        ],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with train.json, test.json and the photos of both."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}.json").write_text(json.dumps(content(), indent=1))
        for number in (7, 8, 9):
            Image.new("RGB", (60, 40), (90, 40, 99 * (split == "test"))).save(tmp_path / split / f"{number}.jpg")
    return tmp_path


def load_boxes(root: Path, **changes: Any) -> CocoBoxes:
    keys: dict[str, Any] = {
        "root": str(root), "train_json": "train.json", "train_images": "train", "test_json": "test.json",
        "test_images": "test", "channels": 3, "image_px": 64, "num_classes": None, "val_share": 0.3,
        "bad_boxes": "refuse", "num_workers": 0, "group_by_shape": True, "batch_size": 2}
    data = CocoBoxes(**{**keys, **changes})
    data.load()
    return data


def test_boxes_are_corners_and_labels_are_indices(root):
    data = load_boxes(root)
    assert data.class_names == ["cat", "dog"]
    first, second, third = data.photos["test"]
    assert first.boxes.tolist() == [[10, 5, 30.5, 35], [0, 0, 60, 40]], "60.2 is rounded to the border"
    assert first.labels.tolist() == [1, 0]
    assert first.ignored.tolist() == [False, False]
    assert second.boxes.shape == (0, 4)
    assert third.boxes.tolist() == [[5, 5, 15, 15]]
    assert third.ignored.tolist() == [True]
    assert data.describe() == "2 train (1 boxes), 1 val (2 boxes), 3 test (3 boxes), 2 classes"


def test_crowds_are_not_trained_on_and_do_not_count_in_evaluation(root):
    data = load_boxes(root)
    batch = next(data.read("test", [torch.tensor([0, 1, 2])]))
    batch.check(2)
    assert [target["iscrowd"].tolist() for target in batch.targets] == [[0, 0], [], [1]]
    for detects_crowd in (True, False):
        detections = [{"boxes": target["boxes"], "labels": target["labels"],
                       "scores": torch.ones(len(target["labels"]))} for target in batch.targets]
        if not detects_crowd:
            detections[2] = detections[1]
        metric = MeanAveragePrecision()
        metric.update(detections, batch.targets)
        assert metric.compute()["map"] == 1
    data.photos["train"] = data.photos["test"]
    trained = next(data.read("train", [torch.tensor([0, 2])]))
    assert [target["labels"].tolist() for target in trained.targets] == [[1, 0], []]


def test_a_test_set_with_other_ids_is_matched_by_name(root):
    other = content()
    other["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    for annotation in other["annotations"]:
        annotation["category_id"] = {18: 1, 3: 2}[annotation["category_id"]]
    (root / "test.json").write_text(json.dumps(other))
    assert [photo.labels.tolist() for photo in load_boxes(root).photos["test"]] == [[1, 0], [], [0]]


@pytest.mark.parametrize(("kind", "index", "change", "message"), [
    ("annotations", 0, {"bbox": [10, 5, 0, 30]}, "width 0 must be above 0"),
    ("annotations", 1, {"bbox": [10, 5, 20, -1]}, "height -1 must be above 0"),
    ("annotations", 1, {"bbox": [50, 5, 20, 20]}, "the box 50, 5, 20, 20 lies outside of 60 x 40"),
    ("annotations", 2, {"bbox": [float("nan"), 5, 20, 20]}, r"bbox must be four numbers, but is \[NaN"),
    ("annotations", 2, {"bbox": [5, 20, 20]}, "bbox must be four numbers"),
    ("annotations", 2, {"bbox": None}, "must have 'bbox'"),
    ("annotations", 2, {"category_id": 19}, r"category_id 19 is none of the 2 categories \(cat, dog\)"),
    ("annotations", 0, {"image_id": 70}, "no image has the id 70"),
    ("images", 1, {"width": 61}, "width x height must be 60 x 40 as 8.jpg's, but is 61 x 40"),
    ("images", 1, {"file_name": "gone.jpg"}, "no image .*test/gone.jpg"),
    ("images", 2, {"file_name": "../train/9.jpg"}, "'../train/9.jpg' must be a name below"),
    ("images", 2, {"file_name": None}, "must have 'file_name'"),
])
def test_each_bad_entry_is_named_by_its_line(root, kind, index, change, message):
    broken = content()
    entry = broken[kind][index]
    entry.update(change)
    for key in [key for key, value in change.items() if value is None]:
        del entry[key]
    text = json.dumps(broken, indent=1)
    (root / "test.json").write_text(text)
    line = 1 + next(number for number, row in enumerate(text.splitlines()) if row.strip() == f'"id": {entry["id"]},')
    with pytest.raises(DataError, match=rf"test.json:{line} \({kind} id {entry['id']}\): {message}"):
        load_boxes(root)


@pytest.mark.parametrize(("kind", "change", "count", "problem"), [
    ("annotations", {"image_id": None}, 3, "must have 'image_id'"),
    ("annotations", {"image_id": 70}, 3, "no image has the id 70"),
    ("annotations", {"image_id": []}, 3, "image_id must be a number or text, but is []"),
    ("images", {"file_name": 5}, 3, "file_name must be text, but is 5"),
    ("images", {"file_name": "8.jpg"}, 2, "its file 8.jpg is that of id 7 too"),
    ("categories", {"name": None}, 2, "must have 'name'")])
def test_all_bad_entries_are_counted_and_the_first_are_named(root, kind, change, count, problem):
    broken = content()
    for entry in broken[kind]:
        entry.update(change)
        for key in [key for key, value in change.items() if value is None]:
            del entry[key]
    (root / "train.json").write_text(text := json.dumps(broken, indent=1))
    rows = [row.strip(" ,") for row in text.splitlines()]
    numbers = [entry["id"] for entry in broken[kind]]
    lines = {number: 1 + rows.index(f'"id": {number}') for number in numbers[-count:]}
    faults = [f"{root}/train.json:{line} ({kind} id {number}): {problem}" for number, line in lines.items()]
    with pytest.raises(FaultyData) as caught:
        load_boxes(root)
    assert str(caught.value) == f"{count} of {len(numbers)} {kind} have faults: {'; '.join(faults)}"


def test_a_file_that_is_not_coco_json_is_named(root):
    (root / "test.json").write_text('{"images": [],\n "annotations": [}')
    with pytest.raises(DataError, match=r"test.json:2: not JSON"):
        load_boxes(root)
    (root / "test.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match=r"test.json: must have a list 'categories'"):
        load_boxes(root)
    (root / "test.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"test.json:1: not utf-8 \(byte 0xff at offset 7\); save it as UTF-8"):
        load_boxes(root)
    with pytest.raises(DataError, match=r"data.train_json=none.json: no file .*none.json; data.train_json=null reads"):
        load_boxes(root, train_json="none.json")


def test_a_json_in_each_folder_is_read_without_keys(root):
    """As Roboflow exports them: the photos and _annotations.coco.json in train, valid and test."""
    for split, folder in (("train", "train"), ("test", "valid")):
        (root / split).rename(root / folder)
        (root / f"{split}.json").rename(root / folder / "_annotations.coco.json")
    data = load_boxes(root, train_json=None, test_share=0.3)
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 2, "val": 3, "test": 1}
    assert data.held_out == ["test"]
    photo = data.photos["test"][0].image
    assert data.image_id(str(photo), 0) == int(photo.stem), "of the json that it was held out of"
    (root / "valid/more.json").write_text("{}")
    with pytest.raises(DataError, match=r"valid: must have one json file, .* has _annotations.coco.json, more.json"):
        load_boxes(root, train_json=None, test_share=0.3)


def test_ids_of_test_photos_need_the_test_json_alone(root, capsys):
    data = load_boxes(root)
    (root / "train.json").unlink()
    assert data.image_id(str(root / "test/8.jpg"), 0) == 8
    assert data.image_id(str(root / "train/8.jpg"), 0) is None
    (root / "copies").mkdir()
    for name in ("8.jpg", "10.jpg"):
        shutil.copy(root / "test/8.jpg", root / "copies" / name)
    assert data.image_id(str(root / "copies/8.jpg"), 0) == 8, "as a run's samples are"
    assert data.image_id(str(root / "copies/10.jpg"), 0) is None
    other = load_boxes(root, train_json="test.json", train_images="test")
    (root / "test.json").unlink()
    assert other.image_id(str(root / "test/8.jpg"), 5) == 5
    assert capsys.readouterr().err == (f"dltrain: image_id is the number of the input, not an id of data.root={root}: "
                                       f"data.train_json=test.json: no file {root}/test.json; data.train_json=null "
                                       "reads the json in each of the folders train, val and test\n")
    assert [other.category_id(label) for label in range(2)] == [3, 18], "as the training json had them"


def test_predictions_have_the_category_ids_of_the_json_that_their_photos_are_in(root):
    other = content()
    other["categories"] = [{"id": 3, "name": "dog"}, {"id": 18, "name": "cat"}]
    (root / "test.json").write_text(json.dumps(other))
    data = load_boxes(root)
    assert data.class_names == ["cat", "dog"], "as the training json sorts them"
    assert [data.category_id(label) for label in range(2)] == [18, 3]
    assert [load_boxes(root, test_json=None, test_share=0.3).category_id(label) for label in range(2)] == [3, 18]


def test_one_json_is_enough(root):
    data = load_boxes(root, test_json=None, test_share=0.3)
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 1, "val": 1, "test": 1}
    assert data.held_out == ["test", "val"]
    with pytest.raises(DataError, match=r"data.test_json=gone.json: no file .*gone.json; data.test_json=null holds"):
        load_boxes(root, test_json="gone.json", test_share=0.3)


def test_repairing_clips_drops_and_counts(root):
    broken = content()
    broken["annotations"][0]["bbox"] = [50, 5, 20, 20]
    broken["annotations"][1]["bbox"] = [5, 5, 0, 20]
    (root / "test.json").write_text(json.dumps(broken))
    data = load_boxes(root, bad_boxes="repair")
    assert data.photos["test"][0].boxes.tolist() == [[50, 5, 60, 25]]
    assert data.describe().endswith("2 classes; boxes 1 clipped, 1 dropped")


def test_a_detector_trains_on_them(root, config, tmp_path):
    keys = [f"data.root={root}", "data.train_json=train.json", "data.train_images=train", "data.test_json=test.json",
            "data.test_images=test", "data.num_workers=0", "data.image_px=64"]
    composed = config("model=faster_rcnn", "data=coco", *keys, "recipe=none", "model.backbone.depth=8",
                      "model.hidden=16", "trainer=cpu", "trainer.max_epochs=1", "task.optimizer.lr=0.001")
    run_dir = RunDir.named(tmp_path, "run")
    result = run.train(composed, run_dir)
    assert composed.data.num_classes == 2
    assert result["steps"] == 1
    of_classes = [result[f"test/map/{name}"] for name in ("cat", "dog")]
    assert min(of_classes) >= 0, "-1 would be a class without objects"
    assert result["test/map"] == pytest.approx(sum(of_classes) / 2)
    assert {path.name for path in (run_dir.path / "samples").iterdir()} == {"7.jpg", "8.jpg", "9.jpg"}


def test_predictions_are_cocos_results_with_the_ids_of_the_data(dltrain, tmp_path, monkeypatch):
    """pycocotools reads predictions.json as it is, and finds the AP of the run. The boxes are random, a
    function of the image alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from dltrain.tasks.detection import Detection

    for split, count in (("train", 6), ("test", 8)):
        images, boxes = [], []
        (tmp_path / split).mkdir()
        for index in range(count):
            pixels = np.random.default_rng([index, count]).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{split}/{index:03d}.png")
            images.append({"id": 1000 + 7 * index, "file_name": f"{index:03d}.png", "width": 64, "height": 64})
            boxes.append({"id": index + 1, "image_id": images[-1]["id"], "category_id": (18, 44)[index % 2],
                          "bbox": [16, 16, 16, 20], "area": 320, "iscrowd": 0})
        categories = [{"id": 44, "name": "bottle"}, {"id": 18, "name": "dog"}]
        (tmp_path / f"{split}.json").write_text(json.dumps(
            {"images": images, "annotations": boxes, "categories": categories}))

    def random_boxes(self, images):
        results = []
        for image in images:
            rng = torch.Generator().manual_seed(int(image.float().sum()))
            corners = torch.tensor([16.0, 16.0, 32.0, 36.0]) + 3 * torch.randn(5, 4, generator=rng)
            results.append({"boxes": corners, "labels": torch.randint(2, (5,), generator=rng),
                              "scores": torch.rand(5, generator=rng)})
        return results

    monkeypatch.setattr(Detection, "forward", random_boxes)
    code, _, err = dltrain("model=faster_rcnn", "data=coco", "data.root=.", "data.train_json=train.json",
                           "data.train_images=train", "data.test_json=test.json", "data.test_images=test",
                           "data.image_px=64", "data.val_share=0.2", "trainer.max_epochs=1", "trainer=cpu", "name=a",
                           "trainer.smoke_steps=8")
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "outputs/a/result.json").read_text())
    assert 0.05 < result["test/map"] < 0.95
    assert dltrain("predict", "run=outputs/a", "input=test", "score=0")[0] == 0
    records = json.loads((tmp_path / "outputs/a/predictions.json").read_text())
    assert {(record["category"], record["category_id"]) for record in records} == {("dog", 18), ("bottle", 44)}
    truth = COCO(str(tmp_path / "test.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "outputs/a/predictions.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(result["test/map"], abs=1e-4)
    assert evaluation.stats[1] == pytest.approx(result["test/map_50"], abs=1e-4)
    code, _, err = dltrain("predict", "run=outputs/a", "input=train/000.png", "score=0")
    assert (code, err) == (0, "dltrain: image_id is null for 1 input that the json with the test photos does not "
                              "have\n")
    others = json.loads((tmp_path / "outputs/a/predictions_2.json").read_text())
    assert {record["image_id"] for record in others} == {None}, "a photo of another file has none of these ids"
