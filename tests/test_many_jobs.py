"""Sweeps of many jobs: their configs are read quickly, and as if each were read alone."""

import shutil
from pathlib import Path

import pytest

from dltrain import stored_files
from dltrain.errors import UserError
from dltrain.sweeps.values import Values
from tests import many_jobs

KEYS = ["task.optimizer.lr", "data.batch_size", "seed", "model", "name", "augment.normalize"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    many_jobs.simulate(folder, 2, epochs=1, swept={"lr": ["0.1"], "batch_size": ["128"], "seed": ["1", "2"]})
    return folder


@pytest.fixture
def folders(simulated: Path, tmp_path: Path) -> list[Path]:
    return sorted(Path(shutil.copytree(simulated, tmp_path / "s")).glob("lr*"))


@pytest.mark.parametrize(("before", "after"), [
    ("lr: 0.1 ", "lr: 0.25 "), ("lr: 0.1 ", "lr: 5 "), ("lr: 0.1 ", "lr: -1 "), ("lr: 0.1 ", "lr: x "),
    ("lr: 0.1 ", "lr: 1e-3 "), ("lr: 0.1 ", "lr: 1.0e-3 "), ("lr: 0.1 ", "lr: [1] "), ("lr: 0.1 ", "lr: 'x "),
    ("lr: 0.1 ", "lr: - "), ("lr: 0.1 ", "lr: ~ "), ("lr: 0.1 ", "lr: !!python/name:os.system "),
    ("lr: 0.1 ", "lr: *a "),
    ("name: many ", "name: --- "), ("name: many ", "name: 2020-01-01 "), ("name: many ", "name: 'a  # b' "),
    ("name: many ", "name: null "), ("name: many ", "name: yes "), ("name: many ", "name: a: b "),
    ("batch_size: 128 ", "batch_size: 64 "), ("batch_size: 128 ", "batch_size: 0 "),
    ("batch_size: 128 ", "batch_size: 0x10 "), ("normalize: standard ", "normalize: box "),
    ("normalize: standard ", "normalize: no "), ("model: resnet20\n", "model: resnet56\n"),
    ("version: ", "version: 9"), ("seed: 2 ", "seed: 3\nseed: 2 "), ("num_classes: 10", "num_classes: 11")])
def test_values_are_read_as_from_the_whole_config(before, after, folders):
    """Against a reading of this job alone, which is of the whole file and checks everything."""
    file = folders[1] / "config.yaml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    several = Values()
    several.read(folders[0], KEYS)
    outcomes = []
    for values in (several, Values()):
        try:
            outcomes.append(str(values.read(folders[1], KEYS)))
        except UserError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_a_config_that_differs_in_plain_values_is_not_read_in_full(folders, monkeypatch):
    values = Values()
    first = values.read(folders[0], KEYS)
    monkeypatch.setattr(stored_files, "read_config", lambda *_: pytest.fail("read in full"))
    assert values.read(folders[1], KEYS) == {**first, "seed": "2"}
    assert first["seed"] == "1"
