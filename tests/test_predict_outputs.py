"""Where `predict` writes: one name per input, whatever their names; nothing is overwritten, nothing ends early."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dltrain.commands.predict import Outputs, present
from dltrain.image_files import find_images, output_names
from dltrain.tasks.task import Input, Prediction


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(("files", "names"), [
    (["a.png", "b.jpg"], ["a", "b"]),
    (["a.png", "a.jpg"], ["a.png", "a.jpg"]),
    (["day1/a.png", "day2/a.png"], ["day1/a", "day2/a"]),
    (["img.png", "img_mask.png"], ["img", "img_mask.png"]),
    (["img_mask.png", "img.png", "img.jpg"], ["img_mask.png", "img.png", "img.jpg"]),
    (["a.b.png", "a.c.png"], ["a.b", "a.c"])])
def test_no_two_inputs_are_drawn_into_one_file(files, names):
    assert output_names(map(Path, files)) == names
    pictures = [f"{name}{ending}" for name in names for ending in ("", "_mask", "_attention")]
    assert len({*pictures}) == len(pictures)


def test_a_pattern_names_files(tmp_path):
    files = [picture(tmp_path / name) for name in ("day1/a.png", "day1/b.jpg", "day2/a.png")]
    assert [*find_images(str(tmp_path / "day*/a.png"))] == [files[0], files[2]]
    assert [*map(str, find_images(str(tmp_path / "day*/a.png")).values())] == ["day1/a.png", "day2/a.png"]
    assert [*map(str, find_images(str(tmp_path / "day1/*")).values())] == ["a.png", "b.jpg"]


@pytest.fixture
def segmenter(dltrain, tmp_path):
    for index in range(8):
        picture(tmp_path / f"in/images/{index}.png", index)
        mask = np.zeros((32, 32), np.uint8)
        mask[8:16, 8:16] = 1
        (tmp_path / "in/masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"in/masks/{index}.png")
    (tmp_path / "in/classes.txt").write_text("background\nred\n")
    code, _, err = dltrain("model=fcn32s", "data=mask_folder", "data.root=in", "data.image_px=32", "batch=2",
                           "trainer=smoke", "name=a")
    assert (code, err) == (0, "")
    return tmp_path / "outputs/a"


def test_names_of_inputs_do_not_collide_and_earlier_predictions_stay(segmenter, dltrain, tmp_path):
    for number, name in enumerate(("day1/img.png", "day2/img.png", "day2/img.jpg", "img_mask.png", "img.png")):
        picture(tmp_path / "ask" / name, number)
    code, out, err = dltrain("predict", "run=outputs/a", "input=ask")
    assert (code, err) == (0, "")
    assert "5 inputs; outputs/a/predictions and outputs/a/predictions.json" in out
    pictures = sorted(str(file.relative_to(segmenter / "predictions")) for file in
                   (segmenter / "predictions").rglob("*.png"))
    assert len(pictures) == 10
    records = json.loads((segmenter / "predictions.json").read_text())
    assert {record["mask"] for record in records} == {name for name in pictures if name.endswith("_mask.png")} - {
        "img_mask.png.png"}
    code, out, _ = dltrain("predict", "run=outputs/a", "input=ask/day1")
    assert "1 input; outputs/a/predictions_2 and outputs/a/predictions_2.json" in out
    assert len(json.loads((segmenter / "predictions.json").read_text())) == 5
    assert dltrain("predict", "run=outputs/a", "input=ask/day1", "output=mine")[0] == 0
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == ["img.png", "img_mask.png",
                                                                           "predictions.json"]
    code, _, err = dltrain("predict", "run=outputs/a", "input=ask/day1", "output=mine")
    assert code == 2
    assert "output=mine: has predictions already" in err


def test_a_bad_picture_among_good_ones_is_listed_at_the_end(segmenter, dltrain, tmp_path):
    for number in range(3):
        picture(tmp_path / f"ask/{number}.png", number)
    whole = (tmp_path / "ask/1.png").read_bytes()
    (tmp_path / "ask/1.png").write_bytes(whole[: len(whole) // 2])
    code, out, err = dltrain("predict", "run=outputs/a", "input=ask")
    assert code == 3
    assert "2 inputs; outputs/a/predictions" in out
    assert err.startswith("dltrain: error: 1 of 3 inputs cannot be read, the others are predicted: ask/1.png: ")
    assert len(json.loads((segmenter / "predictions.json").read_text())) == 2
    code, _, err = dltrain("predict", "run=outputs/a", "input=ask/1.png")
    assert (code, err.count("\n")) == (3, 1)


def test_pictures_without_an_object_have_an_empty_list_of_boxes(tmp_path):
    prediction = Prediction("ask/a.png", ["no object"], pictures={"": Image.new("RGB", (8, 8))})
    outputs = Outputs(tmp_path / "predictions", tmp_path / "predictions.json")
    present([prediction], [Input("ask/a.png", list, "a")], outputs)
    assert json.loads(outputs.records.read_text()) == []
    text = Outputs(tmp_path / "texts", tmp_path / "texts.json")
    present([Prediction("a prompt", ["a prompt that goes on"])], [Input("a prompt", str)], text)
    assert not text.records.exists()
