"""Kinds of hostile and damaged inputs, each with a command that gets one: configs, stored runs, links, checkpoints,
weights, caches, comparisons, sweeps, and data sets. All are made from a random generator; without damage each is what
the command expects."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import yaml

from dltrain.config import schema
from tests import fuzzing
from tests.faults import damaged_runs, hostile
from tests.faults.feeding import Case, Kind, file_of, nothing, weights_of
from tests.faults.input_base import ALL_VERBS, COMPARISON, LONG, PAYLOAD, PHOTOS, SWEEP, TRAIN, intact_of, verb_case
from tests.faults.input_data import bomb, data_set, predict_photos
from tests.faults.input_tensors import checkpoint, is_other_state, weights


def kinds(canary: Path) -> dict[str, Kind]:
    return {"config of a run": lambda *given: config_of_run(canary, *given),
            "config file": lambda *given: config_file(canary, *given), "run folder": run_folder,
            "link": lambda *given: link(canary, *given), "checkpoint": lambda *given: checkpoint(canary, *given),
            "weights": lambda *given: weights(canary, *given), "cache": cache, "sweep": sweep,
            "comparison": comparison, "photos of predict": predict_photos, "data set": data_set, "bomb": bomb}


def run_folder(base: Path, rng: Random, damages: bool) -> Case:
    """Any file of a run, missing, damaged or with other contents."""
    verb, name, run, words, result = verb_case(base, rng, ALL_VERBS)
    file, what = damaged_runs.damage(run, rng, of_important=0.2) if damages else ("", "")
    is_harmless = file.endswith(".ckpt") and is_other_state(run / file, intact_of(base, name, verb, run / file), verb)
    return Case(f"{verb}, {file}: {what}", words, result, is_harmless)


def link(canary: Path, base: Path, rng: Random, damages: bool) -> Case:
    """A file of a run that is a link out of it, a pipe, or a device."""
    verb, _, run, words, result = verb_case(base, rng, ALL_VERBS)
    if not damages:
        return Case("", words, result)
    names = [str(path.relative_to(run)) for path in sorted(run.rglob("*")) if path.is_file()]
    file = run / rng.choice([*names, "log.txt", "eval.json", "predictions.json", "error.txt", ".lock", "replay"])
    if file.exists():
        file.unlink()
    kind = rng.choice(["link to the canary", "link to a file", "pipe", "link to a folder", "/dev/zero",
                       "/proc/self/mem"])
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to a file":
        Path("elsewhere").write_text("mine")
        file.symlink_to(Path("elsewhere").resolve())
    else:
        file.symlink_to({"link to the canary": str(canary), "link to a folder": str(base)}.get(kind, kind))
    return Case(f"{verb}, {file.relative_to(run)}: {kind}", words, result)


# configs


def config_of_run(canary: Path, base: Path, rng: Random, damages: bool) -> Case:
    """A received run whose config names code or is no plain yaml; payload.py lies beside it."""
    verb, _, run, words, result = verb_case(base, rng, ALL_VERBS)
    (run / "payload.py").write_text(PAYLOAD.format(str(canary)))
    if not damages:
        return Case("", words, result)
    file = run / "config.yaml"
    plain = yaml.load(file.read_text(), Loader=schema.Loader)
    way = rng.choice(["node", "node", "name", "text", "hydra"])
    if way == "text":
        text = rng.choice(hostile.texts())
        file.write_text(text if rng.random() < 0.5 else file.read_text() + "\n" + text)
        return Case(f"{verb}, yaml {text[:30]!r}", words, result)
    if way == "node":
        node = rng.choice(hostile.targets(canary, run))
        changed, what = hostile.placed(plain, node, rng), str(node["_target_"])
    elif way == "name":
        changed = rng.choice(hostile.named(plain, canary))
        what = "code by another key"
    else:
        what = rng.choice(hostile.HYDRA)
        changed = {**plain, "hydra": yaml.safe_load(what)}
    file.write_text(yaml.dump(changed, Dumper=yaml.CSafeDumper))
    return Case(f"{verb}, {what}", words, result)


# By verb, the words before --config-dir and behind it.
READING: dict[str, tuple[list[str], list[str]]] = {
    "train": ([], []), "sweep": (["-m"], []), "cfg": (["--cfg", "job"], []), "show": (["show"], []),
    "why": (["why", "seed"], [])}
GROUPS = {"experiment": "seed: 1\n", "recipe": "seed: 1\n",
          "model": "# A net\ndefaults:\n  - /model/base/cifar_resnet\nmodel: {depth: 8}\n"}
BOUNDS = ["trust: [os]", "trust: os", "name: ../evil", "name: /tmp/evil", "output_dir: {a: 1}",
          "defaults:\n  - /../../../etc/passwd", "defaults:\n  - override /model: ../../../evil", "defaults: [evil]",
          "defaults: 5", "defaults:\n  - experiment: evil", "a: ${oc.env:HOME,${evil}}", "model: ${model}",
          "model: [1]", "task: null", "data: 5", "seed: {a: 1}", "model: {depth: 1e400}", "trainer: {max_epochs: -1}",
          "? [a]\n: 1", "1: 2", "null: 1",
          "seed: 99999999999999999999999999", "model._target_: os.system", "trainer.callbacks: [os.system]"]


def config_file(canary: Path, base: Path, rng: Random, damages: bool) -> Case:
    """A choice of a group in the folder that --config-dir names."""
    group, verb = rng.choice([*GROUPS, "experiment"]), rng.choice([*READING, "train"])
    before, behind = READING[verb]
    own = [word for word in TRAIN if group != "model" or not word.startswith("model")]
    words = [*before, "--config-dir", "conf", *behind, *own, f"{group}=evil"]
    words = [word for word in words if group != "recipe" or word != "recipe=none"]
    text, what = "", ""
    if damages:
        way = rng.choice(["node", "node", "text", "hydra", "bounds"])
        if way == "node":
            node = rng.choice(hostile.targets(canary, Path()))
            text = yaml.safe_dump(rng.choice([
                {"model": node}, {"trainer": {"callbacks": [node]}}, {"augment": {"on_pixels": [node]}}, {"data": node},
                {"task": {"metrics": {"f1": node}}}, {"task": {"optimizer": {"name": node["_target_"]}}},
                {"study": node}]))
            what = str(node["_target_"])
        else:
            text = what = rng.choice({"text": hostile.texts(), "bounds": BOUNDS,
                                      "hydra": [f"hydra: {node}" for node in hostile.HYDRA]}[way])
    file = Path("conf") / group / "evil.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{GROUPS[group] * (rng.random() < 0.5 or not damages)}{text}\n")
    result = weights_of(Path("outputs/new")) if verb == "train" else nothing
    return Case(f"{verb}, {group}: {what[:50]!r}", words, result)


# what commands have kept


def damaged_file(folder: Path, rng: Random) -> str:
    file, what = damaged_runs.damage(folder, rng)
    return f"{file}: {what}"


def cache(base: Path, rng: Random, damages: bool) -> Case:
    """What the cache folder has of photos and of a long text."""
    is_text = rng.random() < 0.5
    shutil.copytree(base / "cache", "cache")
    words = [*LONG, f"data.root={base}/long.txt"] if is_text else [*PHOTOS, f"data.root={base}/photos"]
    kind, what = "texts" if is_text else "photos", ""
    (facts,) = Path("cache", kind).glob("*.json")
    if damages and rng.random() < 0.4:
        checksum, _, text = facts.read_bytes().partition(b"\n")
        content = json.loads(text)
        what = damaged_runs.change_node(content, rng, fuzzing.ODD_VALUES)
        facts.write_bytes(checksum + b"\n" + json.dumps(content).encode())
    elif damages:
        path = rng.choice(sorted(Path("cache", kind).iterdir()))
        what = rng.choice(list(damaged_runs.WHOLE_FILE))
        damaged_runs.WHOLE_FILE[what](path, rng)
    return Case(f"{kind}, {what}", words, weights_of(Path("outputs/new")))


def sweep(base: Path, rng: Random, damages: bool) -> Case:
    """A sweep that is started again."""
    folder = Path("outputs/sweep")
    shutil.copytree(base / folder, folder)
    words = rng.choice([SWEEP, SWEEP, SWEEP, ["ls", "runs"], ["clean"]])
    what = damaged_file(folder, rng) if damages else ""
    columns = ("job", "seed", "val/accuracy", "test/accuracy", "state")
    return Case(f"{words[0]}, {what}", words, file_of(folder / "results.csv", columns) if words == SWEEP else nothing)


def comparison(base: Path, rng: Random, damages: bool) -> Case:
    """A comparison that is started again."""
    folder = Path("outputs/compared")
    shutil.copytree(base / folder, folder)
    shutil.copytree(base / "conf", "conf")
    words = rng.choice([COMPARISON, COMPARISON, COMPARISON, ["ls", "runs"], ["clean"]])
    what = damaged_file(folder, rng) if damages else ""
    result = file_of(folder / "comparison.csv", ("run", "seed", "test/accuracy", "parameters"))
    return Case(f"{words[0]}, {what}", words, result if words == COMPARISON else nothing,
                harmless="comparison.csv" in what)  # of a finished comparison, which is neither read nor written again
