"""Sweeps of many jobs: their configs are read quickly, and as if each were read alone."""

import re
import shutil
from pathlib import Path

import pytest

from dltrain import stored_files
from dltrain.errors import UserError
from dltrain.sweeps.table import read_table
from dltrain.sweeps.values import Values, refuse_other_values
from tests import many_jobs

KEYS = ["task.schedule.milestones", "task.optimizer.lr",
        "data.batch_size", "seed", "model", "name", "augment.normalize"]


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
    ("milestones: [0.5, 0.75]", "milestones: [0.25]"), ("milestones: [0.5, 0.75]", "milestones: [0.25, x]"),
    ("milestones: [0.5, 0.75]", "milestones: [0.25, 7]"), ("milestones: [0.5, 0.75]", "milestones: []"),
    ("milestones: [0.5, 0.75]", "milestones: [2020-01-01]"), ("milestones: [0.5, 0.75]", "milestones: [a, b"),
    ("name: many ", "name: 2020-13-45 "),
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
    file = folders[1] / "config.yaml"
    file.write_text(file.read_text().replace("milestones: [0.5, 0.75]", "milestones: [0.3, 0.6, 0.9]"))
    assert values.read(folders[1], KEYS) == {**first, "seed": "2", "task.schedule.milestones": "[0.3, 0.6, 0.9]"}
    assert first["seed"] == "1"


@pytest.mark.parametrize(("before", "after", "state"), [
    ("seed: 2 ", "seed: ' ' ", r"it has seed=' ', but the job was started with seed=2"),
    ("seed: 2 ", "seed: 1 ", r"it has seed=1, but the job was started with seed=2"), ("seed: 2 ", "seed: 2.0 ", "")])
def test_a_job_is_not_listed_with_values_that_it_was_not_started_with(before, after, state, folders):
    file = folders[1] / "config.yaml"
    file.write_text(file.read_text().replace(before, after, 1).replace("  # int >= 0: every", "  # every"))
    job = next(job for job in read_table(folders[0].parent).jobs if job.run_dir.path == folders[1])
    assert bool(job.result) == (not state)
    assert re.search(f"config.yaml: damaged or edited, {state}; restore" if state else "done", job.describe_state())


def test_values_are_the_same_however_they_are_written(tmp_path):
    used = {"lr": "0.001", "model": "resnet20", "seed": "1", "root": "/a", "data.image_px": "32"}
    refuse_other_values(tmp_path, used, {"lr": "1e-3", "model": "resnet20", "seed": "+1", "root": "a", "x": "3",
                                         "data.image_px": "null"})
    with pytest.raises(UserError, match=r"it has model=resnet20, but the job was started with model=resnet56;"):
        refuse_other_values(tmp_path, used, {"model": "resnet56"})
