"""Ten thousand broken and odd inputs of every reader, and a few hundred in the plain tests, from one seed.

Each either is refused in one line that names its file or a key, or it loads, every sample can be read, and the samples
with what is left out are all that there are.
"""

from __future__ import annotations

import random
import traceback
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from dltrain.build import build_data
from dltrain.config.compose import compose
from dltrain.data.datamodule import SPLITS
from dltrain.data.texts import read_word_vectors
from dltrain.errors import UserError
from tests import fuzzing
from tests.fuzzed_readers import READERS, Reader, lost_samples

SEED = 20261126


def config_of(reader: Reader) -> DictConfig:
    model, data, *more = reader.words.split()
    return compose([f"model={model}", f"data={data}", "data.root=.", *more]).job_config()


def fault_of(name: str, root: Path, rng: random.Random, config: DictConfig | None) -> str:
    """Writes a broken data set, reads it, and returns what is against the rule of this file, or ""."""
    reader = READERS[name]
    fuzzing.write_broken(root, reader.files, rng)
    try:
        if config is None:
            indices = {"dog": 0, "cat": 1, "runs": 2}
            rows, vectors = read_word_vectors(root / "vectors.txt", indices, 3)
            is_good = vectors.isfinite().all() and vectors.shape == (len(rows), 3) and {*rows.tolist()} <= {0, 1, 2}
            return "" if is_good else "vectors that are not finite"
        config = config.copy()
        config.data.root = str(root / "c.tsv" if name == "captions_file" else root)
        config.data.update({key: value for key, value in (("on_leak", rng.choice(["warn", "drop"])),
                                                          ("on_bad", rng.choice(["stop", "skip", "skip"])))
                            if key in config.data})
        data = build_data(config)
        for split in SPLITS:
            for _ in data.read(split, list(torch.arange(data.num_samples(split)).split(8))):
                pass
    except UserError as error:
        message = str(error)
        if len(message.splitlines()) != 1:
            return f"a message of several lines: {message!r}"
        is_named = any(name in message for name in (str(root), "data.", "data=", " split "))
        return "" if is_named else f"a message without a name: {message}"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        own = next((frame for frame in reversed(traceback.extract_tb(error.__traceback__))
                    if "dltrain/" in frame.filename), place)
        return f"{type(error).__name__}: {str(error)[:100]} at {Path(own.filename).name}:{own.lineno}"
    return lost_samples(reader, root, data)


def run(count: int, folder: Path) -> list[str]:
    """What breaks the rule in `count` inputs, each by the name of its reader and its number."""
    configs = {name: config_of(reader) if reader.words else None for name, reader in READERS.items()}
    faults = []
    for number in range(count):
        name = list(READERS)[number % len(READERS)]
        root = folder / f"{number}"
        root.mkdir()
        if fault := fault_of(name, root, random.Random(f"{SEED} {number}"), configs[name]):
            faults.append(f"{name} {number}: {fault}".replace(str(root), "ROOT"))
    return faults


@pytest.mark.filterwarnings("ignore")
def test_a_broken_input_is_refused_in_a_line_or_read_whole(tmp_path):
    assert run(320, tmp_path) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_broken_inputs_are_refused_in_a_line_or_read_whole(tmp_path):
    assert run(10_000, tmp_path) == []
