"""Runs of earlier versions: those of 0.2 in tests/fixtures are evaluated, used and resumed; older ones are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dltrain import __version__, same_config
from dltrain.config.compose import compose
from dltrain.config.interpolations import to_plain
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.same_config import refuse_other_config
from dltrain.sweeps.jobs import job_id

FIXTURES = Path(__file__).parent / "fixtures"
# By run: the metrics of its best weights on the test split, then those after it is resumed to its end
EXPECTED = {
    "digits_0.2": ({"test/accuracy": 0.8528, "test/loss": 1.1152}, {"test/accuracy": 0.8667, "test/loss": 1.0898}),
    "text_0.2": ({"test/loss": 2.5941, "test/bits_per_character": 3.7425},
                 {"test/loss": 2.2895, "test/bits_per_character": 3.3031}),
}


@pytest.fixture(autouse=True)
def copies(tmp_path):
    """Copies of the runs, which a test may change."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    shutil.copy(FIXTURES / "text_0.2/story.txt", tmp_path)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_of_0_2_is_evaluated_and_resumed(name, dltrain, tmp_path):
    run, (before, after) = tmp_path / name, EXPECTED[name]
    code, _, err = dltrain("eval", f"run={name}")
    assert (code, err) == (0, "")
    measured = json.loads((run / "eval.json").read_text())
    assert {key: measured[key] for key in before} == pytest.approx(before, abs=2e-3)
    code, out, err = dltrain("resume", f"run={name}")
    assert (code, err) == (0, "")
    assert f"resuming {name} from step {24 if name == 'digits_0.2' else 40} of" in out
    result = json.loads((run / "result.json").read_text())
    assert {key: result[key] for key in after} == pytest.approx(after, abs=5e-3)


def test_a_run_of_0_2_predicts(dltrain):
    dltrain("resume", "run=text_0.2")
    code, out, err = dltrain("predict", "run=text_0.2", "prompt=the ", "length=10", "temperature=0")
    assert (code, out, err) == (0, "the he he he h\n", "")


def test_every_checkpoint_and_config_has_the_version(dltrain, tmp_path):
    dltrain("resume", "run=digits_0.2")
    for name in ("best", "last"):
        saved = torch.load(tmp_path / f"digits_0.2/checkpoints/{name}.ckpt", weights_only=True)
        assert saved["dltrain"]["version"] == __version__
    assert (tmp_path / "digits_0.2/config.yaml").read_text().startswith(f"version: {__version__}\n")


@pytest.mark.parametrize("verb", ["eval", "resume", "predict"])
def test_an_older_run_is_refused_in_one_line(verb, dltrain, tmp_path):
    file = tmp_path / "digits_0.2/config.yaml"
    file.write_text(file.read_text().removeprefix("version: 0.2.0\n"))
    code, out, err = dltrain(verb, "run=digits_0.2", *(["input=x.png"] if verb == "predict" else []))
    assert (code, out) == (4, "")
    assert err == (f"dltrain: error: run=digits_0.2: written by dltrain 0.1, which dltrain {__version__} cannot read; "
                   "train it again, or use it with the commit that environment.json names\n")


def test_an_older_run_is_refused_as_a_source_of_weights(dltrain, tmp_path):
    file = tmp_path / "digits_0.2/config.yaml"
    file.write_text(file.read_text().removeprefix("version: 0.2.0\n"))
    code, _, err = dltrain("model=resnet20", "model.pretrained.from_run=digits_0.2")
    assert code == 4
    assert err.startswith("dltrain: error: model.pretrained.from_run=digits_0.2: written by dltrain 0.1,")


def test_the_same_command_continues_a_run_that_has_no_such_keys_yet(tmp_path):
    """What a run did before it had a key is what the key's default does; another value is refused by name."""
    run_dir = RunDir(tmp_path / "a")
    run_dir.path.mkdir()
    run_dir.write_config({"model": {"stride": 8}, "data": {"root": "x"}}, {})
    requested = {"stride": 8, "skips": "last", "anchors": "fixed", "anchor_boxes": None}
    refuse_other_config(run_dir, OmegaConf.create({"model": requested, "data": {"root": "y"}}))
    with pytest.raises(UserError, match=r"model.skips \(last, now pools\)"):
        refuse_other_config(run_dir, OmegaConf.create({"model": {"stride": 8, "skips": "pools"}}))
    run_dir.write_config({"model": {"anchors": "auto", "anchor_boxes": [[1.0, 2.0]]}}, {})
    refuse_other_config(run_dir, OmegaConf.create({"model": {"anchors": "auto", "anchor_boxes": None}}))
    with pytest.raises(UserError, match=r"model.anchors \(auto, now fixed\), model.anchor_boxes"):
        refuse_other_config(run_dir, OmegaConf.create({"model": {"anchors": "fixed", "anchor_boxes": None}}))


def test_a_run_of_several_processes_of_an_earlier_version_continues_as_it_began(tmp_path):
    """Without the key, whatever the command says by default; a run of one process does not depend on it."""
    words = ["model=resnet20", "data=digits"]
    for devices, stored, now in ((2, None, True), (1, None, True), (1, True, False), (1, False, True)):
        run_dir = RunDir(tmp_path / f"{devices} {stored}")
        run_dir.path.mkdir()
        config = compose([*words, f"trainer.devices={devices}", f"trainer.as_one={str(now).lower()}"]).job_config()
        earlier = to_plain(config)
        del earlier["trainer"]["as_one"]
        earlier["trainer"] |= {} if stored is None else {"as_one": stored}
        run_dir.write_config(earlier, {})
        refuse_other_config(run_dir, config)
        assert devices > 1 or job_id(to_plain(config)) == job_id(earlier)
        same_config.keep_processes(run_dir, config)
        assert config.trainer.as_one is bool(stored)
        assert job_id(to_plain(config)) == job_id(earlier)
    as_one = [to_plain(compose([*words, "trainer.devices=2", f"trainer.as_one={value}"]).config)
              for value in ("false", "true")]
    assert job_id(as_one[0]) != job_id(as_one[1])
    run_dir.write_config(as_one[1], {})
    with pytest.raises(UserError, match=r"trainer.as_one \(True, now False\)"):
        refuse_other_config(run_dir, compose([*words, "trainer.devices=2", "trainer.as_one=false"]).job_config())
