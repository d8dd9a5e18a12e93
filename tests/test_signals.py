"""Real processes that are killed, terminated or interrupted: the same command again ends in the same bits."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow  # each test starts several processes

COMMAND = [sys.executable, "-m", "dltrain.cli", "seed=3", "trainer.max_epochs=6", "trainer=cpu", "data.batch_size=100",
           "trainer.checkpoint_every_steps=7", "model.depth=8"]


def start(cwd: Path, name: str) -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, f"name={name}"], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def finish(cwd: Path, name: str) -> str:
    process = start(cwd, name)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def wait_for_checkpoint(cwd: Path, name: str) -> None:
    last = cwd / f"outputs/{name}/checkpoints/last.ckpt"
    for _ in range(9000):  # 3 minutes: a busy machine starts slowly
        if last.exists():
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint appeared")


def load_tensors(cwd: Path, name: str) -> dict:
    saved = torch.load(cwd / f"outputs/{name}/checkpoints/last.ckpt", weights_only=True)
    momenta = {f"momentum.{k}": v["momentum_buffer"] for k, v in saved["optimizer_states"][0]["state"].items()}
    return {**saved["state_dict"], **momenta}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("runs")
    finish(cwd, "uninterrupted")
    return cwd


def assert_same_bits(cwd: Path, name: str) -> None:
    a, b = load_tensors(cwd, "uninterrupted"), load_tensors(cwd, name)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_killed_run_is_resumed_by_the_same_command(uninterrupted):
    process = start(uninterrupted, "killed")
    wait_for_checkpoint(uninterrupted, "killed")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (uninterrupted / "outputs/killed/result.json").exists()
    out = finish(uninterrupted, "killed")
    assert re.search(r"resuming outputs/killed from step \d+ of 78", out)
    assert_same_bits(uninterrupted, "killed")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_sets_the_exit_code(signum, code, uninterrupted):
    name = f"signal{code}"
    process = start(uninterrupted, name)
    wait_for_checkpoint(uninterrupted, name)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert re.fullmatch(rf"dltrain: {signum.name}: saved outputs/{name}/checkpoints/last.ckpt at step \d+; "
                        rf"dltrain resume run=outputs/{name} continues it\n", err)
    finish(uninterrupted, name)
    assert_same_bits(uninterrupted, name)


def test_two_processes_train_the_same_in_a_run_and_in_a_sweep(tmp_path):
    """DistributedDataParallel over gloo: the second process joins the folder of the run, whatever the user typed."""
    overrides = ["trainer=ddp", "trainer.accelerator=cpu", "trainer=ddp", "trainer.max_epochs=2", "model.depth=8",
                 "recipe=none"]
    for more in (["name=single", "seed=1"], ["-m", "name=sweep", "seed=1,2"]):
        command = [sys.executable, "-m", "dltrain.cli", *overrides, *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
                              env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stderr
    single = torch.load(tmp_path / "outputs/single/checkpoints/last.ckpt", weights_only=True)
    job = torch.load(tmp_path / "outputs/sweep/0-resnet20-on-digits/checkpoints/last.ckpt", weights_only=True)
    assert single["global_step"] == 10  # 628 samples per process in batches of 128, 2 epochs
    assert all(torch.equal(single["state_dict"][key], job["state_dict"][key]) for key in single["state_dict"])
