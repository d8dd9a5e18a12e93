"""Small data sets of every kind that people have as files, and ways in which such files are broken or odd."""

from __future__ import annotations

import codecs
import io
import json
import os
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

Files = dict[str, bytes]  # by their path below the folder of a data set
NAMES = [f"{index:02d}" for index in range(10)]
ODD_TEXTS = ["", " ", "\t", "\0", "\ufeff", "\u200b", "\u2028", "\x85", "\x1c", "\x0b", "\u202e", "\ud800",
             "é" * 300, "../a", "/etc/x", "a\nb", "日本語", "😀", "0", "-1", "nan", "Infinity", "1e999", "9" * 5000,
             "-9" * 40, "0x1f", "1,5", "<>&"]
ODD_VALUES: list[object] = [None, True, False, [], {}, [[]], {"a": 1}, 0, -1, 1.5, 10**30, float("nan"), float("inf"),
                            *ODD_TEXTS]


# valid data sets


@cache
def photo(number: int, suffix: str = "png", orientation: int = 1) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    tag = Image.Exif()
    tag[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "JPEG"}.get(suffix, suffix), exif=tag)
    return file.getvalue()


def photos(folder: str) -> Files:
    return {f"{folder}/{name}.{'jpg' if index % 2 else 'png'}": photo(index, "jpg" if index % 2 else "png",
                                                                      6 if index == 3 else 1)
            for index, name in enumerate(NAMES)}


def image_folder() -> Files:
    return {f"{split}/{label}/{index}.{suffix}": photo(100 * number + index + 10 * (label == "dog"), suffix)
            for number, (split, count) in enumerate((("train", 4), ("val", 2), ("test", 2)))
            for label in ("cat", "dog") for index in range(count) for suffix in ("png" if index else "jpg",)}


def unsplit_folder() -> Files:
    return {f"{label}/{index}.png": photo(index + 10 * (label == "dog")) for label in ("cat", "dog")
            for index in range(6)}


def mask(number: int) -> bytes:
    file = io.BytesIO()
    size = (24, 32) if number == 3 else (32, 24)
    Image.fromarray(np.random.default_rng(number).integers(0, 2, size[::-1], dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def mask_folder() -> Files:
    masks = {f"masks/{name}.png": mask(index) for index, name in enumerate(NAMES)}
    return photos("images") | masks | {"classes.txt": b"sky\nroad\n"}


def listed_masks() -> Files:
    return mask_folder() | {"train.txt": lines(NAMES[:6]), "val.txt": lines(NAMES[6:8]), "test.txt": lines(NAMES[8:])}


def voc_folder() -> Files:
    objects = "".join(f"<object>\n<name>{name}</name>\n<difficult>0</difficult>\n<bndbox>\n<xmin>{x}</xmin>\n<ymin>2"
                      f"</ymin>\n<xmax>{x + 9}</xmax>\n<ymax>12</ymax>\n</bndbox>\n</object>\n"
                      for name, x in (("ace", 3), ("king", 8)))
    return photos("JPEGImages") | {
        f"Annotations/{name}.xml": f'<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n{objects}</annotation>\n'
        .encode() for name in NAMES} | {
        "ImageSets/Main/train.txt": lines(NAMES[:6]), "ImageSets/Main/val.txt": lines(NAMES[6:8]),
        "ImageSets/Main/test.txt": lines(NAMES[8:])}


def coco_files(entry: Callable[[int], dict[str, object]], names: list[str], first: int, with_size: bool) -> bytes:
    images = [{"id": index, "file_name": f"{name}.{'jpg' if int(name) % 2 else 'png'}"} | (
        {"width": 24 if name == "03" else 32, "height": 32 if name == "03" else 24} if with_size else {})
        for index, name in enumerate(names, start=first)]
    annotations = [{"id": 10 * index, "image_id": index, **entry(index)} for index in range(first, first + len(names))]
    categories = [{"id": 1, "name": "ace"}, {"id": 7, "name": "king"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}, indent=1).encode()


def coco() -> Files:
    def box(index: int) -> dict[str, object]:
        return {"category_id": 7 if index % 2 else 1, "bbox": [2, 3, 10.5, 8], "iscrowd": index % 3 // 2}

    return photos("images") | {"train.json": coco_files(box, NAMES[:7], 1, True),
                               "test.json": coco_files(box, NAMES[7:], 40, True)}


def coco_captions() -> Files:
    def caption(index: int) -> dict[str, object]:
        return {"caption": f"a dog of {index} runs"}

    return photos("images") | {"train.json": coco_files(caption, NAMES[:7], 1, False),
                               "test.json": coco_files(caption, NAMES[7:], 40, False)}


def caption_lines() -> Files:
    return photos("images") | {"c.tsv": lines([f"images/{name}.{'jpg' if int(name) % 2 else 'png'}\ta dog runs {verb}"
                                               for name in NAMES for verb in ("fast", "home")])}


def caption_csv() -> Files:
    rows = [f'{name}.{"jpg" if int(name) % 2 else "png"},"a dog, {verb}"' for name in NAMES for verb in ("red", "big")]
    return photos("images") | {"captions.txt": lines(["image,caption", *rows])}


def labelled_lines() -> Files:
    return {f"{split}.tsv": lines([f"{label}\t{split} day {index} is {label}" for index in range(count)
                                   for label in ("good", "bad")])
            for split, count in (("train", 12), ("val", 3), ("test", 3))}


def label_files() -> Files:
    return {f"{label}.txt": lines([f"a {label} day {index}" for index in range(12)]) for label in ("good", "bad")}


def conll() -> Files:
    return {f"{split}.conllu": "".join(f"# id {split}{index}\n1\tThe\tthe\tDET\n2\t{split}{index}\tx\tNOUN\n\n"
                                       for index in range(count)).encode()
            for split, count in (("train", 9), ("dev", 3), ("test", 3))}


def pairs() -> Files:
    return {f"{split}.tsv": lines([f"a day {split} {index}\tein Tag {split} {index}" for index in range(count)])
            for split, count in (("train", 9), ("val", 3), ("test", 3))}


def parallel() -> Files:
    return {f"{split}.{language}": lines([f"{word} {split} {index}" for index in range(count)])
            for split, count in (("train", 9), ("val", 3), ("test", 3))
            for language, word in (("en", "a"), ("de", "ein"))}


def text() -> Files:
    return {f"{name}.txt": lines([f"the {name} line {index} of a text" for index in range(40)]) for name in "ab"}


def vectors() -> Files:
    return {"vectors.txt": lines([f"{word} {index}.5 -0.25 1e-3" for index, word in enumerate(("dog", "cat", "runs"))])}


def lines(texts: list[str]) -> bytes:
    return ("\n".join(texts) + "\n").encode()


# faults of bytes


def flip(rng: random.Random, raw: bytes) -> bytes:
    array = bytearray(raw)
    for _ in range(rng.choice([1, 1, 3, 20])):
        array[rng.randrange(len(array))] = rng.randrange(256)
    return bytes(array)


def cut(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw))]


def delete(rng: random.Random, raw: bytes) -> bytes:
    start = rng.randrange(len(raw))
    return raw[:start] + raw[start + rng.choice([1, 5, 50]) :]


def insert(rng: random.Random, raw: bytes) -> bytes:
    place = rng.randrange(len(raw))
    return raw[:place] + rng.choice(ODD_TEXTS).encode("utf-8", "surrogatepass") + raw[place:]


def empty(rng: random.Random, raw: bytes) -> bytes:
    return rng.choice([b"", b"\n", b" \r\n\t", codecs.BOM_UTF8, b"\0" * 64])


# faults of texts


def on_lines(change: Callable[[random.Random, list[bytes], int], None]) -> Callable[[random.Random, bytes], bytes]:
    def changed(rng: random.Random, raw: bytes) -> bytes:
        rows = raw.split(b"\n")
        change(rng, rows, rng.randrange(len(rows)))
        return b"\n".join(rows)

    return changed


def encode(rng: random.Random, raw: bytes) -> bytes:
    encoding = rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "cp037"])
    written = raw.decode("utf-8", "replace").replace("day", rng.choice(["day", "dày", "д"]))
    if rng.random() < 0.5:
        written = written.replace("utf-8", rng.choice(["utf-16", "latin-1", "windows-1252", "gbk", "none-such", ""]))
    return written.encode(encoding, "replace")


def end_lines(rng: random.Random, raw: bytes) -> bytes:
    return raw.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\n\r", b" \n", b"\xc2\xa0\n", b"\xe2\x80\xa8"]))


def separate(rng: random.Random, raw: bytes) -> bytes:
    old = rng.choice([b"\t", b",", b" ", b"\"", b"<", b">", b":"])
    return raw.replace(old, rng.choice([b" ", b"\t\t", b",", b";", b"", b"|"]), rng.choice([-1, 1]))


def change_number(rng: random.Random, raw: bytes) -> bytes:
    numbers = list(re.finditer(rb"\d+", raw))
    if not numbers:
        return raw
    match = rng.choice(numbers)
    new = rng.choice([*ODD_TEXTS, "-5", "99999", "0.5"]).encode("utf-8", "surrogatepass")
    return raw[: match.start()] + new + raw[match.end() :]


def change_json(rng: random.Random, raw: bytes) -> bytes:
    """Another value, of any type, or none, or an entry twice, at any place."""
    try:
        node = root = json.loads(raw)
    except ValueError:
        return cut(rng, raw)
    while True:
        keys = list(node) if type(node) is dict else list(range(len(node)))
        if not keys:
            break
        key = rng.choice(keys)
        if type(node[key]) in (dict, list) and node[key] and rng.random() < 0.85:
            node = node[key]
            continue
        action = rng.choice(["change", "change", "delete", "again"])
        if action == "change":
            node[key] = rng.choice(ODD_VALUES)
        elif action == "delete":
            del node[key]
        elif type(node) is list:
            node.append(node[key])
        break
    return json.dumps(root, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5).encode(
        "utf-8", "surrogatepass")


BYTES = [flip, cut, delete, insert, empty]
TEXTS = [*BYTES, encode, end_lines, separate, change_number, change_number,
         on_lines(lambda rng, rows, at: rows.insert(rng.randrange(len(rows)), rows[at])),
         on_lines(lambda rng, rows, at: rows.__delitem__(at)),
         on_lines(lambda rng, rows, at: rng.shuffle(rows)),
         on_lines(lambda rng, rows, at: rows.insert(at, rng.choice(ODD_TEXTS).encode("utf-8", "surrogatepass")))]


# faults of pictures


def draw(rng: random.Random, raw: bytes) -> bytes:
    """A good picture of an odd mode, size or format."""
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
    image = Image.new(mode, rng.choice([(1, 1), (32, 24), (24, 32), (400, 1), (1, 300)]))
    kind = {"F": "TIFF", "CMYK": "JPEG"}.get(mode) or rng.choice(["PNG", "TIFF", "GIF", "BMP", "WEBP"])
    file = io.BytesIO()
    try:
        image.save(file, kind)
    except (OSError, ValueError):  # a mode that the format does not have
        image.convert("RGB").save(file, kind)
    return file.getvalue()


def add_exif(rng: random.Random, raw: bytes) -> bytes:
    """A block of EXIF data with an orientation of any type and value, cut anywhere."""
    file = io.BytesIO()
    block = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01" + bytes([rng.randrange(14), 0, rng.randrange(4), 0, 0, 0]) + (
        rng.randbytes(4)) + b"\x0f\x01\x02\0\x03\0\0\0ab\0\0" + bytes(4)
    Image.new("RGB", (32, 24), "red").save(file, "JPEG", exif=block[: rng.randrange(7, len(block) + 1)])
    return file.getvalue()


PICTURES = [*BYTES, draw, draw, add_exif]


def write_broken(root: Path, files: Files, rng: random.Random) -> None:
    """Writes the data set with one to three faults."""
    files = dict(files)
    names = [name for name in files if not name.endswith((".png", ".jpg"))]
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice(names) if names and rng.random() < 0.75 else rng.choice(list(files))
        path, raw = root / name, files[name]
        if rng.random() < 0.08:
            replace(rng, path, root / rng.choice(list(files)))
            continue
        is_picture = name.endswith((".png", ".jpg"))
        faults = PICTURES if is_picture else [*TEXTS, *[change_json] * 12] if name.endswith(".json") else TEXTS
        if path.is_file() and raw:
            files[name] = rng.choice(faults)(rng, raw)
            path.write_bytes(files[name])


def replace(rng: random.Random, path: Path, other: Path) -> None:
    """Something else than a file, or a file of another name."""
    action = rng.choice(["gone", "broken link", "own link", "link", "copy", "folder", "odd name", "odd bytes"])
    if action == "copy" and other.is_file():
        path.with_name(f"copy{path.suffix}").write_bytes(other.read_bytes())
        return
    if not path.is_file():
        return
    raw = path.read_bytes()
    path.unlink()
    if action == "broken link":
        path.symlink_to("no-such-file")
    elif action == "own link":
        path.symlink_to(path)
    elif action == "link" and other.exists():
        path.symlink_to(other)
    elif action == "folder":
        path.mkdir()
    elif action == "odd name":
        path.with_name(rng.choice(["é ü.PNG", "a\nb.png", ".hidden", "\u200b.jpg", "x", "a,b.txt"])).write_bytes(raw)
    elif action == "odd bytes":
        with open(os.fsencode(path.parent) + b"/\xff" + os.fsencode(path.suffix), "wb") as file:
            file.write(raw)
