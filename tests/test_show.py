"""`dltrain show` draws the first training batch of every kind of problem; what it shows is compared with the files."""


import numpy as np
import pytest
import torch
from PIL import Image

from dltrain.build import build_task
from dltrain.drawing.boxes import COLOURS
from dltrain.drawing.masks import voc_palette
from dltrain.drawing.sequences import join_symbols, join_tagged
from dltrain.tasks.classification import Classification
from tests.test_voc import write_photo


@pytest.mark.parametrize(("words", "file", "shown_labels"), [
    (["model=plain20", "model.depth=8", "data._target_=tests.tiny.FewDigits"], "augmented_batch-of-digits.png", 64),
    (["model=seq_classifier"], "batch-of-digits_rows.png", 16)])
def test_labelled_pictures_and_rows_of_vectors(words, file, shown_labels, dltrain):
    """72 px and a line of 21 for each of eight columns."""
    code, out, err = dltrain("show", *words)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"outputs/show/{file}"
    with Image.open(f"outputs/show/{file}") as picture:
        assert picture.size == (6 + 8 * 78, 6 + shown_labels // 8 * 99)
        assert len(colours_of(picture)) > 10


def shown(dltrain, *words: str) -> list[str]:
    """The lines about the samples, sorted."""
    code, out, err = dltrain("show", *words)
    assert (code, err) == (0, "")
    return sorted(out.splitlines()[:-1])


def test_texts_are_lines_with_their_targets(dltrain, tmp_path):
    """Ten words are common enough to be known; the names are not."""
    (tmp_path / "pairs.tsv").write_text("".join(f"{name} runs\the runs {name}\n" for name in "abcdefghij"))
    lines = shown(dltrain, "model=seq2seq", "data=pairs", "data.root=pairs.tsv")
    assert lines == ["<unk> runs -> he runs <unk>"] * 8
    lines = shown(dltrain, "model=seq2seq", "data=pairs", "data.root=pairs.tsv", "data.min_count=1")
    assert all(line[0] == line[-1] and line[1:-1] == " runs -> he runs " for line in lines)

    (tmp_path / "tagged").mkdir()
    (tmp_path / "tagged/train.txt").write_text("".join(f"He\tPRON\nruns\tV{index % 2}\n\n" for index in range(10)))
    lines = shown(dltrain, "model=tagger", "data=conll", "data.root=tagged", "data.word_column=1", "data.tag_column=2")
    assert {*lines} == {"He/PRON runs/V0", "He/PRON runs/V1"}
    assert len(lines) == 8

    (tmp_path / "texts").mkdir()
    for label in ("glad", "sad"):
        (tmp_path / f"texts/{label}.txt").write_text(f"I am {label}.\n" * 10)
    lines = shown(dltrain, "model=seq_classifier", "data=labelled_text", "data.root=texts", "data.words=false")
    assert {*lines} == {'glad\t"i am glad."', 'sad\t"i am sad."'}
    assert len(lines) == 16

    (tmp_path / "text.txt").write_text("ab\n" * 400)
    lines = shown(dltrain, "model=char_rnn", "data=text", "data.root=text.txt", "data.window=6", "data.batch_size=4")
    assert {*lines} <= {'"ab\\nab\\n"', '"b\\nab\\na"', '"\\nab\\nab"'}
    assert len(lines) == 4


def test_symbols_that_have_no_names_are_numbers():
    special = ["<pad>", "<unk>", "<start>", "<end>"]
    words, letters = [*special, "a", "cat"], [*special, "a", "\n"]
    assert [join_symbols([4, 5, 1], symbols) for symbols in (words, letters, [])] == [
        "a cat <unk>", r'"a\n<unk>"', "4 5 1"]
    assert [join_tagged([4, 4, 5], ["X", "X", "Y"], symbols) for symbols in (words, letters, [])] == [
        "a/X a/X cat/Y", r'"aa"/X "\n"/Y', "4/X 4/X 5/Y"]


def colours_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {*map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist())}


def rgb(code: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(code[1:]))


def test_boxes_lie_on_the_photo_where_the_file_has_them(dltrain, tmp_path):
    """A photo of 60 x 40 is enlarged five times; the box is symmetric, so that a flip does not move it."""
    for name in "abcd":
        write_photo(tmp_path / "photos", name, [("cat", (11, 11, 50, 30), 0)])
    (tmp_path / "photos/ImageSets/Main/train.txt").write_text("a\nb\nc\nd\n")
    code, _, err = dltrain("show", "model=faster_rcnn", "model.backbone.depth=8", "data=voc_folder", "data.root=photos")
    assert (code, err) == (0, "")
    with Image.open("outputs/show/augmented_batch-of-voc_folder.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    (rows, columns), frame = np.nonzero((pixels == rgb(COLOURS[0])).all(2)), 6
    first = columns < 300 + frame
    assert abs(columns[first].min() - frame - 50) <= 1
    assert abs(columns[first].max() - frame - 250) <= 1
    assert abs(rows.min() - frame - 50) <= 1
    assert abs(rows.max() - frame - 150) <= 1


def test_masks_and_captions_are_those_of_the_photos(dltrain, tmp_path):
    for index in range(12):
        Image.new("RGB", (40, 40), (200, 10, 10)).save(tmp_path / f"{index}.png")
    (tmp_path / "captions.tsv").write_text("".join(f"{index}.png\ta red square\n" for index in range(12)))
    words = ["augment=none", "augment.normalize=box"]
    code, _, err = dltrain("show", "model=captioner", "data=captions_file", "data.root=captions.tsv",
                           "data.image_px=40", *words)
    assert (code, err) == (0, "")
    with Image.open("outputs/show/augmented_batch-of-captions_file.png") as picture:
        side = 280  # 40 px enlarged to at least 256
        photo, below = picture.crop((6, 6, 6 + side, 6 + side)), picture.crop((6, 6 + side, 6 + side, 6 + side + 18))
    assert colours_of(photo) == {(200, 10, 10)}
    assert {(0, 0, 0), (255, 255, 255)} <= colours_of(below)

    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    (tmp_path / "own/classes.txt").write_text("sky\nroad\ntree\n")
    mask = np.repeat(np.repeat(np.array([[0, 1], [2, 255]], np.uint8), 16, 0), 16, 1)
    for index in range(12):
        Image.new("RGB", (32, 32), (200, 10, 10)).save(tmp_path / f"own/images/{index}.png")
        Image.fromarray(mask).save(tmp_path / f"own/masks/{index}.png")
    code, _, err = dltrain("show", "model=fcn8s", "data=mask_folder", "data.root=own", *words)
    assert (code, err) == (0, "")
    with Image.open("outputs/show/augmented_batch-of-mask_folder.png") as picture:
        shown_mask = np.asarray(picture.crop((6 + 192 + 6, 6, 6 + 192 + 6 + 192, 6 + 192)))
    expected = voc_palette()[torch.from_numpy(mask).long()].numpy().repeat(6, 0).repeat(6, 1)
    assert np.array_equal(shown_mask, expected)


def test_mixed_labels_have_their_shares(config):
    task = build_task(config("model=plain20", "model.depth=8"))
    assert isinstance(task, Classification)
    assert task.describe(torch.tensor(3)) == "3"
    task.class_names = [f"digit {label}" for label in range(10)]
    assert task.describe(torch.tensor(3)) == "digit 3"
    labels = torch.zeros(10)
    labels[[2, 7]] = torch.tensor([0.25, 0.75])
    assert task.describe(labels) == "digit 7 0.75, digit 2 0.25"
