"""Faults of the machine and of the data: rows 18, 21, 24 and 30 to 36."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain import out_of_memory
from dltrain.build import build_data
from dltrain.config.free_keys import FREE
from dltrain.data.datamodule import SPLITS
from dltrain.data.decodable import Record, inspect
from dltrain.data.images import read_image
from dltrain.data.segmentation import PhotosWithMasks, read_mask
from dltrain.data.voc import read_xml
from dltrain.errors import DataError
from dltrain.image_files import NO_FILE, find_images
from dltrain.tasks.classification import Classification
from tests.conftest import TINY
from tests.test_resume import crash_at

HUGE = 10**15  # bytes, more than any machine gives


def cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB")


# What raises an error of memory, and what the line must say of it.
SHORTAGES: dict[str, tuple[Callable[[], object], str]] = {
    "cpu": (lambda: torch.empty(HUGE, dtype=torch.uint8), "out of memory at batch 32 in a training step "
                                                          "(1000000.0 GB requested, "),
    "numpy": (lambda: np.empty(HUGE), "out of memory at batch 32 in a training step (7.11 PiB requested, "),
    "python": (lambda: bytearray(HUGE), "out of memory at batch 32 in a training step ("),
    "gpu": (cuda, "out of GPU memory at batch 32 in a training step (20.00 GiB requested); "),
}


def one_line(err: str) -> str:
    """The line of an error, without a traceback and without the advice to report a bug."""
    assert err.startswith("dltrain: error: "), err
    assert err.count("\n") == 1
    assert "traceback" not in err.lower()
    return err


def stop_after(step: int, dltrain: Callable[..., object], *words: str) -> None:
    """The command, killed after a step."""
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == step)
        dltrain(*words)


def fail_at(step: int, fault: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step that runs out of memory."""
    original = Classification.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == step:
            fault()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", training_step)


def row_18(dltrain, monkeypatch, fault: str = "cpu") -> None:
    raises, message = SHORTAGES[fault]
    with monkeypatch.context() as patched:
        fail_at(4, raises, patched)  # of 9, after the first epoch
        code, _, err = dltrain("name=a", *TINY)
    assert code == 6, err
    assert message in one_line(err)
    assert "try data.batch_size=16, with trainer.accumulate_batches=2" in err
    assert "dltrain resume run=outputs/a continues from its checkpoint" in err
    assert Path("outputs/a/checkpoints/last.ckpt").is_file()
    if fault != "cpu":  # continuing is the same for all
        return
    code, out, err = dltrain("name=a", *TINY)
    assert (code, err) == (0, "")
    assert "resuming outputs/a from step 3 of 9" in out


@pytest.mark.parametrize("fault", SHORTAGES)
def test_row_18_out_of_memory_in_training(fault, dltrain, monkeypatch, without_figures):
    """Where memory runs out, on a GPU or not, one line names the batch size to try; the checkpoint is kept."""
    row_18(dltrain, monkeypatch, fault)


def test_row_18_control(dltrain, monkeypatch, without_figures):
    monkeypatch.setattr("dltrain.reporting.shortage_of", lambda error: None)
    with pytest.raises(AssertionError):
        row_18(dltrain, monkeypatch)


def photo_folder(root: Path, per_class: int = 5) -> Path:
    """Ten photos of two classes."""
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = np.random.default_rng(label * 100 + number).integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


FOLDER = ["model=resnet20", "model.depth=8", "data=image_folder", "data.root=photos", "data.image_px=8", "augment=none",
          "trainer=smoke", "data.batch_size=4", "name=a"]


def row_18_b(dltrain, monkeypatch, place: str) -> None:
    """`place`: where it runs out, in a run that reads photos in threads."""
    def fault(*_, **__):
        bytearray(HUGE)

    photo_folder(Path("photos"))
    target, message = {
        "scan": ("dltrain.data.decodable.has_damaged_exif", "out of memory while the data were loaded"),
        "statistics": ("dltrain.augment.pipeline.Augment.fit", "out of memory in the statistics of the images"),
        "thread": ("dltrain.data.images.to_pixels", "out of memory at batch 2 while a batch was read"),
        "evaluation": ("dltrain.tasks.classification.Classification.evaluation_step",
                       "out of memory at batch 2 in evaluation"),
        "save": ("dltrain.checkpoints.DurableIO.save_checkpoint", "out of memory"),
    }[place]
    monkeypatch.setattr(target, fault)
    code, _, err = dltrain(*FOLDER)
    assert code == 6, err
    assert message in one_line(err)
    if place == "evaluation":
        assert "trainer.eval_batch_size=1" in err


@pytest.mark.parametrize("place", ["scan", "statistics", "thread", "evaluation", "save"])
def test_row_18_b_out_of_memory_elsewhere(place, dltrain, monkeypatch, without_figures):
    """The line says what was being done: reading data, statistics, evaluation, saving."""
    row_18_b(dltrain, monkeypatch, place)


def test_row_18_b_control(dltrain, monkeypatch, without_figures):
    monkeypatch.setattr("dltrain.reporting.shortage_of", lambda error: None)
    with pytest.raises(AssertionError):
        row_18_b(dltrain, monkeypatch, "thread")


def raised(error: Exception) -> str:
    try:
        raise error
    except Exception as caught:
        shortage = out_of_memory.shortage_of(caught)
        return shortage.message() if shortage else ""


@pytest.mark.parametrize(("error", "message"), [
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                  "are out of shared memory. Please try to raise your shared memory limit."), "out of shared memory; "),
    (RuntimeError("unable to open shared memory object </torch_12_3> in read-write mode: No space left on device (28)"),
     "out of shared memory; start the container with --shm-size=8g"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 9 GB). Tried to allocate 2.00 GB on "
                  "private pool."), "out of GPU memory (2.00 GB requested); "),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of GPU memory; "),
    (MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback"), "out of memory ("),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory ("),
    (RuntimeError("can't start new thread"), "out of threads; use a smaller data.num_workers"),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ""),
    (OSError(errno.ENOSPC, "No space left on device"), ""),
    (ValueError("shared memory limit"), "")])
def test_row_18_c_errors_of_workers_and_devices(error, message):
    """Errors of memory of worker processes, of Apple's and NVIDIA's libraries and of threads are recognised."""
    assert raised(error).startswith(message) if message else not raised(error)


def row_21(dltrain, monkeypatch) -> None:
    """A digit takes 64 bytes and its label 8; two workers read two batches of 32 ahead each, a fifth is in use."""
    with monkeypatch.context() as patched:
        patched.setattr("os.statvfs", lambda path: os.statvfs_result((1024, 1024, 64, 9, 9, 9, 9, 9, 0, 255)))
        code, _, err = dltrain("name=a", *TINY, "data._target_=tests.tiny.SharedDigits")
    assert code == 6, err
    assert ("/dev/shm is too small: 5 batches of data.batch_size=32 samples wait there and need 0.0 MB, but 0.0 MB are "
            "free; start the container with --shm-size=1g, or use a smaller data.num_workers") in one_line(err)
    assert not Path("outputs/a").exists()


def test_row_21_shared_memory_is_too_small(dltrain, monkeypatch):
    """Where worker processes need more of /dev/shm than is free, a run ends before its first step with both numbers."""
    row_21(dltrain, monkeypatch)


def test_row_21_control(dltrain, monkeypatch, without_figures):
    monkeypatch.setattr("dltrain.build.check_shared_memory", lambda *_: None)
    with pytest.raises(AssertionError):
        row_21(dltrain, monkeypatch)


def row_24(dltrain) -> None:
    for words in (["trainer=gpu"], ["trainer=gpu", "trainer.devices=2"], ["bench", "trainer=gpu"]):
        code, _, err = dltrain(*words, "model.depth=8")
        assert code == 6, err
        assert "trainer.accelerator=gpu: torch sees no GPU; " in one_line(err)
        assert "use trainer.accelerator=cpu or auto" in err
    assert dltrain("trainer.precision=8")[0] == 2
    assert dltrain("trainer.devices=0")[0] == 2


def test_row_24_device_is_not_there(dltrain, monkeypatch):
    """A device, a precision or a number of devices that is not there is named with its key before the data are read
    and before processes are started."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("dltrain.run.build_data", None)
    monkeypatch.setattr("dltrain.processes.watch", None)
    row_24(dltrain)


def test_row_24_control(dltrain, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("dltrain.run.set_up_device", lambda keys: None)
    with pytest.raises(AssertionError):
        row_24(dltrain)


def row_24_b(dltrain) -> None:
    """A run of which a GPU would have made these files, stopped after step 4."""
    stop_after(4, dltrain, "name=a", *TINY)
    folder = Path("outputs/a")
    folder.joinpath("config.yaml").write_text(folder.joinpath("config.yaml").read_text().replace(
        "accelerator: cpu", "accelerator: gpu"))
    folder.joinpath("environment.json").write_text('{"device": "NVIDIA H100"}')
    last = folder / "checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=True)
    saved["optimizer_states"][0]["param_groups"][0]["fused"] = True  # as optim.py sets it on a GPU
    torch.save(saved, last)
    code, _, err = dltrain("resume", "run=outputs/a")
    assert (code, "use trainer.accelerator=cpu or auto" in err) == (6, True)
    code, _, err = dltrain("resume", "run=outputs/a", "trainer.accelerator=cpu")
    assert code == 0, err
    log = folder.joinpath("log.txt").read_text()
    assert "with other values from here on: trainer.accelerator=cpu (gpu before)" in log
    assert "outputs/a was trained on NVIDIA H100 and continues on cpu, " in log
    folder.joinpath("environment.json").write_text('{"device": "NVIDIA H100"}')
    code, _, err = dltrain("eval", "run=outputs/a", "trainer.accelerator=cpu")
    assert code == 0, err
    assert "was trained on NVIDIA H100 and is measured on cpu, " in folder.joinpath("log.txt").read_text()


def test_row_24_b_a_run_of_a_gpu_continues_without_one(dltrain, without_figures):
    """A run that was trained on a GPU is continued and measured without one by trainer.accelerator=cpu, with a warning
    that its last bits may differ."""
    row_24_b(dltrain)


def test_row_24_b_control(dltrain, without_figures, monkeypatch):
    monkeypatch.setattr("dltrain.commands.resume.FREE", FREE - {"trainer.accelerator"})
    with pytest.raises(AssertionError):
        row_24_b(dltrain)


BAD_PHOTOS: dict[str, tuple[bytes, str]] = {
    "cut.png": (b"", "image file is truncated"), "page.jpg": (b"<html>", "cannot identify image file"),
    "empty.png": (b"", "empty")}


def load(config, *words: str):
    """The data of a config, read to the end."""
    data = build_data(config(*words, "trainer=cpu"))
    for split in SPLITS:
        list(data.read(split, [torch.arange(data.num_samples(split))]))
    return data


def spoil_photos(folder: Path, names: tuple[str, ...] = tuple(BAD_PHOTOS)) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (20, 24, 3), np.uint8)).save(whole, "PNG")
    for name in names:
        content = whole.getvalue()[:300] if name == "cut.png" else BAD_PHOTOS[name][0]
        (folder / name).write_bytes(content)


def row_30(dltrain) -> None:
    spoil_photos(photo_folder(Path("photos"), per_class=8) / "cat")
    for number in range(9):
        (Path("photos/dog") / f"x{number}.jpg").write_bytes(b"no image")
    words = [*FOLDER, "data.val_share=0.3", "data.test_share=0.3"]
    code, _, err = dltrain(*words)
    first, *lines = err.splitlines()
    assert code == 3, err
    assert first.startswith("dltrain: error: 12 of 28 images cannot be read: photos/cat/")
    assert first.endswith("; and 9 more; data.on_bad=skip leaves them out")
    assert lines[7:] == ["  all 12 are listed in outputs/a/bad_data.txt"]
    listed = Path("outputs/a/bad_data.txt").read_text().splitlines()
    assert [f"  {fault}" for fault in listed[3:10]] == lines[:7]
    assert sorted(listed) == [
        "photos/cat/cut.png: image file is truncated", "photos/cat/empty.png: empty",
        "photos/cat/page.jpg: cannot identify image file",
        *(f"photos/dog/x{number}.jpg: cannot identify image file" for number in range(9))]
    code, out, err = dltrain(*words, "data.on_bad=skip")
    assert (code, err) == (0, "")
    assert "left out: 12 x a photo that cannot be read" in out


def test_row_30_bad_photos_are_all_named(dltrain, without_figures):
    """Photos that are cut, empty or no images are all named before the first step; data.on_bad=skip counts them."""
    row_30(dltrain)


def test_row_30_control(dltrain, monkeypatch, without_figures):
    monkeypatch.setattr("dltrain.data.decodable.inspect", lambda path: (Record(1, 1, str(path), False), ""))
    with pytest.raises(AssertionError):
        row_30(dltrain)


def row_30_b(config, root: Path) -> None:
    """A pipe, from which a reader would wait for ever, and a folder that has the name of an image."""
    os.mkfifo(photo_folder(root) / "cat/pipe.png")
    (root / "dog/folder.png").mkdir()
    data = load(config, "model=resnet20", "data=image_folder", f"data.root={root}", "data.image_px=8")
    assert sum(map(data.num_samples, SPLITS)) == 10
    assert data.left_out == {NO_FILE: [f"{root}/cat/pipe.png"]}
    assert inspect(root / "cat/pipe.png") == (None, NO_FILE)
    with pytest.raises(DataError, match=r"pipe\.png: no regular file"):
        find_images(f"{root}/cat/pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: no regular file"):
        read_mask(root / "cat/pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: no regular file"):
        read_xml(root / "cat/pipe.png")


def test_row_30_b_what_is_no_file_is_not_opened(config, tmp_path):
    """A pipe or a folder with the name of an image is counted or refused, and nothing waits for it."""
    row_30_b(config, tmp_path)


def test_row_30_b_control(config, tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.data.datamodule.scan_images", lambda folder, _: (sorted(folder.glob("*.png")), {}))
    with pytest.raises(DataError, match=r"pipe\.png"):
        row_30_b(config, tmp_path)


def huge_png() -> bytes:
    """The header of a picture of 60,000 x 60,000 pixels, beyond Pillow's limit."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def row_31(config, root: Path) -> None:
    """A picture of one colour, so that its mean is known in every form."""
    photo_folder(root)
    colour = (200, 100, 50)
    plain = Image.new("RGB", (24, 20), colour)
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    turned = Image.Exif()
    turned[0x0112] = 6
    forms = {"rgb.png": (plain, colour), "rgba.png": (plain.convert("RGBA"), colour),
             "palette.png": (plain.convert("P", palette=Image.Palette.ADAPTIVE), colour),
             "cmyk.tif": (plain.convert("CMYK"), colour), "grey.png": (plain.convert("L"), (grey,) * 3),
             "16.png": (Image.fromarray(np.full((20, 24), 25_700, np.uint16)), (100,) * 3)}
    for name, (image, expected) in forms.items():
        image.save(root / "cat" / name)
        assert read_image(root / "cat" / name, 3).flatten(1).double().mean(1).tolist() == pytest.approx(expected, abs=1)
    plain.save(root / "cat/turned.jpg", exif=turned)
    assert tuple(read_image(root / "cat/turned.jpg", 3).shape) == (3, 24, 20)
    plain.save(root / "cat/moving.gif", save_all=True, append_images=[Image.new("RGB", (24, 20))])
    assert tuple(read_image(root / "cat/moving.gif", 3).shape) == (3, 20, 24)
    words = ["model=resnet20", "data=image_folder", f"data.root={root}", "data.image_px=8"]
    assert load(config, *words).num_samples("train") > 0
    (root / "cat/huge.png").write_bytes(huge_png())
    with pytest.raises(DataError, match=r"huge\.png: Image size \(3600000000 pixels\) exceeds limit"):
        load(config, *words)


def test_row_31_every_kind_of_pixel(config, tmp_path):
    """16-bit, grey, palette, CMYK, transparent, turned and moving pictures are read right; too large ones are named."""
    row_31(config, tmp_path)


def test_row_31_control(config, tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.data.images.to_8_bits", lambda image: image)
    with pytest.raises(AssertionError):
        row_31(config, tmp_path)


def row_32(config, root: Path) -> None:
    for split in ("train", "val", "test"):
        photo_folder(root / split, per_class=3)
    words = ["model=resnet20", "data=image_folder", f"data.root={root}", "data.image_px=8"]
    (root / "train/.hidden").mkdir()
    (root / "train/cat/._0.png").write_bytes(b"\0\5\26\7")
    assert load(config, *words).class_names == ["cat", "dog"]
    (root / "val/dog").rename(root / "dog")
    with pytest.raises(DataError, match="val: no folder for: dog"):
        load(config, *words)
    (root / "val/dog").mkdir()
    (root / "val/cat").rename(root / "cat")
    (root / "val/cat").mkdir()
    with pytest.raises(DataError, match=r"2 of 2 classes are empty: .*val/cat: no images .*val/dog: no images"):
        load(config, *words)


def test_row_32_classes_of_the_splits(config, tmp_path):
    """A class that a split lacks, or that is empty, is named; hidden files and folders are no classes."""
    row_32(config, tmp_path)


def test_row_32_control(config, tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.data.image_folder.is_hidden", lambda name: False)
    with pytest.raises((AssertionError, DataError)):
        row_32(config, tmp_path)


def row_33(dltrain) -> None:
    Path("empty").mkdir()
    for root, message in (("nowhere", "data.root=nowhere: no such folder; it must have {train,val,test}/<class>/*"),
                          ("empty", "data.root=empty: must have at least two class folders, but has 0")):
        code, _, err = dltrain(*FOLDER, f"data.root={root}")
        assert code == 3, err
        assert message in one_line(err)
        assert not Path("outputs/a").exists()


def test_row_33_no_samples(dltrain):
    """A folder that is missing or has no samples ends the run before it begins, and leaves no run folder."""
    row_33(dltrain)


def test_row_33_control(dltrain, monkeypatch):
    monkeypatch.setattr("dltrain.data.image_folder.ImageFolder.load", lambda self: None)
    with pytest.raises(AssertionError):
        row_33(dltrain)


def annotated_photos(root: Path, boxes: dict[int, str], name: str = "cat") -> list[str]:
    """Eight photos of 24 x 20 with an xml each, whose line 3 is a box. Returns the words that read them."""
    root.mkdir()
    for number in range(8):
        corners = boxes.get(number, "2 2 9 9").split()
        sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners,
                                                                            strict=True))
        Image.new("RGB", (24, 20), (number, 0, 0)).save(root / f"{number}.png")
        owner = name if number in boxes else "cat"
        (root / f"{number}.xml").write_text("<annotation>\n<size><width>24</width><height>20</height></size>\n<object>"
                                            f"<name>{owner}</name><bndbox>{sides}</bndbox></object>\n</annotation>")
    return ["model=faster_rcnn", "data=voc_folder", f"data.root={root}"]


def row_34(config, root: Path) -> None:
    words = annotated_photos(root / "boxes", {0: "2 2 9 9"}, name="lorry")
    (root / "boxes/classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"0\.xml:3: class 'lorry' is none of cat, dog"):
        load(config, *words)
    folder = root / "masks"
    for number in range(10):
        for name, value in (("images", number), ("masks", 7 if number < 4 else number % 2)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 24), value, np.uint8)).save(folder / name / f"{number}.png")
    (folder / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(DataError, match=r"4 of 10 masks do not fit: .*\.png: has 7, but there are 2 classes") as error:
        load(config, "model=fcn8s", "data=mask_folder", f"data.root={folder}")
    assert len(error.value.faults) == 4  # type: ignore[attr-defined]


def test_row_34_labels_that_are_no_classes(config, tmp_path):
    """A label that is no class is named with its file before the first step."""
    row_34(config, tmp_path)


def test_row_34_control(config, tmp_path, monkeypatch):
    original = PhotosWithMasks.check_pair
    monkeypatch.setattr(PhotosWithMasks, "check_pair", lambda self, pair: (*original(self, pair)[:-1], ""))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        row_34(config, tmp_path)


BAD_BOXES = {0: "nan 2 9 9", 1: "9 2 2 9", 2: "2 2 90 9", 3: "2 9 9 9", 4: "2 2 9 x"}


def row_35(config, root: Path) -> None:
    words = annotated_photos(root / "bad", BAD_BOXES)
    with pytest.raises(DataError, match=r"^5 of 8 photos have faults: ") as error:
        load(config, *words)
    faults = sorted(error.value.faults)  # type: ignore[attr-defined]
    assert [fault.split("bad/")[1].split(";")[0] for fault in faults] == [
        "0.xml:3: xmin must be a number, but is 'nan'", "1.xml:3: xmax 2 <= xmin 9",
        "2.xml:3: the box 2, 2, 90, 9 lies outside of 24 x 20", "3.xml:3: ymax 9 <= ymin 9",
        "4.xml:3: ymax must be a number, but is 'x'"]
    repaired = annotated_photos(root / "repair", {1: "9 2 2 9", 2: "2 2 90 9"})
    assert load(config, *repaired, "data.bad_boxes=repair").num_repaired == {"clipped": 1, "dropped": 1}
    lists = root / "lists/ImageSets/Main"
    for folder in (lists, root / "lists/Annotations"):
        folder.mkdir(parents=True)
    (lists / "train.txt").write_text("../../secret\n")
    (lists / "val.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"train\.txt:1: '\.\./\.\./secret' must be a name, not a path"):
        load(config, "model=faster_rcnn", "data=voc_folder", f"data.root={root / 'lists'}")


def test_row_35_bad_boxes_are_all_named(config, tmp_path):
    """Boxes that are reversed, empty, outside or no numbers are all named by file and line; repairs are counted."""
    row_35(config, tmp_path)


def test_row_35_control(config, tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.data.detection.read_each", lambda items, read, noun: [read(item) for item in items])
    with pytest.raises(AssertionError):
        row_35(config, tmp_path)


def row_36(config, root: Path) -> None:
    photo_folder(root / "photos", per_class=6)
    lines = [f"{name}/{number}.png\tthe {name} number {number} runs" for name in ("cat", "dog") for number in range(6)]
    file = root / "photos/captions.txt"
    words = ["model=captioner", "data=captions_file", f"data.root={file}", "data.image_px=32"]
    file.write_text("\ufeff" + "\n".join(lines) + "\n")  # with a byte order mark
    assert sum(map(load(config, *words).num_samples, SPLITS)) == 12
    file.write_text("\n".join([*lines, "cat/0.png\t ", "cat/1.png\t", lines[0]]) + "\n")
    with pytest.raises(DataError, match=r"^3 captions are bad: ") as error:
        load(config, *words)
    assert sorted(fault.partition("captions.txt")[2] for fault in error.value.faults) == [  # type: ignore[attr-defined]
        ":13: the caption is empty", ":14: the caption is empty",
        f":15: 0.png has this caption already, at {file}:1"]
    assert load(config, *words, "data.bad_captions=drop").num_dropped == 3
    file.write_bytes("\n".join(lines).encode() + b"\ncat/0.png\t\xff\n")
    with pytest.raises(DataError, match=r"captions\.txt:13: not utf-8 \(byte 0xff at offset"):
        load(config, *words)
    pairs = root / "pairs.txt"
    pairs.write_text("".join(f"one {number}\tun {number}\n" for number in range(20)) + "two\nthree\t\n")
    with pytest.raises(DataError, match=r"pairs\.txt: 2 of 22 lines are no pairs: \S+:21: .*; \S+:22: "):
        load(config, "model=seq2seq", "data=pairs", f"data.root={pairs}")
    pairs.write_text("\n \n")
    with pytest.raises(DataError, match=r"pairs\.txt: empty"):
        load(config, "model=seq2seq", "data=pairs", f"data.root={pairs}")


def test_row_36_bad_texts(config, tmp_path):
    """Texts that are not UTF-8, empty files, empty captions and lines without a pair are named by file and line."""
    row_36(config, tmp_path)


def test_row_36_control(config, tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.data.captioning.CaptionedPhotos.refuse_or_count", lambda *_: None)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        row_36(config, tmp_path)
