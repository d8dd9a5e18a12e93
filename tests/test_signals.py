"""Runs that are interrupted, terminated or killed: the same command again ends in the same bits. In this process by a
signal to itself; marked slow, in processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.callbacks.stopping import SIGNALS, Signals
from dltrain.errors import InterruptedRun
from tests.test_resume import assert_same, load_last, train

pytestmark = pytest.mark.usefixtures("without_figures")

COMMAND = [sys.executable, "-m", "dltrain.cli", "seed=3", "trainer.max_epochs=6", "trainer=cpu", "data.batch_size=100",
           "trainer.checkpoint_every_steps=7", "model.depth=8"]


def stop_run(monkeypatch, path: Path, hook: str, stage: str, signum: int) -> InterruptedRun:
    """Trains the tiny run until `hook` of `stage`, fit or test, with four steps done or more; there the process sends
    itself a signal."""
    ended = getattr(Checkpointing, hook)

    def send(self, trainer, *args, **keys):
        if trainer.state.fn == stage and trainer.global_step >= (4 if stage == "fit" else 0):
            os.kill(os.getpid(), signum)
        ended(self, trainer, *args, **keys)

    handlers = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, hook, send)
        with pytest.raises(InterruptedRun) as caught:
            train(path)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    return caught.value


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The folder of a tiny run that nothing stopped."""
    path = tmp_path_factory.mktemp("runs") / "straight"
    train(path)
    return path


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_saves_after_the_step_and_the_run_resumes(signum, monkeypatch, tmp_path, straight):
    stop = stop_run(monkeypatch, tmp_path / "run", "on_train_batch_end", "fit", signum)
    assert str(stop) == (f"{signum.name}: saved {tmp_path}/run/checkpoints/last.ckpt at step 4; dltrain resume "
                         f"run={tmp_path}/run continues it")
    assert stop.exit_code == 128 + signum
    assert load_last(tmp_path / "run")["global_step"] == 4
    train(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


def test_a_signal_in_a_validation_saves_and_the_validation_is_repeated(monkeypatch, tmp_path, straight):
    stop = stop_run(monkeypatch, tmp_path / "run", "on_validation_batch_end", "fit", signal.SIGTERM)
    assert "last.ckpt at step 6; " in str(stop)
    saved = load_last(tmp_path / "run")
    assert saved["callbacks"]["Checkpointing"]["validation_due"] is True
    train(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


def test_a_signal_in_the_test_stops_and_the_test_is_repeated(monkeypatch, tmp_path, straight):
    stop = stop_run(monkeypatch, tmp_path / "run", "on_test_batch_end", "test", signal.SIGTERM)
    assert str(stop) == ("SIGTERM: training is complete, but the test is not; dltrain resume "
                         f"run={tmp_path}/run continues it")
    assert not (tmp_path / "run/result.json").exists()
    assert_same(tmp_path / "run", straight)
    assert train(tmp_path / "run")["steps"] == 9
    assert_same(tmp_path / "run", straight)


def test_a_second_interrupt_ends_the_process_at_once(monkeypatch):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (signals.received, codes) == (signal.SIGTERM, [])
        os.kill(os.getpid(), signal.SIGINT)
    assert codes == [130]


# in processes of their own


def start(cwd: Path, name: str) -> subprocess.Popen[str]:
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


def load_tensors(cwd: Path, name: str) -> dict[str, Any]:
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_sets_the_exit_code_of_a_process(signum, code, uninterrupted):
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


@pytest.mark.slow
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
