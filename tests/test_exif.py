"""Photos that EXIF turns: pixels, sizes, boxes and masks are those of the upright photo, or the file is refused."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dltrain.build import build_data
from dltrain.config.compose import compose
from dltrain.data.detection import turn_upright
from dltrain.data.images import read_image
from dltrain.errors import DataError
from dltrain.image_files import image_size, read_header

STORED = (64, 48)
BOX = (16, 12, 40, 24)  # of a red rectangle on the stored pixels: x1, y1, x2, y2


def write_photo(path, orientation, **more):
    """A photo whose EXIF tag says how its stored pixels are to be turned."""
    pixels = np.random.default_rng(orientation).integers(0, 120, (STORED[1], STORED[0], 3), dtype=np.uint8)
    x1, y1, x2, y2 = BOX
    pixels[y1:y2, x1:x2] = (255, 0, 0)
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=tag, **more)
    return path


def red_box(image):
    """(x1, y1, x2, y2) around the red pixels of (3, H, W)."""
    ys, xs = torch.nonzero((image[0] > 200) & (image[1] < 60) & (image[2] < 60)).unbind(1)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_size_and_boxes_are_upright(orientation, tmp_path):
    path = write_photo(tmp_path / "a.png", orientation)
    upright = ImageOps.exif_transpose(Image.open(path))
    image = read_image(path, 3)
    assert torch.equal(image, torch.from_numpy(np.asarray(upright).copy()).permute(2, 0, 1))
    assert image_size(path) == upright.size == (image.shape[2], image.shape[1])
    assert turn_upright([*map(float, BOX)], read_header(path)) == red_box(image)


@pytest.mark.parametrize("tag", [b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00"
                                 b"\x12\x01\x05\x00\x01\x00\x00\x00\xff\xff\xff\x00", b"Exif\x00\x00"])
def test_damaged_exif_data_leave_the_photo_as_it_is_stored(tag, tmp_path):
    Image.new("RGB", STORED, "red").save(tmp_path / "a.jpg", exif=tag)
    assert image_size(tmp_path / "a.jpg") == STORED
    assert read_image(tmp_path / "a.jpg", 3).shape == (3, STORED[1], STORED[0])


def xml(size, box):
    sides = "".join(f"<{name}>{value}</{name}>" for name, value in zip(
        ("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]), strict=True))
    return (f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>\n<object><name>red</name>"
            f"<bndbox>{sides}</bndbox></object></annotation>")


def voc_folder(root, annotate):
    """Twelve photos turned by 90 and by 270 degrees. `annotate`: header, box on the upright photo -> the xml."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    names = [f"p{index:02d}" for index in range(12)]
    for index, name in enumerate(names):
        path = write_photo(root / f"JPEGImages/{name}.jpg", 6 if index % 2 else 8, quality=95)
        header = read_header(path)
        upright = turn_upright([*map(float, BOX)], header)
        (root / f"Annotations/{name}.xml").write_text(annotate(header, [round(value) for value in upright]))
    for split, listed in (("train", names[:8]), ("test", names[8:])):
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(listed))
    return root


def load(root, *more):
    data = build_data(compose(["model=faster_rcnn", "data=voc_folder", f"data.root={root}", *more]).job_config())
    (batch,) = data.read("test", [torch.arange(4)])
    return batch


def assert_boxes_are_on_the_red(batch):
    for image, target in zip(batch.images, batch.targets, strict=True):
        assert target["boxes"].tolist() == [pytest.approx(red_box(image), abs=1.1)]


def test_upright_annotations_are_taken_and_raw_ones_only_if_they_are_said_to_be_raw(tmp_path):
    assert_boxes_are_on_the_red(load(voc_folder(tmp_path / "upright", lambda header, box: xml(header.size, box))))
    raw = voc_folder(tmp_path / "raw", lambda header, box: xml(header.stored, BOX))
    with pytest.raises(DataError, match=r"p00.xml:1: 64 x 48 is the size of p00.jpg before its EXIF turn, .*"
                                        r"data.box_coordinates=raw reads such files"):
        load(raw)
    assert_boxes_are_on_the_red(load(raw, "data.box_coordinates=raw"))
    with pytest.raises(DataError, match=r"48 x 64 is the size of p00.jpg after its EXIF turn"):
        load(tmp_path / "upright", "data.box_coordinates=raw")


def test_a_mask_as_large_as_the_stored_pixels_is_refused_by_name(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("background\nred\n")
    for index in range(6):
        path = write_photo(tmp_path / f"images/{index}.jpg", 6, quality=95)
        (x1, y1, x2, y2), (w, h) = red_box(read_image(path, 3)), image_size(path)
        mask = np.zeros((h, w), np.uint8)
        mask[y1:y2, x1:x2] = 1
        Image.fromarray(mask).save(tmp_path / f"masks/{index}.png")
    words = ["model=fcn32s", "data=mask_folder", f"data.root={tmp_path}", "data.image_px=64"]
    data = build_data(compose(words).job_config())
    (batch,) = data.read("test", [torch.arange(1)])
    red = (batch.images[0, 0] > 200) & (batch.images[0, 1] < 60) & (batch.images[0, 2] < 60)
    assert ((red & (batch.masks[0] == 1)).sum() / (red | (batch.masks[0] == 1)).sum()) > 0.9
    mask = np.zeros((STORED[1], STORED[0]), np.uint8)
    Image.fromarray(mask).save(tmp_path / "masks/3.png")
    with pytest.raises(DataError, match=r"3.png: is 64 x 48 as the stored pixels of 3.jpg, which EXIF turns; it "
                                        r"must be 48 x 64"):
        build_data(compose(words).job_config())
