"""Checkpoints and files of weights: damaged, with other contents, or with code in them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file

from tests import fuzzing
from tests.faults import damaged_runs, hostile
from tests.faults.damaged_runs import PICTURES
from tests.faults.feeding import Case, printed, weights_of
from tests.faults.input_base import TRAIN, intact_of, verb_case


def checkpoint(canary: Path, base: Path, rng: Random, damages: bool) -> Case:
    """A checkpoint of a run, damaged, with other contents, or with code in it."""
    verb, name, run, words, result = verb_case(base, rng, "eval last predict resume same from_run export replay")
    if not damages:
        return Case("", words, result)
    read = run / "checkpoints" / ("last.ckpt" if verb in ("last", "resume", "same", "replay") else "best.ckpt")
    file = read if rng.random() < 0.85 else rng.choice(sorted(run.glob("checkpoints/*.ckpt")))
    what = damage_tensors(file, rng, canary)
    is_harmless = is_other_state(file, intact_of(base, name, verb, file), verb)
    return Case(f"{verb}, {file.name}: {what}", words, result, is_harmless)


def damage_tensors(file: Path, rng: Random, canary: Path) -> str:
    """Damages a file of torch, or puts code into it."""
    draw = rng.random()
    if draw < 0.4:
        return damaged_runs.change_checkpoint(file, rng)
    if draw < 0.6:
        content = torch.load(file, weights_only=True)
        is_new = rng.random() < 0.5
        content[rng.choice(list(content))] = hostile.Touch(canary)
        torch.save(content, file, _use_new_zipfile_serialization=is_new)
        return f"code in it, {'zip' if is_new else 'the format before zip'}"
    if draw < 0.7:
        file.write_bytes(pickle.dumps(hostile.Touch(canary), protocol=rng.choice([2, 4, 5])))
        return "a pickle with code"
    kind = rng.choice(list(damaged_runs.WHOLE_FILE))
    damaged_runs.WHOLE_FILE[kind](file, rng)
    return kind


def is_other_state(file: Path, intact: Path, verb: str) -> bool:
    """Whether a checkpoint is a good one with other finite numbers, of the same names, shapes and types: nobody can
    tell. A run that goes on also reads the state of the optimizer and of the loops, where the same holds."""
    try:
        now, then = (torch.load(path, weights_only=True)["state_dict"] for path in (file, intact))
        return is_alike(now, then) and (verb in ("resume", "same") or not all(
            torch.equal(value, then[name]) for name, value in now.items()))
    except Exception:  # whatever is wrong with it, it is not a good one
        return False


def is_alike(now: Mapping[str, torch.Tensor], then: Mapping[str, torch.Tensor]) -> bool:
    """Whether all are finite, and of the same names, shapes and types."""
    forms, others = ({name: (value.shape, value.dtype) for name, value in tensors.items()} for tensors in (now, then))
    return forms == others and all(bool(value.isfinite().all()) for value in now.values())


def weights(canary: Path, base: Path, rng: Random, damages: bool) -> Case:
    """A file of weights, as people get them from others."""
    suffix = rng.choice(["pth", "pt", "ckpt", "safetensors", "safetensors"])
    file = Path(f"w.{suffix}")
    shutil.copy(base / f"weights/{file}", file)
    is_eval = rng.random() < 0.4
    words = [*(["eval", *PICTURES[:-1]] if is_eval else [*TRAIN, "trainer.max_epochs=1"]),
             f"model.pretrained.weights={file}"]
    result = printed if is_eval else weights_of(Path("outputs/new"))
    what = ""
    if damages:
        what = damage_safetensors(file, rng) if suffix == "safetensors" else damage_tensors(file, rng, canary)
    return Case(f"{'eval' if is_eval else 'train'}, {file}: {what}", words, result,
                damages and is_other_weights(file, base / f"weights/{file}"))


def damage_safetensors(file: Path, rng: Random) -> str:
    draw, raw = rng.random(), file.read_bytes()
    if draw < 0.4:
        tensors = load_file(file)
        what = damaged_runs.change_node(tensors, rng, [torch.zeros(2), torch.ones(3, 3)])
        save_file({name: value.clone().contiguous() for name, value in tensors.items() if torch.is_tensor(value)}, file)
        return what
    if draw < 0.7:
        end = 8 + int.from_bytes(raw[:8], "little")
        header = fuzzing.change_json(rng, raw[8:end])
        file.write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])
        return "another header"
    if draw < 0.75:
        file.write_bytes(pickle.dumps({"a": 1}))
        return "a pickle"
    kind = rng.choice(list(damaged_runs.WHOLE_FILE))
    damaged_runs.WHOLE_FILE[kind](file, rng)
    return kind


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    content = torch.load(file, weights_only=True)
    return dict(content.get("state_dict", content))


def is_other_weights(file: Path, intact: Path) -> bool:
    """Whether it is a good file of the same names and shapes with other finite numbers: nobody can tell."""
    try:
        return is_alike(tensors_of(file), tensors_of(intact))
    except Exception:  # whatever is wrong with it
        return False
