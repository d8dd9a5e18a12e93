"""Photos, annotations and texts: broken ones of every reader, and small files that stand for more than memory holds."""

from __future__ import annotations

import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import torch

from dltrain.build import build_data
from dltrain.commands.stored import load_config
from dltrain.run_dir import RunDir
from tests import fuzzing
from tests.faults import damaged_runs
from tests.faults.feeding import Case, nothing
from tests.faults.input_base import QUICK, TRAIN, write_files
from tests.fuzzed_readers import READERS, Reader, lost_samples


def predict_photos(base: Path, rng: Random, damages: bool) -> Case:
    """Photos that are given to predict."""
    damaged_runs.fresh_copy(base / "pictures_done", Path("outputs/pictures"))
    files = fuzzing.photos("photos")
    if damages:
        fuzzing.write_broken(Path(), files, rng)
    else:
        write_files(Path(), files)
    return Case("photos", ["predict", "run=outputs/pictures", "input=photos"], nothing)


def data_set(base: Path, rng: Random, damages: bool) -> Case:
    """Photos with labels, masks, boxes (VOC, COCO) or captions, and texts of all kinds."""
    name = rng.choice([name for name, reader in READERS.items() if reader.words])
    reader, root = READERS[name], Path("files")
    on_bad = rng.choice([[], ["data.on_bad=skip"]]) if "image_px" in reader.words else []
    fuzzing.write_broken(root, reader.files, rng) if damages else write_files(root, reader.files)
    model, data, *more = reader.words.split()
    words = [f"model={model}", f"data={data}", f"data.root={root / 'c.tsv' if name == 'captions_file' else root}",
             *more, *on_bad, *QUICK]
    return Case(name, words, nothing, fault=lambda: lost_of(reader, root) if damages else "")


def lost_of(reader: Reader, root: Path) -> str:
    """Samples that neither the run nor its list of what is left out has."""
    config = load_config(RunDir(Path("outputs/new")), {}, ())
    return lost_samples(reader, root, build_data(config))


def zeros_png(width: int, height: int) -> bytes:
    """A black picture of any size, of a few bytes a line."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed = zlib.compress(bytes((width // 8 + 2) * min(height, 2000)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(
        b"IDAT", packed) + chunk(b"IEND", b"")


def laughs_xml(raw: bytes) -> bytes:
    """Entities that stand for more than memory holds."""
    entities = '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 30))
    text = raw.decode().replace("<annotation>", f"<!DOCTYPE annotation [{entities}]>\n<annotation>")
    return text.replace("ace", "&a29;").encode()


def stretched(tensors: dict[str, Any], rng: Random) -> dict[str, Any]:
    """One tensor has 4 bytes in the file, and billions of values."""
    name = rng.choice([name for name, value in tensors.items() if value.is_floating_point()])
    return {**tensors, name: torch.zeros(1).expand(3_000_000_000)}


BOMBS = ["png", "xml", "json", "jsonl", "weights", "checkpoint", "zip", "digits", "line", "rows", "csv"]


def bomb(base: Path, rng: Random, damages: bool) -> Case:
    """A small file that stands for more than memory or time holds."""
    kind, root = rng.choice(BOMBS), Path("files")
    reader = READERS[{"png": "image_folder", "xml": "voc_folder", "json": "coco", "digits": "coco", "line": "text",
                      "rows": "labelled_lines"}.get(kind, "coco_captions")]
    model, data, *more = reader.words.split()
    words = [f"model={model}", f"data={data}", f"data.root={root}", *more, *QUICK]
    files = dict(reader.files)
    if kind in ("weights", "zip"):
        shutil.copy(base / "weights/w.pth", "w.pth")
        words = [*TRAIN, "trainer.max_epochs=1", "model.pretrained.weights=w.pth"]
    elif kind in ("checkpoint", "csv", "jsonl"):
        damaged_runs.fresh_copy(base / "pictures_half", Path("outputs/pictures"))
        words = ["resume", "run=outputs/pictures"]
    if damages:
        if kind == "png":
            files[rng.choice(list(files))] = zeros_png(*rng.choice([(60_000, 60_000), (13_000, 13_000),
                                                                         (2**31 - 1, 1)]))
        elif kind == "xml":
            files["Annotations/03.xml"] = laughs_xml(files["Annotations/03.xml"])
        elif kind == "json":
            files["train.json"] = b'{"images": ' + rng.choice([b"[" * 3_000_000, b'{"a":' * 500_000,
                                                               b"[" + b"[]," * 3_000_000])
        elif kind == "digits":
            number = rng.choice([b"9" * 1_000_000, b"1e999999999"])
            files["train.json"] = files["train.json"].replace(b"10.5", number, 1)
        elif kind == "line":
            symbols = "".join(map(chr, range(0x4E00, 0x5200)))
            files["a.txt"] = rng.choice(["é" * 3_000_000, symbols * 20]).encode()
        elif kind == "rows":
            files["train.tsv"] = b"\n" * 3_000_000 + b"\t".join([b"x"] * 1_000_000)
        elif kind == "weights":
            torch.save(stretched(torch.load("w.pth", weights_only=True), rng), "w.pth")
        elif kind == "zip":
            with zipfile.ZipFile("w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("w/data.pkl", bytes(300_000_000))
        elif kind == "checkpoint":
            path = Path("outputs/pictures/checkpoints/last.ckpt")
            content = torch.load(path, weights_only=True)
            torch.save({**content, "state_dict": stretched(content["state_dict"], rng)}, path)
        elif kind == "csv":
            Path("outputs/pictures/metrics.csv").write_text("step,epoch,train/loss\n" + "1,1,0.5\n" * 2_000_000)
        else:
            Path("outputs/pictures/splits.json").write_text("[" * 2_000_000)
    write_files(root, files)
    return Case(kind, words, nothing)
