"""Lists, annotations and texts in the encodings and with the line ends that programs write; values of wrong types."""

import json
import os
from pathlib import Path

import pytest
import yaml

from dltrain.config import schema
from dltrain.data.datamodule import SPLITS
from dltrain.data.texts import read_names, read_pieces, read_text, read_word_vectors
from dltrain.data.voc import read_xml
from dltrain.errors import DataError, UserError
from tests import fuzzing
from tests.test_leaks import classes, load, sizes


def write(root: Path, files: fuzzing.Files) -> Path:
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    return root


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "  \n\n"])
def test_a_list_is_the_same_in_every_encoding_and_with_every_line_end(encoding, end, tmp_path):
    (tmp_path / "train.txt").write_bytes(f"a 1{end}é 1{end}".encode(encoding))
    assert read_names(tmp_path / "train.txt") == ["a 1", "é 1"]
    assert read_names(tmp_path / "train.txt", has_flags=True) == ["a", "é"]


def test_a_name_in_a_list_is_refused_by_its_line_if_it_comes_twice_and_shown_if_nobody_sees_it(tmp_path):
    (tmp_path / "train.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"train.txt:3: 'a' is listed already, in line 1$"):
        read_names(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_bytes(b"a\nb\xff\n")
    with pytest.raises(DataError, match=r"train.txt:2: not utf-8 \(byte 0xff"):
        read_names(tmp_path / "train.txt")
    root = write(tmp_path / "voc", fuzzing.voc_folder())
    (root / "ImageSets/Main/test.txt").write_text("08\n09\u200b\n")
    with pytest.raises(DataError, match=r"'\S+/Annotations/09\\u200b.xml': No such file"):
        load("faster_rcnn", "voc_folder", root)
    root = write(tmp_path / "masks", fuzzing.listed_masks())
    (root / "test.txt").write_text("08\n09\u200b\n")
    with pytest.raises(DataError, match=r"test.txt: no image '\S+/images/09\\u200b'"):
        load("fcn8s", "mask_folder", root)
    (root / "test.txt").write_text("08\n09\n")
    (root / "images/09.jpg").unlink()
    (root / "images/09.jpg").symlink_to("/nowhere/09.jpg")
    with pytest.raises(DataError, match=r"test.txt: no image \S+/images/09.jpg, a broken link to /nowhere/09.jpg"):
        load("fcn8s", "mask_folder", root)


@pytest.mark.parametrize(("encoding", "declared"), [
    ("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("utf-16", "utf-16"), ("latin-1", "iso-8859-1"),
    ("cp1252", "windows-1252"), ("cp1251", "windows-1251")])
def test_xml_is_read_in_its_encoding(encoding, declared, tmp_path):
    name = "туз" if encoding == "cp1251" else "café"
    (tmp_path / "a.xml").write_bytes(f'<?xml version="1.0" encoding="{declared}"?>\n<a><name>{name}</name></a>'
                                     .encode(encoding))
    assert read_xml(tmp_path / "a.xml").text("name") == name


@pytest.mark.parametrize(("encoding", "declared", "message"), [
    ("latin-1", "utf-8", r"a.xml:2: not XML \(not well-formed"),
    ("utf-8", "utf-16", r"a.xml:1: not XML \(encoding specified in XML declaration is incorrect"),
    ("utf-8", "gbk", r"a.xml:1: .*; save it as UTF-8"), ("utf-8", "none-such", r"a.xml:1: .*; save it as UTF-8")])
def test_a_wrong_declaration_is_named_with_file_and_line(encoding, declared, message, tmp_path):
    (tmp_path / "a.xml").write_bytes(f'<?xml version="1.0" encoding="{declared}"?>\n<a><name>café</name></a>'
                                     .encode(encoding))
    with pytest.raises(DataError, match=message):
        read_xml(tmp_path / "a.xml")


@pytest.mark.parametrize(("kind", "values", "message"), [
    ("images", {"id": [1]}, "id must be a number or text, but is [1]"),
    ("images", {"file_name": 5}, "file_name must be text, but is 5"),
    ("images", {"file_name": "\0"}, "no image "),
    ("images", {"width": "32"}, 'width must be a number, but is "32"'),
    ("annotations", {"image_id": {"a": 1}}, 'image_id must be a number or text, but is {"a": 1}'),
    ("annotations", {"image_id": True}, "image_id must be a number or text, but is true"),
    ("annotations", {"category_id": [7]}, "category_id must be a number, but is [7]"),
    ("annotations", {"bbox": ["1", 2, 3, 4]}, 'bbox must be four numbers, but is ["1", 2, 3, 4]'),
    ("annotations", {"bbox": [1, 2, float("inf"), 4]}, "bbox must be four numbers, but is [1, 2, Infinity, 4]"),
    ("annotations", {"bbox": [1, 2, 10**400, 4]}, "bbox must be four numbers, but is [1, 2, 1000"),
    ("annotations", {"bbox": None}, "bbox must be four numbers, but is null"),
    ("annotations", {"iscrowd": "0"}, 'iscrowd must be 0 or 1, but is "0"'),
    ("categories", {"name": None}, "name must be text, but is null"),
    ("categories", {"id": "ace"}, "id must be a whole number")])
def test_a_value_of_a_wrong_type_in_coco_json_is_named_with_its_place(kind, values, message, tmp_path):
    root = write(tmp_path, fuzzing.coco())
    content = json.loads((root / "train.json").read_text())
    content[kind][0] |= values
    (root / "train.json").write_text(json.dumps(content, indent=1))
    with pytest.raises(DataError) as error:
        load_coco(root)
    assert str(error.value).startswith(f"{root}/train.json:")
    assert f"({kind} id " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(("content", "message"), [
    ([], "must have a list 'images'"),
    ({"images": [3], "annotations": [], "categories": []}, "number 0 of 'images' must be {...}, but is 3"),
    ({"images": [], "annotations": {}}, "must have a list 'annotations'")])
def test_coco_json_of_a_wrong_shape_is_refused_by_its_file(content, message, tmp_path):
    root = write(tmp_path, fuzzing.coco())
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        load_coco(root)
    assert str(error.value) == f"{root}/train.json: {message}"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_coco_json_with_a_byte_order_mark_is_read(encoding, tmp_path):
    root = write(tmp_path, fuzzing.coco())
    (root / "train.json").write_bytes((root / "train.json").read_bytes().decode().encode(encoding))
    assert sizes(load_coco(root)) == [6, 1, 3]


def load_coco(root: Path):
    return load("faster_rcnn", "coco", root, "data.train_json=train.json", "data.train_images=images",
                "data.test_json=test.json", "data.test_images=images")


def test_files_beside_the_samples_are_counted(tmp_path):
    root = write(tmp_path / "a", fuzzing.image_folder() | {"train/00.png": fuzzing.photo(99), "notes.txt": b"x"})
    assert load("resnet20", "image_folder", root).left_out == {
        "a file outside of the class folders": [str(root / "notes.txt"), str(root / "train/00.png")]}
    for model, data, files in (("tagger", "conll", fuzzing.conll()), ("seq2seq", "pairs", fuzzing.pairs()),
                               ("seq_classifier", "labelled_text", fuzzing.labelled_lines())):
        root = write(tmp_path / data, files | {"more.tsv": b"x"})
        assert load(model, data, root).left_out == {"a file of no split": [str(root / "more.tsv")]}
    root = write(tmp_path / "captions", fuzzing.coco_captions())
    content = json.loads((root / "test.json").read_text())
    del content["annotations"][1]
    (root / "test.json").write_text(json.dumps(content))
    data = load("captioner", "coco_captions", root, "data.train_json=train.json", "data.train_images=images",
                "data.test_json=test.json", "data.test_images=images", "data.min_count=1")
    assert data.left_out == {"a photo without a caption": [str(root / "images/08.png")]}
    assert sum(data.num_samples(split) for split in SPLITS) == 9


def test_a_word_vector_that_is_not_finite_is_refused(tmp_path):
    (tmp_path / "v.txt").write_text("cat 1 2\ndog nan 1\n")
    assert read_word_vectors(tmp_path / "v.txt", {"cat": 0}, 2)[1].tolist() == [[1, 2]]
    with pytest.raises(DataError, match=r"v.txt:2: the vector of 'dog' has a value that is not finite"):
        read_word_vectors(tmp_path / "v.txt", {"dog": 0}, 2)


@pytest.mark.parametrize("raw", [b"", b" \n\t\r\n", b"\xef\xbb\xbf", " \n \n".encode("utf-16")])
def test_a_file_without_a_letter_is_empty(raw, tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(raw)
    for read in (read_text, lambda path: [*read_pieces(path)]):
        with pytest.raises(DataError, match=r"a\.txt: empty$"):
            read(file)


def test_the_name_of_a_photo_may_be_no_unicode_but_not_that_of_a_class_or_a_root(dltrain, tmp_path):
    classes(tmp_path / "in", 12)
    os.rename(tmp_path / "in/cat/00.png", os.fsencode(tmp_path / "in/cat") + b"/\xff.png")
    words = ["model=resnet20", "data=image_folder", "data.root=in", "trainer=smoke", "name=a", "augment=none"]
    assert dltrain(*words)[0] == 0
    code, _, err = dltrain("predict", "run=outputs/a", "input=in/cat")
    assert (code, err) == (0, "")
    records = json.loads((tmp_path / "outputs/a/predictions.json").read_text())
    assert "in/cat/\udcff.png" in {record["file"] for record in records}
    os.rename(tmp_path / "in/cat", os.fsencode(tmp_path / "in") + b"/\xff")
    assert dltrain(*words[:-2], "name=b")[::2] == (
        3, "dltrain: error: in: the name of the class '\\udcff' is no Unicode; rename it\n")
    code, _, err = dltrain(*words[:2], "data.root=in\udcff")
    assert (code, err) == (2, "dltrain: error: 'data.root=in\\udcff': is no Unicode; rename the file or folder, or "
                              "make a link to it\n")


@pytest.mark.parametrize("value", ["\udcff", ["a", "\ud800"], {"é": "\ud800"}, ["é\udcff"]])
def test_what_config_yaml_could_not_give_back_is_refused(value):
    with pytest.raises(UserError, match=r"is no Unicode, which config\.yaml cannot hold$"):
        schema.dump({"class_names": value, "a": 1} if type(value) is not dict else {"a": [value]}, {})
    assert yaml.safe_load(schema.dump({"a": ["é", "\\ud800"]}, {})) == {"a": ["é", "\\ud800"]}
