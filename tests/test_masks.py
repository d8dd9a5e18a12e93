"""Photos with masks from files: what is read, what is refused by file; masks as pictures."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import VOCSegmentation

from dltrain.batches import IGNORED_PIXEL
from dltrain.data import voc
from dltrain.data.datamodule import SPLITS
from dltrain.data.images import read_image
from dltrain.data.mask_folders import CamVid, MaskFolder
from dltrain.data.segmentation import PhotosWithMasks, read_mask
from dltrain.data.voc import VocMasks
from dltrain.drawing.masks import compare_masks, draw_legend, draw_mask, palette_image, voc_palette
from dltrain.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photos of two sizes with masks of three classes, grey and by palette, with pixels that are not scored."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate("abcdef"):
        size = (40, 32) if number % 2 else (32, 40)
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(root / f"images/{name}.jpg")
        mask = rng.integers(0, 3, (size[1], size[0]), dtype=np.uint8)
        mask[:3] = IGNORED_PIXEL
        png = palette_image(torch.from_numpy(mask)) if number % 3 else Image.fromarray(mask)
        png.save(root / f"masks/{name}.png")
    (root / "classes.txt").write_text("background\ncat\ndog\n")
    return root


MasksT = TypeVar("MasksT", bound=PhotosWithMasks)


def load_masks(root: Path, kind: type[MasksT], **changes: Any) -> MasksT:
    keys: dict[str, Any] = {"root": str(root), "channels": 3, "image_px": 40, "num_classes": None, "val_share": 0.25,
                            "num_workers": 0, "batch_size": 2}
    data = kind(**{**keys, **changes})
    data.load()
    return data


def load_folder(root: Path, **changes: Any) -> MaskFolder:
    return load_masks(root, MaskFolder, test_share=0.3, **changes)


def test_mask_values_are_classes_and_padding_is_not_scored(folder):
    data = load_folder(folder)
    assert data.class_names == ["background", "cat", "dog"]
    assert {split: data.num_samples(split) for split in SPLITS} == {"train": 3, "val": 1, "test": 2}
    assert data.padded_size == (40, 40)
    pair = data.pairs["train"][0]
    batch = next(data.read("train", [torch.tensor([0])]))
    batch.check(3)
    truth = np.asarray(Image.open(pair.mask))
    h, w = truth.shape
    assert batch.masks[0, :h, :w].numpy().tolist() == truth.tolist()
    assert (batch.masks[0, h:] == IGNORED_PIXEL).all()
    assert (batch.masks[0, :, w:] == IGNORED_PIXEL).all()
    assert (batch.images[0, :, h:] == 0).all()
    assert torch.equal(batch.images[0, :, :h, :w], read_image(pair.image, 3))
    half = load_folder(folder, image_px=20)
    assert half.padded_size == (20, 20)
    small = next(half.read("train", [torch.tensor([0])])).masks[0]
    assert {*small.unique().tolist()} == {0, 1, 2, IGNORED_PIXEL}, "no value between two classes"
    assert data.describe() == "3 train, 1 val, 2 test, 3 classes, 40 x 40 px"


def test_images_of_two_sizes_become_one_batch_as_in_training(folder):
    data = load_folder(folder, image_px=20)
    batch = data.encode_inputs([data.read_input(folder / f"images/{name}.jpg") for name in "ab"])
    batch.check(3)
    assert batch.images.shape == (2, 3, 20, 20)
    assert (batch.masks == IGNORED_PIXEL).all()
    (split, index), = [(split, index) for split in SPLITS for index, pair in enumerate(data.pairs[split])
                       if pair.image.stem == "a"]
    assert torch.equal(batch.images[0], next(data.read(split, [torch.tensor([index])])).images[0])


def test_lists_give_the_splits(folder):
    (folder / "train.txt").write_text("a\nb.jpg\n\nc\n")
    (folder / "val.txt").write_text("d\n")
    (folder / "test.txt").write_text("e\nf\n")
    data = load_folder(folder)
    assert {split: [pair.image.stem for pair in data.pairs[split]] for split in SPLITS} == {
        "train": ["a", "b", "c"], "val": ["d"], "test": ["e", "f"]}
    (folder / "test.txt").write_text("e\n../f\n")
    with pytest.raises(DataError, match=r"test.txt:2: '../f' must be a name, not a path"):
        load_folder(folder)
    (folder / "test.txt").write_text("nobody\n")
    with pytest.raises(DataError, match=r"test.txt: no image .*images/nobody"):
        load_folder(folder)
    (folder / "test.txt").unlink()
    (folder / "train.txt").unlink()
    with pytest.raises(DataError, match=r"photos: has val.txt, but no train.txt"):
        load_folder(folder)


def test_a_bad_mask_is_named_by_its_file(folder):
    def message_for(name: str, image: Image.Image) -> str:
        image.save(folder / f"masks/{name}.png")
        with pytest.raises(DataError) as raised:
            load_folder(folder)
        return str(raised.value)

    good = Image.open(folder / "masks/a.png")
    good.load()
    for image, fault in (
            (Image.new("L", (40, 32)), "must be 32 x 40 px as a.jpg, but is 40 x 32"),
            (Image.new("L", (32, 40), 7), "has 7, but there are 3 classes, from 0 on; 255 is not scored"),
            (Image.new("RGB", (32, 40)), "a mask must have one value of 8 bits per pixel (grey or palette), but is "
                                         "RGB")):
        assert message_for("a", image) == f"1 of 6 masks do not fit: {folder}/masks/a.png: {fault}"
    (folder / "masks/a.png").unlink()
    with pytest.raises(DataError, match=r"no mask .*a.png"):
        load_folder(folder)
    good.save(folder / "masks/a.png")
    (folder / "masks/b.png").write_text("no picture")
    with pytest.raises(DataError, match=r"b.png: cannot identify"):
        load_folder(folder)
    (folder / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"no classes.txt; it must name each mask value"):
        load_folder(folder)
    (folder / "classes.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes.txt:1: not utf-8 .*; save it as UTF-8"):
        load_folder(folder)
    (folder / "classes.txt").write_text("a\n")
    for file in (folder / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"images: no images"):
        load_folder(folder)


def test_camvids_value_for_pixels_that_are_not_scored_is_replaced(tmp_path):
    for split in SPLITS:
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        Image.new("RGB", (32, 24)).save(tmp_path / split / "f1.jpg")
        Image.fromarray(np.arange(32 * 24, dtype=np.uint8).reshape(24, 32) % 12).save(tmp_path / f"{split}annot/f1.png")
    data = load_masks(tmp_path, CamVid, num_classes=11)
    mask = next(data.read("test", [torch.tensor([0])])).masks[0]
    assert mask[0, 10:13].tolist() == [10, IGNORED_PIXEL, 0]
    assert len(data.class_names) == 11


def test_masks_of_voc_that_are_missing_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"VOC2012 is not in .*: put VOCdevkit/VOC2012 of"):
        load_masks(tmp_path, VocMasks, num_classes=21, download=False)

    def download(*args: object, **keys: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(voc.torchvision.datasets, "VOCSegmentation", download)
    with pytest.raises(DataError, match=r"and cannot be downloaded \(no network\): put VOC"):
        load_masks(tmp_path, VocMasks, num_classes=21, download=True)


def test_lists_and_palettes_of_voc_are_read(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    for inner in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / inner).mkdir(parents=True)
    for name in ("x1", "x2", "x3"):
        Image.new("RGB", (30, 20)).save(root / f"JPEGImages/{name}.jpg")
        mask = palette_image(torch.tensor([[15] * 29 + [IGNORED_PIXEL]] * 20))
        mask.save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("x1\nx2\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("x3\n")
    data = load_masks(tmp_path, VocMasks, num_classes=21, download=False)
    assert data.class_names[15] == "person"
    assert next(data.read("test", [torch.tensor([0])])).masks[0, 0].tolist() == [15] * 29 + [IGNORED_PIXEL]
    reference = VOCSegmentation(str(tmp_path), "2012", "val")[0][1]
    assert np.asarray(reference).tolist() == read_mask(root / "SegmentationClass/x3.png").tolist()


def test_vocs_colours_are_the_published_ones():
    """The first colours of the development kit's map: background, aeroplane, bicycle, bird, boat, ..., tvmonitor."""
    palette = voc_palette().tolist()
    assert palette[:6] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert palette[20] == [0, 64, 128]
    assert palette[255] == [224, 224, 192]


def test_pictures_show_each_class_in_its_colour():
    image, names = torch.full((3, 64, 64), 100, dtype=torch.uint8), ["background", "cat", "dog"]
    mask = torch.zeros(64, 64, dtype=torch.long)
    mask[:32] = 2
    overlay = draw_mask(image, mask, names)
    assert overlay.shape[2] == 256
    assert overlay[:, 200, 5].tolist() == [100, 100, 100]
    assert overlay[:, 5, 5].tolist() == [45, 115, 45]
    truth = mask.clone()
    truth[:, 32:] = IGNORED_PIXEL
    sheet = compare_masks([(image, truth, mask)], names)
    column, white = 192 + 6, voc_palette()[IGNORED_PIXEL].tolist()
    assert sheet[:, 10, 6 + column + 10].tolist() == [0, 128, 0]
    assert sheet[:, 10, 6 + column + 180].tolist() == white
    assert sheet[:, 10, 6 + 2 * column + 10].tolist() == [0, 128, 0]
    assert sheet[:, 10, 6 + 2 * column + 180].tolist() == white


def test_the_legend_has_the_colour_of_each_class_on_as_many_lines_as_needed():
    names = ["background", "cat", "dog"]
    wide, narrow = draw_legend([1, 2], names, 300), draw_legend([1, 2], names, 60)
    assert wide.shape == (3, 24, 300)
    assert narrow.shape == (3, 44, 60)
    assert wide[:, 10, 12].tolist() == narrow[:, 10, 12].tolist() == [128, 0, 0]
    assert narrow[:, 30, 12].tolist() == [0, 128, 0]


def test_a_palette_image_has_the_classes_as_values(tmp_path):
    mask = torch.tensor([[0, 15, IGNORED_PIXEL]])
    palette_image(mask).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == mask.tolist()
    colours = np.asarray(Image.open(tmp_path / "mask.png").convert("RGB"))
    assert colours[0].tolist() == voc_palette()[mask[0]].tolist()


def binary_folder(root, ignored=0.0, classes="background\nlesion\n", value=255):
    """Eight photos with masks of 0 and `value`; `ignored`: share of the rows of value 255 at the bottom."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(8):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(root / f"images/{index}.png")
        mask = np.zeros((32, 32), np.uint8)
        mask[4:12, 4:20] = value
        mask[32 - round(32 * ignored) :] = 255
        Image.fromarray(mask).save(root / f"masks/{index}.png")
    (root / "classes.txt").write_text(classes)
    return root


def test_masks_of_0_and_255_are_refused_or_mapped(tmp_path):
    """255 is not scored, so a model that says 'background' everywhere would have a mean IoU of 1."""
    root = binary_folder(tmp_path / "a")
    with pytest.raises(DataError, match=r"12.5% of the pixels of the training masks are 255, which is not scored, and "
                                        r"none is of 'lesion'; data.mask_values=\[0,255\] reads 255 as 'lesion', "
                                        r"data.mask_values=\[0,1\] leaves it not scored"):
        load_folder(root)
    data = load_folder(root, mask_values=[0, 255])
    (batch,) = data.read("train", [torch.arange(2)])
    assert torch.bincount(batch.masks.flatten()).tolist() == [2 * (1024 - 128), 2 * 128]
    assert load_folder(root, mask_values=[0, 1]).describe().endswith("; no training pixel of lesion")


def test_masks_that_are_mostly_not_scored_are_refused_unless_the_values_are_stated(tmp_path):
    root = binary_folder(tmp_path / "a", ignored=0.55, value=1)
    with pytest.raises(DataError, match=r"56.2% of the pixels of the training masks are 255, which is not scored; "):
        load_folder(root)
    load_folder(root, mask_values=[0, 1])
    load_folder(binary_folder(tmp_path / "b", ignored=0.4, value=1))


@pytest.mark.parametrize("values", [[0], [0, 0], [0, 256], [0, 1, 2]])
def test_each_class_has_one_value(values, tmp_path):
    with pytest.raises(DataError, match=r"must be 2 different values from 0 to 255, one for each of background, les"):
        load_folder(binary_folder(tmp_path / "a"), mask_values=values)


def test_values_may_be_in_any_order(tmp_path):
    root = binary_folder(tmp_path / "a", value=7)
    with pytest.raises(DataError, match=r"has 7, but there are 2 classes, from 0 on"):
        load_folder(root)
    (batch,) = load_folder(root, mask_values=[7, 0]).read("train", [torch.arange(1)])
    assert int((batch.masks == 0).sum()) == 128
    with pytest.raises(DataError, match=r"has 7, but there are 2 classes, of the values \[3,0\]"):
        load_folder(root, mask_values=[3, 0])
