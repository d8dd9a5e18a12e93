"""Rows 4, 5, 10, 19, 20, 22 and 23: signals, Slurm, and processes that die or hang.

Runs in this process, stopped by a signal to itself; ranks that are small scripts in the place of a training; and,
marked slow, whole commands.
"""

import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dltrain import processes, signals
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.errors import InterruptedRun
from dltrain.processes import RankError
from dltrain.signals import SIGNALS, Signals
from tests.test_resume import assert_same, load_last, train

pytestmark = pytest.mark.usefixtures("without_figures")


def send(signum: int, recorder: Signals) -> None:
    """Sends this process a signal, and waits until it is recorded."""
    os.kill(os.getpid(), signum)
    wait_for(lambda: recorder.received is not None)


def wait_for(is_so: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


def stop_run(monkeypatch, path: Path, hook: str, stage: str, signum: int, *words: str, batches: int = 4
             ) -> InterruptedRun:
    """Trains the tiny run until `hook` of `stage`, fit or test, with so many batches done or more; there the process
    sends itself a signal."""
    ended = getattr(Checkpointing, hook)

    def stop(self, trainer, *args, **keys):
        due = trainer.train_dataloader.batches_done >= batches if stage == "fit" and trainer.train_dataloader else True
        if trainer.state.fn == stage and due and self.signals.received is None:
            send(signum, self.signals)
        ended(self, trainer, *args, **keys)

    handlers = [signal.getsignal(number) for number in SIGNALS]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, hook, stop)
        with pytest.raises(InterruptedRun) as caught:
            train(path, *words)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    return caught.value


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The folder of a tiny run that nothing stopped."""
    path = tmp_path_factory.mktemp("runs") / "straight"
    train(path)
    return path


# 4: SIGTERM


def row_04(monkeypatch, tmp_path, straight, signum):
    stop = stop_run(monkeypatch, tmp_path / "run", "on_train_batch_end", "fit", signum)
    assert str(stop) == (f"{signum.name}: saved {tmp_path}/run/checkpoints/last.ckpt at step 4; dltrain resume "
                         f"run={tmp_path}/run continues it")
    assert stop.exit_code == 128 + signum
    assert load_last(tmp_path / "run")["global_step"] == 4
    train(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize("signum", SIGNALS)
def test_row_04_a_signal_saves_after_the_step(signum, monkeypatch, tmp_path, straight):
    """SIGTERM, SIGINT and SIGHUP save after the step that is under way; the run resumes to the same bits."""
    row_04(monkeypatch, tmp_path, straight, signum)


def test_row_04_control(monkeypatch, tmp_path, straight):
    """Without the save the run continues from the end of the epoch."""
    monkeypatch.setattr(Checkpointing, "save_and_stop", Checkpointing.stop)
    with pytest.raises(AssertionError):
        row_04(monkeypatch, tmp_path, straight, signal.SIGTERM)


ACCUMULATION = ("trainer.accumulate_batches=2", "task.optimizer.lr=0.2")


def row_04_b(monkeypatch, tmp_path):
    train(tmp_path / "straight", *ACCUMULATION)
    # 3 batches an epoch make 2 steps; batch 4 is the first half of step 3
    stop_run(monkeypatch, tmp_path / "run", "on_train_batch_end", "fit", signal.SIGTERM, *ACCUMULATION)
    assert load_last(tmp_path / "run")["global_step"] == 3
    train(tmp_path / "run", *ACCUMULATION)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_row_04_b_a_signal_while_gradients_accumulate(monkeypatch, tmp_path):
    """With trainer.accumulate_batches a signal saves after the whole step, not between its batches."""
    row_04_b(monkeypatch, tmp_path)


def test_row_04_b_control(monkeypatch, tmp_path):
    """Saved at once, the run loses the gradients of half a step."""
    monkeypatch.setattr("dltrain.step_loop.StepLoop._should_accumulate", lambda self: False)
    with pytest.raises(AssertionError):
        row_04_b(monkeypatch, tmp_path)


def row_04_c():
    process = subprocess.Popen(["sleep", "60"])
    try:
        for signum in SIGNALS:
            process.send_signal(signum)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
    finally:
        process.kill()
        process.wait()


def test_row_04_c_processes_of_a_run_do_not_receive_signals():
    """A signal to the whole process group does not end the processes that load data; dltrain decides what it means."""
    with signals.caught():
        row_04_c()


def test_row_04_c_control():
    with pytest.raises(pytest.fail.Exception):
        row_04_c()


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


# 5: Ctrl-C


@pytest.fixture
def exits(monkeypatch) -> list[int]:
    """The codes with which this process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(signals, "end_children", lambda: None)
    return codes


def row_05(exits, capfd):
    with Signals() as recorder:
        recorder.record()
        send(signal.SIGTERM, recorder)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)
        assert (recorder.received, exits) == (signal.SIGTERM, [])
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: exits, 1)
    assert exits == [130]
    assert capfd.readouterr().err == "dltrain: SIGINT: stopped at once\n"


def test_row_05_a_second_interrupt_ends_at_once(exits, capfd):
    """Ctrl-C while a run is already stopping ends it at once, with exit code 130."""
    row_05(exits, capfd)


def test_row_05_control(monkeypatch, exits, capfd):
    monkeypatch.setattr(signals, "end_process", lambda *_: None)
    with pytest.raises(AssertionError):
        row_05(exits, capfd)


def row_05_b(exits, capfd, monkeypatch):
    with signals.caught():
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(lambda: exits, 1)
    assert exits == [129]
    assert capfd.readouterr().err == "dltrain: SIGHUP: stopped\n"


def test_row_05_b_a_signal_before_the_training_ends_at_once(exits, capfd, monkeypatch):
    """A signal while data load, or to a command that does not train, ends it at once with one line."""
    row_05_b(exits, capfd, monkeypatch)


def test_row_05_b_control(exits, capfd, monkeypatch):
    """Under nohup the signal of a closed terminal is ignored, before and after."""
    monkeypatch.setattr(time, "monotonic", iter([0.0, 0.5, 9.0]).__next__)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(AssertionError):
            row_05_b(exits, capfd, monkeypatch)
        assert exits == []
    finally:
        signal.signal(signal.SIGHUP, before)


# 22 and 23: several processes. Small scripts stand for the ranks: {number: code}.

SCRIPT = """
import os, sys, time
from dltrain.processes import CHANNEL, Channel
from dltrain import rank
import socket, threading
number = int(os.environ["LOCAL_RANK"])
channel = Channel(socket.socket(fileno=int(os.environ[CHANNEL])))
next(channel.lines)
threading.Thread(target=rank.obey, args=(channel,), daemon=True).start()
def fail(text, is_lost):
    channel.send(failure=text, code=8, is_lost=is_lost, traceback="the traceback")
    sys.exit(8)
"""


@pytest.fixture
def train_ranks(monkeypatch, tmp_path) -> Callable[..., None]:
    """train_ranks("code of rank 0", ...): `processes.train` with a script for each rank."""
    pids: list[int] = []
    popen = subprocess.Popen

    def start(command, env, pass_fds):
        code = (tmp_path / f"{env['LOCAL_RANK']}.py").read_text()
        process = popen([sys.executable, "-c", SCRIPT + code], env={**env, "PYTHONPATH": os.pathsep.join(sys.path)},
                        pass_fds=pass_fds)
        pids.append(process.pid)
        return process

    def run(*codes: str) -> None:
        for number, code in enumerate(codes):
            (tmp_path / f"{number}.py").write_text(textwrap.dedent(code))
        try:
            processes.train(len(codes), 5, {})
        finally:
            for pid in pids:  # none is left, not even as a zombie
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    monkeypatch.setattr(processes, "SECONDS_TO_BLAME", 0.3)
    return run


FAILS = "fail('ValueError: the first error', is_lost=False)"
IS_LOST = "time.sleep(0.1); fail('gloo: connection closed by peer', is_lost=True)"
WAITS = "time.sleep(60)"


def row_22(train_ranks):
    with pytest.raises(RankError) as caught:
        train_ranks(IS_LOST, WAITS, FAILS)
    assert str(caught.value) == "rank 2: ValueError: the first error"
    assert caught.value.exit_code == 8
    assert caught.value.__notes__ == ["the traceback"]


def test_row_22_the_first_error_and_its_rank_are_shown(train_ranks):
    """Of several processes, one that fails ends all; its error is shown with its rank, not that of the others."""
    row_22(train_ranks)


def test_row_22_control(train_ranks, monkeypatch):
    """If that one could not reach another is an error like others, the wrong one is shown."""
    handle = processes.Watch.handle
    monkeypatch.setattr(processes.Watch, "handle", lambda self, event: handle(
        self, event._replace(message={**event.message, "is_lost": False})))
    with pytest.raises(AssertionError):
        row_22_b(train_ranks)


def row_22_b(train_ranks):
    with pytest.raises(RankError) as caught:
        train_ranks("fail('gloo: connection closed by peer', is_lost=True)",
                    "time.sleep(0.15); os.kill(os.getpid(), 9)")
    assert str(caught.value) == ("rank 1 was killed by SIGKILL: if the system was out of memory, use a smaller "
                                 "data.batch_size; the same command continues the run")
    assert caught.value.exit_code == 6


def test_row_22_b_a_process_that_is_killed_ends_all(train_ranks):
    """Of several processes, one that is killed ends all, with exit code 6, its rank and the signal."""
    row_22_b(train_ranks)


def row_22_c(train_ranks):
    with pytest.raises(InterruptedRun, match=r"SIGTERM: stopped before the first step") as caught:
        train_ranks(WAITS, "channel.send(signal=15); time.sleep(60)")
    assert caught.value.exit_code == 143


def test_row_22_c_a_signal_to_any_process_stops_rank_0(train_ranks):
    """A signal to any of several processes stops the run, with the exit code of the signal."""
    row_22_c(train_ranks)


def test_row_22_c_control(train_ranks, monkeypatch):
    monkeypatch.setattr(processes.Channel, "send", lambda self, **message: self.end.sendall(b'{"none": 0}\n'))
    monkeypatch.setattr(processes, "SECONDS_TO_END", 0.1)
    events: list[Any] = []
    monkeypatch.setattr(processes.Watch, "handle", lambda self, event: events.append(event))

    def give_up(self, timeout):
        if len(events) == 0:
            raise TimeoutError
        raise queue.Empty

    monkeypatch.setattr(queue.Queue, "get", give_up)
    with pytest.raises(TimeoutError):
        row_22_c(train_ranks)


def row_23(train_ranks):
    with pytest.raises(RankError) as caught:
        train_ranks(IS_LOST, "def read_a_photo():\n    time.sleep(60)\nread_a_photo()", IS_LOST)
    assert re.fullmatch(r"rank 1 did not answer within trainer.dist_timeout_seconds=5: File \"<string>\", line \d+, in "
                        r"read_a_photo", str(caught.value))
    assert caught.value.exit_code == 6


def test_row_23_a_process_that_hangs_is_named(train_ranks):
    """Of several processes, one that does not answer for trainer.dist_timeout_seconds ends all, with rank and line."""
    row_23(train_ranks)


def test_row_23_control(train_ranks, monkeypatch):
    """Without the stacks the line is not known."""
    monkeypatch.setattr(processes.Watch, "ask", lambda *_: {})
    with pytest.raises(AssertionError):
        row_23(train_ranks)
