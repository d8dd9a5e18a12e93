"""Samples that two splits share, photos that cannot be read and damaged EXIF data: each is counted; data.on_leak and
data.on_bad say what becomes of it."""

import struct
from pathlib import Path

import pytest
from PIL import Image

from dltrain.build import build_data
from dltrain.config.compose import compose
from dltrain.errors import DataError
from dltrain.image_files import has_damaged_exif
from tests.test_left_out import classes, picture


def load(model: str, data: str, root: Path, *words: str):
    return build_data(compose([f"model={model}", f"data={data}", f"data.root={root}", *words]).job_config())


def folders(root: Path) -> Path:
    """Six, three and three photos of each of two classes; test and val each have a copy of a training photo, under
    another name, and test has one of val."""
    for number, (split, count) in enumerate((("train", 6), ("val", 3), ("test", 3))):
        classes(root / split, count, first=1000 * number)
    for source, copy in (("train/cat/00", "test/cat/a"), ("train/cat/01", "val/cat/b"), ("val/dog/00", "test/dog/c")):
        (root / f"{copy}.png").write_bytes((root / f"{source}.png").read_bytes())
    return root


def sizes(data) -> list[int]:
    return [data.num_samples(split) for split in ("train", "val", "test")]


def test_copies_are_found_by_their_bytes_and_the_later_split_keeps_them(tmp_path):
    root = folders(tmp_path)
    data = load("resnet20", "image_folder", root)
    assert sizes(data) == [12, 7, 8]
    assert data.list_warnings() == [
        f"1 of {count} {split} samples are in {other} too, for example {root}/{split}/{mine} ({root}/{other}/{theirs})"
        f"; data.on_leak=drop leaves them out of {other}" for count, split, other, mine, theirs in (
            (7, "val", "train", "cat/b.png", "cat/01.png"), (8, "test", "train", "cat/a.png", "cat/00.png"),
            (8, "test", "val", "dog/c.png", "dog/00.png"))]
    data = load("resnet20", "image_folder", root, "data.on_leak=drop")
    assert sizes(data) == [10, 6, 8]
    assert data.list_warnings() == []
    assert data.left_out == {
        "a train sample that is in val too": [str(root / "train/cat/01.png")],
        "a train sample that is in test too": [str(root / "train/cat/00.png")],
        "a val sample that is in test too": [str(root / "val/dog/00.png")]}
    assert data.labels["train"].tolist() == [0] * 4 + [1] * 6
    with pytest.raises(DataError, match=r"^1 of 7 val samples .*; 1 of 8 test samples .*; data.on_leak=drop"):
        load("resnet20", "image_folder", root, "data.on_leak=refuse")
    for name in ("00", "01", "02", "03", "04", "05"):
        (root / f"test/cat/{name}x.png").write_bytes((root / f"train/cat/{name}.png").read_bytes())
    with pytest.raises(DataError, match=r"leave no train image of the class cat"):
        load("resnet20", "image_folder", root, "data.on_leak=drop")


def test_texts_are_dropped_before_the_vocabulary_is_made(tmp_path):
    for split, lines in (("train", ["pos\tgood day", "neg\trainy weather", "pos\tfine day"]), ("val", ["pos\tday"]),
                         ("test", ["neg\trainy weather", "pos\tday night"])):
        (tmp_path / f"{split}.tsv").write_text("\n".join([*lines, "neg\tbad " + split]))
    words = ("seq_classifier", "labelled_text", tmp_path, "data.min_count=1", "data.on_leak=drop")
    data = load(*words)
    assert sizes(data) == [3, 2, 3]
    assert "rainy" not in data.vocabularies["text"]
    assert data.left_out == {"a train sample that is in test too": ["rainy weather"]}
    for split in ("train", "dev", "test"):
        (tmp_path / "conll").mkdir(exist_ok=True)
        (tmp_path / f"conll/{split}.txt").write_text("".join(
            f"1\tDay\tx\tA\n2\t{word}\tx\tB\n\n" for word in ("both", split)))
    assert sizes(load("tagger", "conll", tmp_path / "conll", "data.on_leak=drop")) == [1, 1, 2]
    for split in ("train", "dev", "test"):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        (tmp_path / f"pairs/{split}.tsv").write_text(f"a day\tein Tag\na day\t{split}\n")
    assert sizes(load("seq2seq", "pairs", tmp_path / "pairs", "data.on_leak=drop")) == [1, 1, 2]


def photos(root: Path, kind: str) -> list[str]:
    """Twelve photos as data of a kind, the last four for the test if the files have splits; of these the second is cut.
    Returns the words of a command."""
    for index in range(12):
        picture(root / f"images/{index:02d}.png", index)
    file = root / "images/09.png"
    file.write_bytes(file.read_bytes()[:20])
    names = [f"{index:02d}" for index in range(12)]
    if kind == "image_folder":
        for index, name in enumerate(names):
            folder = root / ("train" if index < 8 else "test") / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (root / f"images/{name}.png").rename(folder / f"{name}.png")
        (root / "images").rmdir()
        return ["resnet20", kind, str(root)]
    if kind == "captions_file":
        (root / "c.tsv").write_text("".join(f"images/{name}.png\ta dog\n" for name in names))
        return ["captioner", "captions_file", str(root / "c.tsv"), "data.min_count=1"]
    lists = root / ("ImageSets/Main" if kind == "voc_folder" else "")
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("\n".join(names[:8]))
    (lists / "test.txt").write_text("\n".join(names[8:]))
    (root / "classes.txt").write_text("a\nb\n")
    if kind == "mask_folder":
        (root / "masks").mkdir()
        for index, name in enumerate(names):
            Image.new("L", (32, 32), index % 2).save(root / f"masks/{name}.png")
        return ["fcn8s", kind, str(root)]
    (root / "images").rename(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for name in names:
        (root / f"Annotations/{name}.xml").write_text(
            "<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            "</object></annotation>")
    return ["faster_rcnn", kind, str(root)]


@pytest.mark.parametrize("kind", ["image_folder", "captions_file", "mask_folder", "voc_folder"])
def test_a_photo_that_cannot_be_read_is_refused_or_left_out_and_counted(kind, tmp_path):
    model, data, root, *more = photos(tmp_path, kind)
    with pytest.raises(DataError, match=r"1 of 12 images cannot be read: \S+/09.png: .*; data.on_bad=skip leaves them"):
        load(model, data, Path(root), *more)
    loaded = load(model, data, Path(root), *more, "data.on_bad=skip")
    assert sum(sizes(loaded)) == 11
    ((reason, (place,)),) = loaded.left_out.items()
    assert reason == "a photo that cannot be read"
    assert "/09.png: " in place


def test_a_class_or_a_split_does_not_vanish(tmp_path):
    classes(tmp_path / "train", 3)
    classes(tmp_path / "val", 3, first=1000)
    classes(tmp_path / "test", 1, first=2000)
    words = ("resnet20", "image_folder", tmp_path, "data.on_bad=skip")
    (tmp_path / "test/cat/00.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"leave no test image of the class cat"):
        load(*words)
    (tmp_path / "test/dog/00.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 photos of the test \w+ can be read, for \w+ \S+/cat/00.png: "):
        load(*words)


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A block of EXIF data, little-endian, with these entries: tag, type, count, value (section 2 of TIFF 6.0)."""
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + b"".join(
        struct.pack("<HHL", tag, kind, count) + value for tag, kind, count, value in entries) + bytes(4)


TURNED, MAKER = (0x0112, 3, 1, b"\6\0\0\0"), (0x010F, 2, 3, b"ab\0\0")


@pytest.mark.parametrize(("block", "is_damaged"), [
    (exif(TURNED), False), (exif(MAKER), False), (exif((0x0112, 3, 1, bytes(4))), False),
    (exif((0x0112, 2, 3, b"up\0\0")), True), (exif((0x0112, 3, 1, b"\x63\0\0\0")), True),
    (exif((0x0112, 5, 1, b"\xff\xff\xff\0")), True), (exif(MAKER, TURNED)[:-14], True), (exif(TURNED)[:10], True)],
    ids=["turned", "no orientation", "zero", "text", "99", "ratio beyond the end", "cut in the entry", "cut before"])
def test_exif_is_damaged_where_nobody_can_say_how_the_photo_is_turned(block, is_damaged, tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=block)
    with Image.open(tmp_path / "a.jpg") as image:
        assert has_damaged_exif(image) == is_damaged


def test_photos_with_damaged_exif_are_counted_and_listed(dltrain, tmp_path):
    root = classes(tmp_path / "in", suffix="jpg")
    for name in ("cat/00", "dog/03"):
        with Image.open(root / f"{name}.jpg") as image:
            image.save(root / f"{name}.jpg", exif=exif((0x0112, 2, 3, b"up\0\0")))
    for name in ("a", "b"):  # the second run reads what is remembered of the photos
        code, out, err = dltrain("model=resnet20", "model.depth=8", "data=image_folder", "data.root=in",
                                 "trainer=smoke", "data.batch_size=4", f"name={name}")
        assert (code, err) == (0, "")
        line = "photos with damaged EXIF data, taken as upright: 2; "
        assert f"{line}outputs/{name}/damaged_exif.txt lists them\n" in out
        listed = (tmp_path / f"outputs/{name}/damaged_exif.txt").read_text()
        assert sorted(listed.splitlines()) == ["in/cat/00.jpg", "in/dog/03.jpg"]
