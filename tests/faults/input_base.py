"""What is intact: runs, a sweep, a comparison, weights, photos and a text, and the commands that get them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests import fuzzing
from tests.faults import damaged_runs
from tests.faults.damaged_runs import PICTURES, WORDS
from tests.faults.feeding import file_of, nothing, printed, weights_of

ALL_VERBS = "eval last predict resume same from_run ls verify replay export clean"
TRAIN = [*PICTURES[:-1], "name=new"]
QUICK = ["recipe=none", "trainer=smoke", "trainer.accelerator=cpu", "name=new"]
PHOTOS = ["model=resnet20", "model.depth=8", "data=image_folder", "data.image_px=32", "data.num_workers=0", *QUICK]
LONG = ["model=char_rnn", "model.hidden=8", "data=text", "data.batch_size=4", "data.window=30", *QUICK]
SWEEP = ["-m", "seed=0,1", *PICTURES[:-1], "trainer.max_epochs=1", "name=sweep"]
COMPARISON = ["--config-dir", "conf", "experiment=depths", "trust=[tests]", "name=compared"]
EXPERIMENT = """\
# @package _global_
# Do more layers help?
defaults:
  - override /recipe: none
study:
  _target_: dltrain.studies.comparison.study
  common: [model=resnet20, data._target_=tests.tiny.FewDigits, data.batch_size=32, trainer=cpu, trainer.max_epochs=1]
  more: []
  runs: {eight: [model.depth=8], fourteen: [model.depth=14]}
  seeds: [0]  # list of int >= 0
  columns: {test/accuracy: test accuracy, parameters: parameters}
  curves: [train/loss, val/accuracy]
  claims: ["train/loss: fourteen < eight"]
"""
PAYLOAD = ("from pathlib import Path\nPath({!r}).touch()\n"
           "class Payload:\n    def __init__(self, **keys):\n        pass\n")


def make_base(base: Path, canary: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """Fills the folder with intact runs, a sweep, a comparison, weights, photos and a long text. The module `installed`
    in it writes the canary when it is imported."""
    base.mkdir(parents=True)
    before = os.getcwd()
    os.chdir(base)
    os.environ["DLTRAIN_CACHE"] = str(base / "cache")
    try:
        damaged_runs.make_runs(base, call)
        Path("conf/experiment").mkdir(parents=True)
        Path("conf/experiment/depths.yaml").write_text(EXPERIMENT)
        write_files(base / "photos", fuzzing.unsplit_folder())
        Path("long.txt").write_text("".join(f"the story of day {day} goes on and on and on.\n"
                                            for day in range(25_000)))
        os.utime("long.txt", (1e9, 1e9))
        for words in (SWEEP, COMPARISON, [*PHOTOS, "data.root=photos"], [*LONG, "data.root=long.txt", "name=long"]):
            code, _, err = call(*words)
            if code:
                raise AssertionError(f"{' '.join(words)}: {err}")
        for suffix in ("pth", "safetensors"):
            call("export", "run=pictures_done", f"output=weights/w.{suffix}")
        shutil.copy("weights/w.pth", "weights/w.pt")
        shutil.copy("pictures_done/checkpoints/best.ckpt", "weights/w.ckpt")
        Path("payload").mkdir()
        Path("payload/installed.py").write_text(PAYLOAD.format(str(canary)))
    finally:
        os.chdir(before)


def write_files(root: Path, files: fuzzing.Files) -> None:
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)


def verb_case(base: Path, rng: Random, verbs: str) -> tuple[str, str, Path, list[str], Callable[[str], str]]:
    """Copies a run to outputs/. Returns the verb, the name of the run, its folder, the command and what it makes."""
    verb = rng.choice(verbs.split())
    name = "text" if verb not in ("from_run", "predict") and rng.random() < 0.4 else "pictures"
    run = Path("outputs") / name
    damaged_runs.fresh_copy(base / state_of(name, verb), run)
    shutil.copy(base / "story.txt", "story.txt")
    words = {"same": [*WORDS[name], "trainer.checkpoint_every_steps=1"], "ls": ["ls", "runs"], "clean": ["clean"],
             "last": ["eval", f"run={run}", "checkpoint=last"], "replay": ["replay", f"run={run}", "step=2"],
             "from_run": [*TRAIN, "trainer.max_epochs=1", f"model.pretrained.from_run={run}"],
             "predict": ["predict", f"run={run}", f"input={base}/pictures_done/samples"],
             "export": ["export", f"run={run}", "output=w.safetensors"]}.get(verb, [verb, f"run={run}"])
    result = {"resume": weights_of(run), "same": weights_of(run), "from_run": weights_of(Path("outputs/new")),
              "export": file_of(Path("w.safetensors")), "eval": printed, "last": printed,
              "predict": printed}.get(verb, nothing)
    return verb, name, run, words, result


def intact_of(base: Path, name: str, verb: str, file: Path) -> Path:
    return base / state_of(name, verb) / file.relative_to(Path("outputs") / name)


def state_of(name: str, verb: str) -> str:
    return f"{name}_{'half' if verb in ('resume', 'same') else 'done'}"
