"""Small runs, and seeded ways in which a file of a run folder is missing, damaged, or holds something else."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from dltrain import trainer
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.config import schema
from dltrain.errors import UserError
from tests.fuzzing import ODD_VALUES

# A run of pictures and one of text, each of six steps in two epochs
PICTURES = ["model=sdresnet56", "model.depth=8", "data.batch_size=32", "trainer.max_epochs=2", "trainer=cpu",
            "data._target_=tests.tiny.FewDigits", "trust=[tests]", "task.optimizer.lr=0.05", "recipe=none",
            "name=pictures"]
TEXT = ["model=char_rnn", "data=text", "data.root=story.txt", "model.hidden=8", "recipe=none", "trainer=cpu",
        "trainer.max_epochs=2", "data.batch_size=4", "data.window=30", "name=text"]
STORY = "".join(f"the {animal} of day {day} is {mood}. " for day in range(24) for animal in ("dog", "cat")
                for mood in ("good", "bad"))
WORDS = {"pictures": PICTURES, "text": TEXT}
HTML = b"<!DOCTYPE html><html><body>404 not found</body></html>"


class Crash(Exception):
    pass


class CrashAtStep4(Checkpointing):
    def on_train_batch_end(self, trainer, *args):
        super().on_train_batch_end(trainer, *args)
        if trainer.global_step == 4:
            raise Crash


def make_runs(folder: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """Finished runs, NAME_done, and such that crashed after step 4 of 6, NAME_half, in the current folder, which is
    `folder`. `call`: a command of dltrain, in this process."""
    (folder / "story.txt").write_text(STORY)
    for name, words in WORDS.items():
        assert call(*words)[0] == 0
        (folder / "outputs" / name).rename(folder / f"{name}_done")
        with mock.patch.object(trainer, "Checkpointing", CrashAtStep4):
            assert call(*words, "trainer.checkpoint_every_steps=1")[0] == 8
        (folder / "outputs" / name).rename(folder / f"{name}_half")
        (folder / f"{name}_half/error.txt").unlink()


def other_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "another archive")
    return file.getvalue()


# faults of whole files


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("no-such-file")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def flip_one_bit(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(raw))


def cut(path: Path, rng: random.Random) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.randrange(1, len(raw))])


WHOLE_FILE: dict[str, Callable[[Path, random.Random], object]] = {
    "missing": lambda path, _: path.unlink(), "empty": lambda path, _: path.write_bytes(b""), "cut": cut,
    "bit flip": flip_one_bit, "html": lambda path, _: path.write_bytes(HTML),
    "other zip": lambda path, _: path.write_bytes(other_zip()),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path, rng: path.write_bytes(rng.randbytes(200)),
    "folder": lambda path, _: make_folder(path), "dangling link": lambda path, _: link_to_nothing(path),
    "own link": lambda path, _: link_to_itself(path)}


# faults inside a file that can still be read


def change_node(root: Any, rng: random.Random, values: list[Any]) -> str:
    """Changes, deletes or adds one entry at any place of nested dicts and lists. Returns what was done."""
    node, place = root, ""
    while True:
        keys = [key for key in node if key != "__class__"] if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            node.update(extra=1) if isinstance(node, dict) else node.append(rng.choice(values))
            return f"{place} gets an entry"
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node, place = node[key], f"{place}.{key}"
            continue
        action = rng.choice(["change", "change", "change", "delete", "add"])
        if action == "delete":
            del node[key]
        elif action == "add":
            node.update(extra=rng.choice(values)) if isinstance(node, dict) else node.append(rng.choice(values))
        else:
            old = node[key]
            node[key] = changed_tensor(old, rng) if torch.is_tensor(old) and rng.random() < 0.8 else rng.choice(values)
        return f"{action} {place}.{key}"


def changed_tensor(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Another shape, dtype or value."""
    kind = rng.choice(["shape", "dtype", "nan", "infinite", "huge", "empty"])
    if kind == "shape":
        return torch.zeros([size + 1 for size in tensor.shape] or [2], dtype=tensor.dtype)
    if kind == "empty":
        return tensor.flatten()[:0]
    if kind == "dtype":
        return tensor.to(rng.choice([torch.float64, torch.float16, torch.int8, torch.bool, torch.complex64]))
    value = {"nan": float("nan"), "infinite": float("-inf"), "huge": 3e38}[kind]
    changed = tensor.flatten().float().clone()
    changed[:1] = value
    return changed.reshape(tensor.shape)


def change_yaml(path: Path, rng: random.Random) -> str:
    config = yaml.load(path.read_text(encoding="utf-8"), Loader=schema.Loader)
    comments = {key: line.comment for key, line in schema.assignments(path).items()}
    with_rules = rng.random() < 0.5
    done = change_node(config, rng, ODD_VALUES)
    text = yaml.safe_dump(config)
    if with_rules and isinstance(config, dict):
        with suppress(UserError):  # text that is no Unicode
            text = schema.dump(config, comments)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return done


def change_json(path: Path, rng: random.Random) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    done = change_node(content, rng, ODD_VALUES)
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return done


def change_rows(path: Path, rng: random.Random) -> str:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = rng.choice(rows)
    action = rng.choice(["value", "fewer", "more", "delete"])
    if action == "value":
        row[rng.randrange(len(row))] = rng.choice(["", "nan", "x", "-1", "1e999", '"', "9" * 400])
    elif action == "fewer":
        row.pop()
    elif action == "more":
        row.append("1")
    else:
        rows.remove(row)
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return f"{action} in a row"


def change_checkpoint(path: Path, rng: random.Random) -> str:
    checkpoint = torch.load(path, weights_only=True)
    values = [value for value in ODD_VALUES if value != "\ud800"] + [torch.zeros(2), {"a": torch.ones(1)}]
    done = change_node(checkpoint, rng, values)
    if rng.random() < 0.1:
        checkpoint = rng.choice([[checkpoint], checkpoint.get("state_dict", 1), torch.zeros(3), 5])
        done = "another whole"
    torch.save(checkpoint, path)
    return done


INSIDE = {".yaml": change_yaml, ".json": change_json, ".csv": change_rows, ".ckpt": change_checkpoint}


def damage(run: Path, rng: random.Random, of_important: float = 0.6) -> tuple[str, str]:
    """Damages one file of a folder; with that probability a config or a checkpoint. Returns its name and what was done.
    """
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    important = [path for path in files if path.name in ("config.yaml", "best.ckpt", "last.ckpt")]
    path = rng.choice(important if important and rng.random() < of_important else files)
    name = str(path.relative_to(run))
    if path.suffix in INSIDE and rng.random() < 0.6:
        return name, INSIDE[path.suffix](path, rng)
    kind = rng.choice(list(WHOLE_FILE))
    if path.stat().st_size:
        WHOLE_FILE[kind](path, rng)
    return name, kind


def fresh_copy(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    shutil.copytree(source, target)
