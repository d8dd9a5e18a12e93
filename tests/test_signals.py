"""Real processes: killed, terminated, interrupted; the same command again ends in the same bits."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

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


def wait_for_step(cwd: Path, name: str, step: int) -> None:
    """Until metrics.csv or a checkpoint shows that training is under way."""
    last = cwd / f"outputs/{name}/checkpoints/last.ckpt"
    for _ in range(9000):  # a busy machine starts slowly
        if last.exists():
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint appeared")


def tensors(cwd: Path, name: str) -> dict:
    saved = torch.load(cwd / f"outputs/{name}/checkpoints/last.ckpt", weights_only=True)
    momenta = {f"momentum.{k}": v["momentum_buffer"] for k, v in saved["optimizer_states"][0]["state"].items()}
    return {**saved["state_dict"], **momenta}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("runs")
    finish(cwd, "whole")
    return cwd


def assert_same_bits(cwd: Path, name: str) -> None:
    a, b = tensors(cwd, "whole"), tensors(cwd, name)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_sigkill_and_the_same_command_again(uninterrupted):
    process = start(uninterrupted, "killed")
    wait_for_step(uninterrupted, "killed", 1)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (uninterrupted / "outputs/killed/result.json").exists()
    out = finish(uninterrupted, "killed")
    assert re.search(r"resuming outputs/killed from step \d+ of 78", out)
    assert_same_bits(uninterrupted, "killed")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signal_saves_and_exits_by_its_number(signum, code, uninterrupted):
    name = f"signal{code}"
    process = start(uninterrupted, name)
    wait_for_step(uninterrupted, name, 1)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert re.fullmatch(rf"dltrain: {signum.name}: saved outputs/{name}/checkpoints/last.ckpt at step \d+; "
                        rf"dltrain resume run=outputs/{name} continues it\n", err)
    finish(uninterrupted, name)
    assert_same_bits(uninterrupted, name)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """DistributedDataParallel over gloo: the children join the run's folder, whatever was typed; also in a sweep."""
    words = ["trainer=ddp", "trainer.accelerator=cpu", "trainer=ddp", "trainer.max_epochs=2", "model.depth=8",
             "recipe=none"]
    for more in (["name=one", "seed=1"], ["-m", "name=many", "seed=1,2"]):
        done = subprocess.run([sys.executable, "-m", "dltrain.cli", *words, *more], cwd=tmp_path, capture_output=True,
                              text=True, timeout=300, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stderr
    one = torch.load(tmp_path / "outputs/one/checkpoints/last.ckpt", weights_only=True)
    many = torch.load(tmp_path / "outputs/many/0-resnet20-on-digits/checkpoints/last.ckpt", weights_only=True)
    assert one["global_step"] == 10  # 628 samples a process in batches of 128, twice
    assert all(torch.equal(one["state_dict"][k], many["state_dict"][k]) for k in one["state_dict"])
