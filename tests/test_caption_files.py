"""Photos with captions from files: Flickr8k, lines of path and caption, COCO's json; errors that name file and line."""

import json
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from PIL import Image

from dltrain.batches import PAD
from dltrain.data.caption_files import CaptionLines, Flickr8k
from dltrain.data.captioning import CaptionedPhotos
from dltrain.data.coco import CocoCaptions
from dltrain.data.datamodule import SPLITS
from dltrain.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Flickr8k's original layout: ten photos with two captions each."""
    (tmp_path / "Flicker8k_Dataset").mkdir()
    names = [f"{n}_ab.jpg" for n in range(10)]
    for name in names:
        Image.new("RGB", (40, 30), (90, 40, 20)).save(tmp_path / "Flicker8k_Dataset" / name)
    (tmp_path / "Flickr8k.token.txt").write_text("".join(
        f"{name}#{k}\tA dog number {'one' if k else 'two'} runs , and jumps {name[0]} times .\n"
        for name in names for k in range(2)))
    for split, chosen in (("train", names[:6]), ("dev", names[6:8]), ("test", names[8:])):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(chosen) + "\n")
    return tmp_path


CaptionFilesT = TypeVar("CaptionFilesT", bound=CaptionedPhotos)


def load_captions(kind: type[CaptionFilesT], root: Path, **changes: Any) -> CaptionFilesT:
    keys: dict[str, Any] = {
        "root": str(root), "channels": 3, "image_px": 32, "val_share": 0.2, "bad_captions": "refuse",
        "vocab_size": None, "min_count": 1, "max_length": 25, "bucket_by_length": False, "batch_size": 2,
        "num_workers": 0}
    data = kind(**{**keys, **changes})
    data.load()
    return data


def count_samples(data: CaptionedPhotos) -> dict[str, int]:
    return {split: data.num_samples(split) for split in SPLITS}


def test_the_files_of_flickr8k_are_read(photos):
    data = load_captions(Flickr8k, photos)
    assert count_samples(data) == {"train": 6, "val": 2, "test": 2}
    assert data.references("val", 0)[0] == "A dog number two runs , and jumps 6 times ."
    batch = next(data.read("test", [torch.tensor([1, -1])]))
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.numbers.tolist() == [1, -1]
    assert (batch.captions[1] == PAD).all()
    assert data.join(batch.captions[0, 0, 1:-1].tolist()) == "a dog number two runs , and jumps <unk> times ."
    (photos / "Flickr_8k.testImages.txt").unlink()
    assert data.describe_contents() == [
        "words that are not in the vocabulary: 4 of 44 in val (9.09%), 4 of 44 in test (9.09%)"]
    fewer = load_captions(Flickr8k, photos)
    assert count_samples(fewer) == {"train": 5, "val": 1, "test": 2}


def test_captions_of_similar_length_share_a_batch_only_with_the_key(photos):
    file = photos / "Flickr8k.token.txt"
    file.write_text(file.read_text().replace("3_ab.jpg#1\tA dog", "3_ab.jpg#1\tA big black dog"))
    assert load_captions(Flickr8k, photos).bucket_keys() is None
    lengths = load_captions(Flickr8k, photos, bucket_by_length=True).bucket_keys()
    assert lengths is not None
    assert lengths.tolist() == [13, 13, 13, 15, 13, 13], "the longest caption of each photo, with START and END"


def test_captions_in_a_csv_file_without_lists_are_split_randomly(photos):
    (photos / "Flickr8k.token.txt").unlink()
    for file in photos.glob("Flickr_8k*"):
        file.unlink()
    (photos / "captions.txt").write_text("image,caption\n" + "".join(
        f'{n}_ab.jpg,"A dog, number {n} ."\n' for n in range(10)))
    data = load_captions(Flickr8k, photos)
    assert count_samples(data) == {"train": 8, "val": 1, "test": 1}
    numbers = [data.references(split, index) for split in SPLITS for index in range(data.num_samples(split))]
    assert sorted(numbers) == [[f"A dog, number {n} ."] for n in range(10)]


@pytest.mark.parametrize(("file", "old", "new", "message"), [
    ("Flickr8k.token.txt", "0_ab.jpg#0\tA dog number two runs , and jumps 0 times .", "0_ab.jpg#0\t ",
     r"token.txt:1: the caption is empty; data.bad_captions=drop"),
    ("Flickr8k.token.txt", "0_ab.jpg#1\tA dog number one", "0_ab.jpg#1\tA dog number two",
     r"token.txt:2: 0_ab.jpg has this caption already, at .*token.txt:1"),
    ("Flickr8k.token.txt", "9_ab.jpg#1\tA dog number one runs , and jumps 9 times .", "9_ab.jpg#1\tOui monsieur",
     r"token.txt:20: no word of 'Oui monsieur' is in the vocabulary"),
    ("Flickr8k.token.txt", "1_ab.jpg#0\t", "1_ab.jpg 0 ", r"token.txt:3: must be name.jpg#0<TAB>caption"),
    ("Flickr8k.token.txt", "2_ab.jpg#0", "gone.jpg#0", r"token.txt:5: no image .*gone.jpg"),
    ("Flickr8k.token.txt", "2_ab.jpg#0", "../2_ab.jpg#0", r"token.txt:5: '../2_ab.jpg' must be a name below"),
    ("Flickr_8k.testImages.txt", "9_ab.jpg", "8_ab.jpg", r"testImages.txt:2: 8_ab.jpg is listed already, at .*:1"),
    ("Flickr_8k.testImages.txt", "9_ab.jpg", "0_ab.jpg", r"testImages.txt:2: 0_ab.jpg is in .*trainImages.txt:1 too"),
    ("Flickr_8k.testImages.txt", "9_ab.jpg", "19_ab.jpg", r"testImages.txt:2: 19_ab.jpg has no caption"),
])
def test_each_bad_caption_is_named(photos, file, old, new, message):
    text = (photos / file).read_text()
    assert old in text
    (photos / file).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        load_captions(Flickr8k, photos)


def test_bad_captions_are_dropped_and_counted(photos):
    file = photos / "Flickr8k.token.txt"
    file.write_text(file.read_text().replace("A dog number two runs , and jumps 0 times .", "").replace(
        "A dog number one runs , and jumps 9 times .", "Oui"))
    data = load_captions(Flickr8k, photos, bad_captions="drop")
    assert data.describe().endswith("; 2 captions dropped")
    assert [len(data.texts[split]) for split in SPLITS] == [6, 2, 2]
    assert sorted(len(texts) for split in SPLITS for texts in data.texts[split]) == [1, 1] + [2] * 8


@pytest.mark.parametrize(("text", "message"), [
    ("0_ab.jpg,A dog\n", r"captions.txt:1: must be image,caption$"),
    ("image,caption\n0_ab.jpg,A dog\n\n1_ab.jpg,A dog, running\n",
     r"captions.txt:4: must be image,caption, but has 3 columns"),
    ('image,caption\n0_ab.jpg,A dog\n0_ab.jpg,"A cat\n1_cd.jpg,A red car\n',
     r"captions.txt:3: a quotation mark that is not closed, or stands alone"),
    ('image,caption\n0_ab.jpg,"A "big" dog"\n', r"captions.txt:2: a quotation mark that is not closed, or stands"),
])
def test_a_bad_row_of_a_csv_file_is_named(text, message, photos):
    (photos / "captions.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load_captions(Flickr8k, photos)


def test_a_folder_without_captions_is_refused(photos):
    (photos / "Flickr8k.token.txt").unlink()
    with pytest.raises(DataError, match=r"must have captions.txt or Flickr8k.token.txt or Flickr8k_text/"):
        load_captions(Flickr8k, photos)


def test_captions_in_lines_of_path_and_caption(photos):
    (photos / "lines.tsv").write_text("".join(
        f"Flicker8k_Dataset/{n}_ab.jpg\ta dog\nFlicker8k_Dataset/{n}_ab.jpg\tone dog\n" for n in range(10)))
    data = load_captions(CaptionLines, photos / "lines.tsv")
    assert data.num_samples("train") == 8
    assert data.references("test", 0) == ["a dog", "one dog"]
    (photos / "lines.tsv").write_text("a dog\n")
    with pytest.raises(DataError, match=r"lines.tsv:1: must be path<TAB>caption, but is 'a dog'"):
        load_captions(CaptionLines, photos / "lines.tsv")


def test_captions_of_coco_json(photos):
    def write_json(name: str, numbers: range) -> None:
        (photos / name).write_text(json.dumps({
            "images": [{"id": n, "file_name": f"{n}_ab.jpg"} for n in numbers],
            "annotations": [{"id": 10 * n + k, "image_id": n, "caption": f"A dog {k}"} for n in numbers
                            for k in range(2)]}, indent=1))

    write_json("train.json", range(7))
    write_json("test.json", range(7, 10))
    keys = {"train_json": "train.json", "train_images": "Flicker8k_Dataset", "test_json": "test.json",
            "test_images": "Flicker8k_Dataset"}
    data = load_captions(CocoCaptions, photos, **keys)
    assert count_samples(data) == {"train": 6, "val": 1, "test": 3}
    assert data.references("test", 1) == ["A dog 0", "A dog 1"]
    file = photos / "test.json"
    file.write_text(file.read_text().replace('"image_id": 8', '"image_id": 80', 1))
    with pytest.raises(DataError, match=r"test.json:\d+ \(annotations id 80\): no image has the id 80"):
        load_captions(CocoCaptions, photos, **keys)
