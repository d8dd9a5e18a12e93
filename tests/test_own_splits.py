"""The splits of every data set of own files: one that the files name is that split, another one is held out of train,
first the test split and then val."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dltrain.build import build_data
from dltrain.config.compose import compose
from dltrain.data.datamodule import SPLITS, DataModule

XML = ("<annotation><object><name>{}</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
       "</object></annotation>")
COUNT = 20  # samples of a split that the files name
Names = dict[str, str]  # a split and its name in the files, "" where they name none


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.stem)) + COUNT * len(path.parts)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


def stems(split: str) -> list[str]:
    return [f"{split}{index:02d}" for index in range(COUNT)]


def image_folder(root: Path, names: Names) -> list[str]:
    for split, name in names.items():
        for index, stem in enumerate(stems(split)):
            picture(root / name / ("cat", "dog")[index % 2] / f"{stem}.png")
    return ["data=image_folder", "model=resnet20"]


def mask_folder(root: Path, names: Names) -> list[str]:
    (root / "masks").mkdir(parents=True)
    (root / "classes.txt").write_text("sky\nroad\n")
    mask = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) % 2, (32, 1)))
    for split, name in names.items():
        for stem in stems(split):
            picture(root / f"images/{stem}.png")
            mask.save(root / f"masks/{stem}.png")
        if name:
            (root / f"{name}.txt").write_text("\n".join(stems(split)))
    return ["data=mask_folder", "model=fcn8s"]


def voc_lists(root: Path, names: Names) -> list[str]:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, name in names.items():
        for stem in stems(split):
            picture(root / f"JPEGImages/{stem}.png")
            (root / f"Annotations/{stem}.xml").write_text(XML.format("cat"))
        (root / f"ImageSets/Main/{name or 'train'}.txt").write_text("\n".join(stems(split)))
    return ["data=voc_folder", "model=faster_rcnn"]


def xml_beside_photos(root: Path, names: Names) -> list[str]:
    for split, name in names.items():
        for stem in stems(split):
            picture(root / name / f"{stem}.png").with_suffix(".xml").write_text(XML.format("cat"))
    return ["data=voc_folder", "model=faster_rcnn"]


def xml_in_a_folder(root: Path, names: Names) -> list[str]:
    for split, name in names.items():
        (root / "annotations" / name).mkdir(parents=True)
        for stem in stems(split):
            picture(root / "images" / name / f"{stem}.png")
            (root / "annotations" / name / f"{stem}.xml").write_text(XML.format("cat"))
    return ["data=voc_folder", "model=faster_rcnn"]


def write_json(file: Path, photos: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": f"{stem}.png"} for number, stem in enumerate(photos)]
    notes = [{"id": image["id"], "image_id": image["id"], "category_id": 7, "bbox": [2, 2, 18, 18],
              "caption": "a dog runs"} for image in images]
    file.write_text(json.dumps({"images": images, "annotations": notes, "categories": [{"id": 7, "name": "dog"}]}))


def coco_keys(root: Path, names: Names) -> list[str]:
    words = []
    for split in SPLITS:
        if split not in names:
            words.append(f"data.{split}_json=null")
            continue
        for stem in stems(split):
            picture(root / f"photos/{stem}.png")
        write_json(root / f"{split}.json", stems(split))
        words += [f"data.{split}_json={split}.json", f"data.{split}_images=photos"]
    return ["data=coco", "model=faster_rcnn", *words]


def coco_captions(root: Path, names: Names) -> list[str]:
    return ["data=coco_captions", "model=captioner", "data.min_count=1", *coco_keys(root, names)[2:]]


def coco_folders(root: Path, names: Names) -> list[str]:
    for split, name in names.items():
        for stem in stems(split):
            picture(root / (name or "train") / f"{stem}.png")
        write_json(root / (name or "train") / "_annotations.coco.json", stems(split))
    return ["data=coco", "model=faster_rcnn", "data.train_json=null"]


def flickr8k(root: Path, names: Names) -> list[str]:
    lines = ["image,caption"]
    for split, name in names.items():
        lines += [f"{picture(root / f'images/{stem}.png').name},a dog runs" for stem in stems(split)]
        if name:
            (root / f"{split}.txt").write_text("\n".join(f"{stem}.png" for stem in stems(split)))
    (root / "captions.txt").write_text("\n".join(lines))
    return ["data=flickr8k", "model=captioner", "data.min_count=1"]


def write_lines(root: Path, names: Names, ending: str, line: Callable[[str], str]) -> None:
    root.mkdir(parents=True)
    for split, name in names.items():
        (root / f"{name or 'train'}{ending}").write_text("\n".join(map(line, stems(split))) + "\n")


def labelled_text(root: Path, names: Names) -> list[str]:
    write_lines(root, names, ".tsv", lambda stem: f"{'even' if int(stem[-1]) % 2 else 'odd'}\tword {stem}")
    return ["data=labelled_text", "model=seq_classifier"]


def conll(root: Path, names: Names) -> list[str]:
    write_lines(root, names, ".conllu", lambda stem: f"1\t{stem}\t_\tTAG{stem[-2:]}\n")
    return ["data=conll", "model=tagger"]


def pairs(root: Path, names: Names) -> list[str]:
    write_lines(root, names, ".tsv", lambda stem: f"{stem} a\tb {stem}")
    return ["data=pairs", "model=seq2seq"]


def parallel_files(root: Path, names: Names) -> list[str]:
    write_lines(root, names, ".en", lambda stem: f"{stem} a")
    write_lines(Path(f"{root}-de"), names, ".de", lambda stem: f"b {stem}")
    for file in Path(f"{root}-de").iterdir():
        shutil.copy(file, root)
    return ["data=pairs", "model=seq2seq", "data.languages=[en,de]"]


LAYOUTS = [image_folder, mask_folder, voc_lists, xml_beside_photos, xml_in_a_folder, coco_keys, coco_captions,
           coco_folders, flickr8k, labelled_text, conll, pairs, parallel_files]


def load(root: Path, words: list[str]) -> DataModule:
    if words[0] in ("data=coco", "data=coco_captions"):
        words = [*words, "data.val_share=0.1"]
    return build_data(compose([*words, f"data.root={root}"]).job_config())


@pytest.fixture
def names_of(monkeypatch):
    """names_of[split]: what a message would call the samples of the split that was read last."""
    names: dict[str, list[str]] = {}
    settle = DataModule.settle_leaks

    def note(self, splits, identify, name):
        names.update({split: [name(sample) for sample in splits[split]] for split in SPLITS})
        return settle(self, splits, identify, name)

    monkeypatch.setattr(DataModule, "settle_leaks", note)
    return names


def origins(names: list[str]) -> set[str]:
    """The splits whose names the samples bear; each sample is there once."""
    origin = [re.findall(r"(train|val|test)(\d\d)", name)[-1] for name in names]
    assert len({*origin}) == len(names)
    return {split for split, _ in origin}


@pytest.mark.parametrize("write", LAYOUTS)
def test_what_the_files_do_not_name_is_held_out_of_train(write, names_of, tmp_path):
    """A tenth of the 20 training samples for the test, then a tenth of the others for val."""
    for names, counts, held_out in (({"train": "train", "test": "test"}, [18, 2, 20], ["val"]),
                                    ({"train": "train", "val": "val"}, [18, 20, 2], ["test"]),
                                    ({"train": "train"}, [16, 2, 2], ["test", "val"]),
                                    ({"train": ""}, [16, 2, 2], ["test", "val"])):
        root = tmp_path / "".join(names.values()) / "own"
        data = load(root, write(root, names))
        assert [data.num_samples(split) for split in SPLITS] == counts, names
        assert data.held_out == held_out
        for split in SPLITS:
            assert origins(names_of[split]) <= {split if split in names else "train"}
